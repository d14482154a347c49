"""Continual backpropagation: replace the least useful mature units, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.mirror import as_networks, check_mirror
from dynamo_probe.anatomy.shards import whole
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.anatomy.wiring import Wiring
from dynamo_probe.functional.initial import Initial, record_initial
from dynamo_probe.functional.moments import MOMENTS, Moments
from dynamo_probe.functional.recycling import recycle_units
from dynamo_probe.functional.utility import Reduce, outgoing_magnitude
from dynamo_probe.instrument import Treatment
from dynamo_probe.observation.statistics import MAGNITUDE
from dynamo_probe.schedule import Every
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable


class ContinualBackprop(Treatment):
    """Replace a small share of the least useful units all the time (Dohare et al. 2024).

    *Loss of plasticity in deep continual learning* (Nature 632), algorithm 1. At every firing the
    utility of each unit is averaged, u <- decay u + (1 - decay) E|h| sum|w_out|, and corrected for
    its beginning at 0: u / (1 - decay^age). Units older than `maturity` may be replaced;
    `replacement_rate` of them are due at each update, and the fractions of a unit that this makes
    are saved up, layer by layer. A replaced unit gets incoming weights from its layer's initial
    distribution, a zero bias, zero outgoing weights, age 0 and utility 0.

    The paper does this at every update. With `every=n` the work is done at each n-th update, from
    that update's batch, with `decay` and `replacement_rate` meant per update as before: n times as
    many units are due, and the average forgets as much (decay^n).

    Readings: `continual_backprop/recycled` (units at this update), `.../recycled_total`, and
    `.../age` (mean age of all units in updates). Each layer's replacements are an event.
    """

    name = "continual_backprop"

    def __init__(
        self,
        replacement_rate: float = 1e-4,
        *,
        maturity: int = 100,
        decay: float = 0.99,
        every: int = 1,
        outgoing: Reduce = "sum",
        init: Literal["own", "xavier"] = "own",
        moments: Moments = "zero",
        mirror: nn.Module | Sequence[nn.Module] = (),
        layers: Sequence[str] | None = None,
        read_every: int = 100,
    ) -> None:
        """Set how many units are replaced.

        Args:
            replacement_rate: share of the mature units of a layer that is replaced at each update.
            maturity: updates for which a new unit is left alone.
            decay: of the utility, per update.
            every: updates between two observations.
            outgoing: `sum` of the outgoing |w| as in the paper, `mean` as in the authors' code. The
                order of the units of a layer is the same.
            init: `own` draws incoming weights from the layer's distribution as it was at attach;
                `xavier` from xavier_uniform.
            moments: what becomes of the optimizer's state at the touched weights; `zero` is the
                authors' code for Adam, but for its step count.
            mirror: networks of the same shape, such as target networks, that get the same weights.
            layers: names of the layers to treat; None takes all that can be recycled.
            read_every: updates between two readings where nothing was replaced.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(Every(every))
        if not 0 <= replacement_rate <= 1:
            raise ValueError(f"replacement_rate is {replacement_rate}; give 0 to 1 (1e-4 is usual)")
        if maturity < 0:
            raise ValueError(f"maturity is {maturity}; give 0 or more (100 is usual)")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; give a number from 0 to below 1 (0.99 is usual)")
        if outgoing not in ("sum", "mean"):
            raise ValueError(f"outgoing is {outgoing!r}; give 'sum' or 'mean'")
        if init not in ("own", "xavier"):
            raise ValueError(f"init is {init!r}; give 'own' or 'xavier'")
        if moments not in MOMENTS:
            raise ValueError(f"moments is {moments!r}; give one of {', '.join(MOMENTS)}")
        if read_every < 1:
            raise ValueError(f"read_every is {read_every}; give 1 or more")
        self.replacement_rate = float(replacement_rate)
        self.maturity, self.decay, self.every = maturity, float(decay), every
        self.outgoing: Reduce = outgoing
        self.init = init
        self.moments: Moments = moments
        self.mirror = as_networks(mirror)
        self.only = None if layers is None else tuple(layers)
        self.read_every = read_every
        self.updates = 1
        self.total = 0
        self._initial: dict[str, Initial] = {}
        self._utility: dict[str, Tensor] = {}
        self._ages: dict[str, Tensor] = {}
        self._owed: dict[str, float] = {}
        self._refused: dict[str, str] = {}

    def attach(self, site: Site) -> None:
        """Record the initial distributions and ask for the activations.

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
        self.source = site.observe(self, (MAGNITUDE,))

    def begin(self, site: Site) -> None:
        """Resolve the wiring once, before the training depends on it."""
        for name, wiring in site.wiring().items():
            if isinstance(wiring, str):
                self._refused[name] = wiring

    def fire(self, site: Site) -> None:
        """Observe the units, and replace those that are due."""
        sums = self.source.read()
        wirings = {n: w for n, w in site.wiring().items() if isinstance(w, Wiring) and n in sums}
        if self.only is not None:
            wirings = {name: w for name, w in wirings.items() if name in self.only}
        if not wirings:
            reasons = "; ".join(f"{n}: {reason}" for n, reason in self._refused.items())
            raise NotMeasurable(f"no layer's units can be recycled ({reasons})")
        masks = {}
        for name, wiring in wirings.items():
            observed = sums[name].mean_magnitude() * outgoing_magnitude(wiring, self.outgoing)
            due = self._due(name, observed)
            if bool(due.any()):
                masks[name] = due
        count = sum(int(mask.sum()) for mask in masks.values())
        if count:
            self._replace(site, {name: wirings[name] for name in masks}, masks)
            self.total += count
        if count or site.step % self.read_every < self.every:
            ages = torch.cat([self._ages[name] for name in wirings])
            site.emit(f"{self.name}/recycled", float(count), min(s.samples for s in sums.values()))
            site.emit(f"{self.name}/recycled_total", float(self.total))
            site.emit(f"{self.name}/age", float(ages.double().mean()))

    def _due(self, name: str, observed: Tensor) -> Tensor:
        """Take an observation of a layer; return which of its units are to be replaced."""
        utility = self._utility.setdefault(name, torch.zeros_like(observed))
        ages = self._ages.setdefault(name, torch.zeros(len(observed), dtype=torch.int64))
        kept = self.decay**self.every
        # What is not finite now is passed over: its average would never recover.
        utility = torch.where(observed.isfinite(), kept * utility + (1 - kept) * observed, utility)
        ages = ages + self.every
        self._utility[name], self._ages[name] = utility, ages
        mature = ages > self.maturity
        eligible = int(mature.sum())
        owed = self._owed.get(name, 0.0) + eligible * self.replacement_rate * self.every
        count = min(int(owed), eligible)
        self._owed[name] = owed - count
        due = torch.zeros_like(mature)
        if count:
            corrected = utility / (1 - self.decay ** ages.double())
            corrected = corrected.masked_fill(~mature, float("inf"))
            due[corrected.argsort(stable=True)[:count]] = True
        return due

    def _replace(self, site: Site, wirings: dict[str, Wiring], masks: dict[str, Tensor]) -> None:
        report = recycle_units(
            wirings,
            masks,
            site.optimizers,
            initials=self.init if self.init == "xavier" else self._initial,
            generator_for=lambda layer: site.generator(self.name, "weights", layer),
            moments=self.moments,
            mirror=[unwrap(network) for network in self.mirror],
        )
        for name, units in report.units.items():
            ages = self._ages[name][masks[name]].tolist()
            site.note("recycled", name, units=list(units), ages=ages)
            self._utility[name] = self._utility[name].masked_fill(masks[name], 0.0)
            self._ages[name] = self._ages[name].masked_fill(masks[name], 0)

    def state_dict(self) -> dict[str, Any]:
        """Return utilities, ages, what is saved up, and the recorded distributions."""
        return {
            "total": self.total,
            "enabled": self.enabled,
            "utility": dict(self._utility),
            "ages": dict(self._ages),
            "owed": dict(self._owed),
            "initial": {n: (i.family, i.scale) for n, i in self._initial.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.total, self.enabled = int(state["total"]), bool(state["enabled"])
        self._utility = {name: values.clone() for name, values in state["utility"].items()}
        self._ages = {name: values.clone() for name, values in state["ages"].items()}
        self._owed = dict(state["owed"])
        self._initial = {name: Initial(*saved) for name, saved in state["initial"].items()}

    def report(self) -> list[str]:
        """Say what was replaced."""
        return [f"replaced {self.total} units ({self.replacement_rate:g} of the mature ones each)"]
