"""ReDo: recycle dormant neurons while training goes on (Sokar et al. 2023, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.dataflow import tensors_in
from dynamo_probe.anatomy.mirror import as_networks, check_mirror
from dynamo_probe.anatomy.shards import whole
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.anatomy.wiring import Wiring
from dynamo_probe.functional.dormancy import check_tau, normalised_scores
from dynamo_probe.functional.initial import Initial, record_initial
from dynamo_probe.functional.recycling import Moments, recycle_units
from dynamo_probe.instrument import Treatment
from dynamo_probe.observation.statistics import MAGNITUDE
from dynamo_probe.schedule import Every, Schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable

Score = Literal["dormancy", "random", "inverted"]


class ReDo(Treatment):
    """Recycle dormant neurons (Sokar et al. 2023, algorithm 1).

    Every `every` updates, each hidden unit with a score of at most `tau` gets fresh incoming
    weights from its layer's initial distribution and a zero bias; its outgoing weights are set to
    zero, its norm entries to the identity, and the optimizer's state is reset at exactly those
    coordinates. All incoming weights are drawn before any outgoing one is zeroed, so that a weight
    between two recycled units ends at 0.

    Readings: `redo/recycled` (units recycled at this update), `redo/recycled_total`,
    `redo/dormant_again` (share of the units recycled earlier that are dormant now) and, with a
    probe batch, `redo/output_change` (largest change of an output). Each layer's recycling is an
    event with the units, their ages in updates, and the change of the output.
    """

    name = "redo"

    def __init__(
        self,
        tau: float = 0.1,
        every: int | Schedule = 1000,
        start: int = 0,
        end: int | None = None,
        score: Score = "dormancy",
        *,
        updates: int = 1,
        init: Literal["own", "xavier"] = "own",
        moments: Moments = "live-mean",
        mirror: nn.Module | Sequence[nn.Module] = (),
        on: Literal["training", "probe"] = "training",
        layers: Sequence[str] | None = None,
    ) -> None:
        """Set what is recycled, when and how.

        Args:
            tau: threshold of the score, at least 0.
            every: period in updates, or a schedule (then without `start` and `end`).
            start: nothing is recycled before this update.
            end: nothing is recycled after this update.
            score: which units: `dormancy` the dormant ones; `random` and `inverted` (highest scores
                first) are controls that take as many units a layer as are dormant in it.
            updates: how many updates before a firing are gathered for the scores. The reference
                scores 256 states; with small batches take more than one update.
            init: `own` draws incoming weights from the layer's distribution as it was at attach;
                `xavier` from xavier_uniform, which is what the reference does, whatever the layer
                had.
            moments: what becomes of the optimizer's state at the touched weights; see
                `dynamo_probe.functional.recycle`.
            mirror: networks of the same shape, such as target networks, that get the same weights.
            on: score on the `training` batches, or on the watch's `probe` batch.
            layers: names of the layers to treat; None takes all that can be recycled.

        Raises:
            ValueError: when an argument is out of range.
        """
        if isinstance(every, int):
            every = Every(every, start=start, end=end)
        elif start or end is not None:
            raise ValueError("start and end belong to a period; put them into the schedule")
        super().__init__(every)
        check_tau(tau)
        for value, allowed, what in (
            (score, ("dormancy", "random", "inverted"), "score"),
            (init, ("own", "xavier"), "init"),
            (moments, ("zero", "live-mean", "zero+step", "keep"), "moments"),
            (on, ("training", "probe"), "on"),
        ):
            if value not in allowed:
                raise ValueError(f"{what} is {value!r}; give one of {', '.join(allowed)}")
        if updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        self.tau = float(tau)
        self.score: Score = score
        self.updates = updates
        self.init = init
        self.moments: Moments = moments
        self.mirror = as_networks(mirror)
        self.where: Literal["training", "probe"] = on
        self.only = None if layers is None else tuple(layers)
        self.total = 0
        self._firings = 0
        self._born: dict[str, Tensor] = {}
        self._recycled: dict[str, Tensor] = {}
        self._initial: dict[str, Initial] = {}
        self._refused: dict[str, str] = {}

    def attach(self, site: Site) -> None:
        """Record the initial distributions and ask for scores.

        Raises:
            ValueError: when a mirror is not a network of the same shape, or a layer that was named
                does not exist.
        """
        site.check_layers(self.only or ())
        check_mirror(site.model, self.mirror)
        if self.init == "own":
            self._initial = {
                name: record_initial(whole(p.detach()))
                for name, p in site.parameters()
                if p.dim() >= 2
            }
        self.source = site.observe(self, (MAGNITUDE,), self.where)

    def begin(self, site: Site) -> None:
        """Resolve the wiring once, before the training depends on it."""
        for name, wiring in site.wiring().items():
            if isinstance(wiring, str):
                self._refused[name] = wiring

    def fire(self, site: Site) -> None:
        """Score the units, recycle those that are due, and report what was changed."""
        sums = self.source.read()
        scores = {n: normalised_scores(one.mean_magnitude()) for n, one in sums.items()}
        wirings = {n: w for n, w in site.wiring().items() if isinstance(w, Wiring) and n in scores}
        if self.only is not None:
            wirings = {name: w for name, w in wirings.items() if name in self.only}
        if not wirings:
            reasons = "; ".join(f"{n}: {reason}" for n, reason in self._refused.items())
            raise NotMeasurable(f"no layer's units can be recycled ({reasons})")
        dormant = {name: scores[name] <= self.tau for name in wirings}
        masks = {name: self._chosen(site, name, scores[name], dormant[name]) for name in wirings}
        self._report_again(site, dormant)
        count = sum(int(mask.sum()) for mask in masks.values())
        if count:
            self._recycle(site, wirings, masks)
        self._firings += 1
        self.total += count
        site.emit(f"{self.name}/recycled", float(count), min(s.samples for s in sums.values()))
        site.emit(f"{self.name}/recycled_total", float(self.total))

    def _chosen(self, site: Site, name: str, scores: Tensor, dormant: Tensor) -> Tensor:
        """Return which units of a layer to recycle."""
        count = int(dormant.sum())
        if self.score == "dormancy" or count == 0:
            return dormant
        usable = scores.isfinite()
        if self.score == "inverted":
            order = scores.nan_to_num(nan=-1.0).argsort(descending=True, stable=True)
        else:
            generator = site.generator(self.name, "choice", name)
            order = torch.randperm(len(scores), generator=generator)
        chosen = torch.zeros_like(dormant)
        chosen[order[usable[order]][:count]] = True
        return chosen

    def _recycle(
        self, site: Site, wirings: Mapping[str, Wiring], masks: Mapping[str, Tensor]
    ) -> None:
        ages = {name: site.step - self._birth(name, len(mask)) for name, mask in masks.items()}
        with _output_change(site) as change:
            report = recycle_units(
                wirings,
                masks,
                site.optimizers,
                initials=self.init if self.init == "xavier" else self._initial,
                generator_for=lambda layer: site.generator(self.name, "weights", layer),
                moments=self.moments,
                mirror=[unwrap(network) for network in self.mirror],
            )
        if "largest" in change:
            site.emit(f"{self.name}/output_change", change["largest"])
        for name, units in report.units.items():
            if not units:
                continue
            site.note(
                "recycled",
                name,
                units=list(units),
                ages=ages[name][masks[name]].tolist(),
                output_change=change.get("largest", "not measured: no probe batch was given"),
            )
            self._born[name][masks[name]] = site.step
            self._recycled.setdefault(name, torch.zeros_like(masks[name])).logical_or_(masks[name])

    def _birth(self, name: str, units: int) -> Tensor:
        """Return the update at which each unit was last recycled; 0 is the beginning."""
        return self._born.setdefault(name, torch.zeros(units, dtype=torch.int64))

    def _report_again(self, site: Site, dormant: Mapping[str, Tensor]) -> None:
        earlier = {name: mask for name, mask in self._recycled.items() if name in dormant}
        recycled = sum(int(mask.sum()) for mask in earlier.values())
        if recycled:
            again = sum(int((dormant[name] & mask).sum()) for name, mask in earlier.items())
            site.emit(f"{self.name}/dormant_again", again / recycled)

    def state_dict(self) -> dict[str, Any]:
        """Return ages, counts and the recorded initial distributions."""
        return {
            "total": self.total,
            "firings": self._firings,
            "enabled": self.enabled,
            "born": dict(self._born),
            "recycled": dict(self._recycled),
            "initial": {n: (i.family, i.scale) for n, i in self._initial.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.total, self._firings = int(state["total"]), int(state["firings"])
        self.enabled = bool(state["enabled"])
        self._born = {name: ages.clone() for name, ages in state["born"].items()}
        self._recycled = {name: mask.clone() for name, mask in state["recycled"].items()}
        self._initial = {name: Initial(*saved) for name, saved in state["initial"].items()}

    def report(self) -> list[str]:
        """Say what was recycled, and what cannot be."""
        lines = [f"recycled {self.total} units in {self._firings} firings (tau={self.tau:g})"]
        if self._firings and not self.total:
            lines.append("it has fired and never found a unit to recycle: tau may be too low")
        return lines


@contextmanager
def _output_change(site: Site) -> Iterator[dict[str, float]]:
    """Measure the largest change of an output on the given probe batch, if there is one."""
    change: dict[str, float] = {}
    if site.fixed.given is None:
        yield change
        return
    batch = site.batches()[""]

    def outputs() -> list[Tensor]:
        with site.apart() as model:
            return [t.detach().double() for t in tensors_in(batch.run(model))]

    before = outputs()
    yield change
    after = outputs()
    differences = [(a - b).abs().max().item() for a, b in zip(after, before, strict=True) if len(a)]
    change["largest"] = max(differences, default=0.0)
