"""How far updates move the weights, how far they have come, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import whole
from dynamo_probe.functional.gradients import norms, total_norm
from dynamo_probe.functional.updates import change_norms
from dynamo_probe.instrument import Probe
from dynamo_probe.observation.parameters import layer_of, moved_by, to_host
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable


class Updates(Probe):
    """Measure how the weights move: relative update size, size, distance from initialisation.

    Readings for all parameters of the watched optimizers, and for one layer under
    `updates/layer/NAME/`:

    - `updates/relative`: ||w_t - w_(t-1)|| / ||w_(t-1)|| over the optimizer's own step, from a copy
      taken just before it. What else changes weights between steps does not count;
    - `updates/weight_norm`: L2 norm; `updates/weight_magnitude`: mean |w| (what Dohare et al. 2024
      call the average weight magnitude);
    - `updates/distance`: ||w_t - w_0|| / ||w_0||, where w_0 are the weights at attach.

    A ratio to weights that are all 0 has no value and is left out. Of an optimizer that is not the
    first, the last step since the last update counts.

    On updates at which it fires the weights are held twice. The distance keeps another copy for the
    whole run, on the parameters' devices and in the checkpoint: memory O(parameters). Switch it
    off with `distance=False`.
    """

    name = "updates"

    def __init__(self, every: int | Schedule = 100, *, distance: bool = True) -> None:
        """Set times, and whether to keep the initial weights.

        Args:
            every: period in updates, or a schedule.
            distance: also measure the distance from initialisation.
        """
        super().__init__(as_schedule(every, first=True))
        self.distance = distance
        self._initial: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._told: set[str] = set()

    def attach(self, site: Site) -> None:
        """Copy the initial weights and ask to be called before steps."""
        site.before_step(self, partial(self._before_step, site))
        if not self.distance:
            return
        parameters = dict(site.parameters())
        if any(is_lazy(parameter) for parameter in parameters.values()):
            self.distance = False
            reason = "the model has parameters without a shape yet; run it once before dp.watch"
            self._skip(site, "distance", reason)
        else:
            held = {n for o in site.optimizers for n in moved_by(o, site.model)}
            self._initial = {name: parameters[name].detach().clone() for name in sorted(held)}

    def _before_step(self, site: Site, optimizer: Optimizer, closure: bool) -> None:
        moved = moved_by(optimizer, site.model)
        for name, parameter in moved.items():
            self._before[name] = parameter.detach().clone()

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        before, self._before = self._before, {}
        now = {name: p.detach() for name, p in site.parameters() if name in before}
        if not now:
            raise NotMeasurable("no watched optimizer has stepped")
        figures = self._figures(site, now, before)
        layers: dict[str, list[str]] = {}
        for name in now:
            layers.setdefault(f"{self.name}/layer/{layer_of(name)}", []).append(name)
        for prefix, names in ((self.name, list(now)), *layers.items()):
            entries = sum(now[name].numel() for name in names)
            over = partial(_over, figures, names)
            if size := over("before"):
                site.emit(f"{prefix}/relative", over("moved") / size)
            site.emit(f"{prefix}/weight_norm", over("norm"))
            if entries:
                magnitude = sum(figures["magnitude", name] for name in names)
                site.emit(f"{prefix}/weight_magnitude", magnitude / entries)
            if ("away", names[0]) in figures and (size := over("initial")):
                site.emit(f"{prefix}/distance", over("away") / size)

    def _figures(
        self, site: Site, now: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> dict[tuple[str, str], float]:
        """Return {(figure, parameter): value}."""
        # Of sharded weights each rank holds a part; the figures are of the whole.
        weights = [whole(weight) for weight in now.values()]
        earlier = [whole(before[n]).to(w.device) for n, w in zip(now, weights, strict=True)]
        figures = {
            "norm": norms(weights),
            "magnitude": norms(weights, 1),
            "before": norms(earlier),
            "moved": change_norms(weights, earlier),
        }
        if self._initial.keys() >= now.keys():
            kept = [whole(self._initial[name]) for name in now]
            initial = [k.to(w.device) for k, w in zip(kept, weights, strict=True)]
            figures |= {"initial": norms(initial), "away": change_norms(weights, initial)}
        elif self.distance:
            self._skip(site, "distance", "a parameter came to the optimizer after dp.watch")
        host = to_host(
            {
                (figure, name): value
                for figure, values in figures.items()
                for name, value in zip(now, values, strict=True)
            }
        )
        return {key: float(value) for key, value in host.items()}

    def _skip(self, site: Site, what: str, reason: str) -> None:
        if what not in self._told:
            self._told.add(what)
            site.note("skipped", f"{self.name}: {what}", reason=reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the initial weights, and those before steps since the last update."""
        copies = {"initial": self._initial, "before": self._before}
        state: dict[str, Any] = {
            key: {name: whole(copy).to("cpu", copy=True) for name, copy in kept.items()}
            for key, kept in copies.items()
        }
        return state | {"told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        places = {name: copy.device for name, copy in self._initial.items()}
        self._initial = {n: c.to(places.get(n, c.device)) for n, c in state["initial"].items()}
        self._before = dict(state["before"])
        self._told = set(state["told"])


def _over(figures: Mapping[tuple[str, str], float], names: Sequence[str], figure: str) -> float:
    return total_norm(figures[figure, name] for name in names)
