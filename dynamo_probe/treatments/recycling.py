"""What treatments share that recycle units: which layers, the recycling itself, ages, reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.mirror import as_networks, check_mirror
from dynamo_probe.anatomy.shards import whole
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.anatomy.wiring import Wiring
from dynamo_probe.functional.initial import Initial, loaded_initials, record_initial, saved_initials
from dynamo_probe.functional.moments import MOMENTS, Moments
from dynamo_probe.functional.recycling import recycle_units
from dynamo_probe.instrument import Treatment
from dynamo_probe.schedule import Schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable
from dynamo_probe.treatments.output_change import output_change

Choice = Literal["dormant", "random", "inverted"]


class Recycling(Treatment):
    """A treatment that recycles units; a class derived from it says which, and when.

    Attributes:
        total: units recycled in all.
    """

    def __init__(
        self,
        every: int | Schedule,
        *,
        init: Literal["own", "xavier"],
        moments: Moments,
        mirror: nn.Module | Sequence[nn.Module],
        layers: Sequence[str] | None,
    ) -> None:
        """Set how units are recycled; the arguments are those of `ReDo`."""
        super().__init__(every)
        check_choice(init, ("own", "xavier"), "init")
        check_choice(moments, MOMENTS, "moments")
        self.init = init
        self.moments: Moments = moments
        self.mirror = as_networks(mirror)
        self.only = None if layers is None else tuple(layers)
        self.total = 0
        self._born: dict[str, Tensor] = {}
        self._recycled: dict[str, Tensor] = {}
        self._initial: dict[str, Initial] = {}
        self._refused: dict[str, str] = {}

    def attach(self, site: Site) -> None:
        """Check what was named, and record the initial distributions.

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

    def begin(self, site: Site) -> None:
        """Resolve the wiring once, before the training depends on it."""
        for name, wiring in site.wiring().items():
            if isinstance(wiring, str):
                self._refused[name] = wiring

    def _wirings(self, site: Site, seen: Collection[str]) -> dict[str, Wiring]:
        """Return the wiring of each layer that is treated, was seen, and can be recycled.

        Raises:
            NotMeasurable: when there is none, with the reason for each.
        """
        wirings = {n: w for n, w in site.wiring().items() if isinstance(w, Wiring) and n in seen}
        if self.only is not None:
            wirings = {name: w for name, w in wirings.items() if name in self.only}
        if not wirings:
            reasons = "; ".join(f"{n}: {reason}" for n, reason in self._refused.items())
            raise NotMeasurable(f"no layer's units can be recycled ({reasons})")
        return wirings

    def _recycle_dormant(
        self,
        site: Site,
        scores: Mapping[str, Tensor],
        tau: float,
        choice: Choice,
        samples: int | None,
    ) -> None:
        """Recycle the units with a score of at most tau, or as many others; report it."""
        wirings = self._wirings(site, scores)
        dormant = {name: scores[name] <= tau for name in wirings}
        masks = {n: self._chosen(site, n, scores[n], dormant[n], choice) for n in wirings}
        self._report_again(site, dormant)
        self._recycle(site, wirings, masks, samples)

    def _chosen(
        self, site: Site, name: str, scores: Tensor, dormant: Tensor, choice: Choice
    ) -> Tensor:
        """Return which units of a layer to recycle."""
        count = int(dormant.sum())
        if choice == "dormant" or count == 0:
            return dormant
        usable = scores.isfinite()
        if choice == "inverted":
            order = scores.nan_to_num(nan=-1.0).argsort(descending=True, stable=True)
        else:
            generator = site.generator(self.name, "choice", name)
            order = torch.randperm(len(scores), generator=generator)
        chosen = torch.zeros_like(dormant)
        chosen[order[usable[order]][:count]] = True
        return chosen

    def _recycle(
        self,
        site: Site,
        wirings: Mapping[str, Wiring],
        masks: Mapping[str, Tensor],
        samples: int | None,
    ) -> None:
        """Recycle units and report it: the counts, and an event for each layer."""
        count = sum(int(mask.sum()) for mask in masks.values())
        if count:
            self._change(site, wirings, masks)
        self.total += count
        site.emit(f"{self.name}/recycled", float(count), samples)
        site.emit(f"{self.name}/recycled_total", float(self.total))

    def _change(
        self, site: Site, wirings: Mapping[str, Wiring], masks: Mapping[str, Tensor]
    ) -> None:
        ages = {name: self._ages(site, name, len(mask)) for name, mask in masks.items()}
        with output_change(site) as change:
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

    def _ages(self, site: Site, name: str, units: int) -> Tensor:
        """Return for how many updates each unit has been there; 0 is the beginning."""
        return site.step - self._born.setdefault(name, torch.zeros(units, dtype=torch.int64))

    def _report_again(self, site: Site, dormant: Mapping[str, Tensor]) -> None:
        earlier = {name: mask for name, mask in self._recycled.items() if name in dormant}
        recycled = sum(int(mask.sum()) for mask in earlier.values())
        if recycled:
            again = sum(int((dormant[name] & mask).sum()) for name, mask in earlier.items())
            site.emit(f"{self.name}/dormant_again", again / recycled)

    def state_dict(self) -> dict[str, Any]:
        """Return births, counts and the recorded initial distributions."""
        return {
            "total": self.total,
            "enabled": self.enabled,
            "born": dict(self._born),
            "recycled": dict(self._recycled),
            "initial": saved_initials(self._initial),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.total, self.enabled = int(state["total"]), bool(state["enabled"])
        self._born = {name: ages.clone() for name, ages in state["born"].items()}
        self._recycled = {name: mask.clone() for name, mask in state["recycled"].items()}
        self._initial = loaded_initials(state["initial"])


def check_choice(value: object, allowed: Sequence[str], what: str) -> None:
    """Refuse a value that is not one of those that have a meaning.

    Raises:
        ValueError: lists them.
    """
    if value not in allowed:
        raise ValueError(f"{what} is {value!r}; give one of {', '.join(allowed)}")
