"""Where an instrument gets the statistics of units from: the training's own passes, or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from dynamo_probe.instrument import Instrument
from dynamo_probe.observation.batch import Batch, as_batch
from dynamo_probe.observation.recorder import Recorder, measure
from dynamo_probe.observation.statistics import Statistic, UnitSums

if TYPE_CHECKING:
    from dynamo_probe.site import Site

Where = Literal["training", "probe"] | Batch


def as_where(on: Any) -> Where:
    """Read what a user gives as the place to observe.

    Raises:
        TypeError: when it is neither `training`, `probe` nor a batch.
    """
    if isinstance(on, str) and (on == "training" or on == "probe"):
        return on
    found = None if isinstance(on, str) else as_batch(on)
    if not isinstance(found, Batch):
        raise TypeError(f"on is {on!r}; give 'training', 'probe' or a batch")
    return found


class NotMeasurable(Exception):
    """Raised by an instrument that cannot give an exact figure this time; carries the reason."""


class Source:
    """Where an instrument gets the statistics of units from.

    Attributes:
        instrument: whose source it is.
        batch: the source's own inputs; None for those of the site.
        where: `training` rides on the loop's own forward passes, `probe` runs the probe batch.
        recorder: the accumulators of a riding source.
        collected: what was read for this update together with the other sources that were due.
    """

    def __init__(
        self,
        site: Site,
        instrument: Instrument,
        statistics: Sequence[Statistic],
        where: Where,
        recorder: Recorder | None = None,
    ) -> None:
        """Made by `Site.observe`."""
        self.site = site
        self.instrument = instrument
        self.statistics = tuple(statistics)
        self.batch = where if isinstance(where, Batch) else None
        self.where: Literal["training", "probe"] = "probe" if isinstance(where, Batch) else where
        self.recorder = Recorder(statistics) if recorder is None else recorder
        self.collected: dict[str, UnitSums] | None = None

    def read(self, *, replicas: bool = False) -> dict[str, UnitSums]:
        """Return the statistics of each layer that was seen, in the order of the forward pass.

        Args:
            replicas: the instrument tells replicas apart. Others do not get layers that hold some.

        Raises:
            NotMeasurable: when no layer was seen, with the reason.
        """
        site = self.site
        if not site.layers:
            raise NotMeasurable(site.why_no_layers())
        if self.where == "probe":
            found: dict[str, UnitSums] = {}
            given = site.batches() if self.batch is None else {"": self.batch}
            for prefix, batch in given.items():
                inside = site.inside(prefix)
                found |= measure(
                    site.model,
                    batch,
                    inside,
                    self.statistics,
                    entry=prefix,
                    group=site.process_group,
                )
        elif self.collected is not None:
            found, self.collected = self.collected, None
        else:
            found = self.recorder.read(site.process_group)
        for name in site.layers:
            if name in found and found[name].samples == 0:
                site.miss(name)
        seen = {name: found[name] for name in site.layers if name in found and found[name].samples}
        if not replicas and (stacked := [name for name, one in seen.items() if one.replicas > 1]):
            seen = {name: one for name, one in seen.items() if one.replicas == 1}
            if not seen:
                raise NotMeasurable(
                    f"{', '.join(stacked)}: holds replicas, which {self.instrument.name} does not "
                    "tell apart"
                )
        if not seen:
            raise NotMeasurable(
                "no forward pass of a hidden layer was reached by a backward pass; if the model "
                "runs inside compiled code, attach before its first call"
                if self.where == "training"
                else "the probe batch is empty"
            )
        return seen
