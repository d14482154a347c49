"""Plasticity itself over training: what a copy of the network can still learn."""

from __future__ import annotations

from typing import Any, Literal

from dynamo_probe.anatomy.shards import is_sharded
from dynamo_probe.functional.fresh import fresh_copy, record_distributions
from dynamo_probe.functional.initial import Initial
from dynamo_probe.functional.trainability import Targets, area, check_fit, trainability
from dynamo_probe.instrument import Probe
from dynamo_probe.observation.batch import Batch, as_batch
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable


class Trainability(Probe):
    """Fit a copy of the network to fresh random targets, beside a freshly initialised one.

    The loss after a fixed number of updates on targets it has never seen is what Lyle et al. 2023
    (*Understanding plasticity in neural networks*) call plasticity. It is the only direct measure
    of it; see `functional.trainability` for what exactly is fitted. Readings, all of mean squared
    error or cross entropy:

    - `trainability/loss` and `trainability/fresh_loss`: after the last update;
    - `trainability/ratio`: the first over the second. Above 1, plasticity was lost;
    - `trainability/area` and `trainability/fresh_area`: mean loss over the whole curve, which
      tells slow learning where both get to 0 in the end.

    Modules that the loop calls by themselves have readings of their own, `trainability/NAME/ratio`.

    Each reading costs two trainings of `updates` updates on the probe batch, on copies: memory for
    four more models while it runs. The training itself goes on bit-identically.
    """

    name = "trainability"

    def __init__(
        self,
        every: int | Schedule = 5000,
        *,
        updates: int = 100,
        learning_rate: float = 1e-3,
        targets: Targets = "regression",
        centred: bool = True,
        fresh: Literal["reset", "recorded"] = "reset",
        batch: Any = None,
    ) -> None:
        """Set times and what is fitted.

        Args:
            every: period in updates, or a schedule. Update 1 is read too, for the beginning.
            updates: how many updates the copies get.
            learning_rate: of their Adam; that of the training is a good choice.
            targets: `regression` to N(0, 1) numbers, or random `labels`.
            centred: whether regression targets lie around each network's own mean prediction.
            fresh: how the fresh network is initialised: by each module's `reset_parameters`, with
                `recorded` distributions where a module has none; or all by the distributions that
                the parameters had at attach, which is right where the training initialises
                weights in its own way.
            batch: inputs of the probe's own; None takes the watch's.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(as_schedule(every, first=True))
        check_fit(updates, learning_rate, targets)
        if fresh not in ("reset", "recorded"):
            raise ValueError(f"fresh is {fresh!r}; give 'reset' or 'recorded'")
        # Not `updates`, which would be how many updates of the training are gathered.
        self.fitted_updates = updates
        self.learning_rate = learning_rate
        self.targets: Targets = targets
        self.centred = centred
        self.reset = fresh == "reset"
        found = as_batch(batch)
        self.batch = found() if callable(found) else found
        self._recorded: dict[str, Initial] = {}

    def attach(self, site: Site) -> None:
        """Record how what cannot be reset was initialised, and ask for a batch."""
        if self.batch is None:
            site.want_batch()
        if any(is_sharded(parameter) for _, parameter in site.parameters()):
            return
        self._recorded = record_distributions(site.model)
        if self.reset:
            fresh = fresh_copy(site.model)
            again = record_distributions(fresh.model)
            self._tell(site, fresh.kept, again)
            self._recorded = {n: i for n, i in self._recorded.items() if n in fresh.kept}

    def _tell(self, site: Site, kept: tuple[str, ...], again: dict[str, Initial]) -> None:
        if kept:
            reason = (
                "no reset_parameters initialises them: drawn from the distribution they have now"
            )
            site.note("note", self.name, reason=reason, parameters=list(kept))
        shapes = {name: p.numel() for name, p in site.parameters() if p.dim() >= 2}
        other = [
            name
            for name, size in shapes.items()
            if size >= 100
            and name in self._recorded
            and name not in kept
            and not 0.8 < _width(self._recorded[name]) / max(_width(again[name]), 1e-30) < 1.25
        ]
        if other:
            reason = (
                "the fresh network's weights are wider or narrower than the model's are now; where "
                "that is how the training initialises them, give fresh='recorded'"
            )
            site.note("note", self.name, reason=reason, parameters=other)

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        if any(is_sharded(parameter) for _, parameter in site.parameters()):
            raise NotMeasurable("the parameters are sharded over ranks (DTensor)")
        if site.process_group is not None and self.batch is None and site.fixed.given is None:
            raise NotMeasurable(
                "each rank would fit another batch: give probe_batch=, the same on every rank"
            )
        given = {"": self.batch} if isinstance(self.batch, Batch) else site.batches()
        for prefix, batch in given.items():
            inside = f"{prefix}." if prefix else ""
            recorded = {
                name.removeprefix(inside): initial
                for name, initial in self._recorded.items()
                if name.startswith(inside)
            }
            report = trainability(
                site.model.get_submodule(prefix),
                batch,
                updates=self.fitted_updates,
                learning_rate=self.learning_rate,
                targets=self.targets,
                centred=self.centred,
                recorded=recorded,
                reset=self.reset,
                generator=site.generator(self.name, prefix),
            )
            tag = f"{self.name}/{prefix}" if prefix else self.name
            figures = {
                "loss": float(report.losses[-1]),
                "fresh_loss": float(report.fresh_losses[-1]),
                "ratio": report.ratio,
                "area": area(report.losses),
                "fresh_area": area(report.fresh_losses),
            }
            for figure, value in figures.items():
                site.emit(f"{tag}/{figure}", value, report.samples)

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded distributions."""
        return {"recorded": {n: (i.family, i.scale) for n, i in self._recorded.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._recorded = {name: Initial(*saved) for name, saved in state["recorded"].items()}


def _width(initial: Initial) -> float:
    """Return the standard deviation of what is drawn."""
    return initial.scale / 3**0.5 if initial.family == "uniform" else abs(initial.scale)
