"""The rank of a layer's features over training, on a fixed batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dynamo_probe.functional.rank import rank_summary
from dynamo_probe.instrument import Probe
from dynamo_probe.observation.batch import Batch, as_batch
from dynamo_probe.observation.recorder import activations
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable


class Rank(Probe):
    """Measure how many directions the features of a layer use.

    Readings for each layer: `rank/NAME/effective` (Roy & Vetterli 2007), `rank/NAME/srank` (Kumar
    et al. 2021), `rank/NAME/stable` (||A||_F^2 / ||A||_2^2), `rank/NAME/participation`; all from
    one eigen-solve. Features are the activations after the activation function on a fixed batch:
    the watch's probe batch, or the inputs of the first training pass. A batch of the moment would
    mix the network's rank with that of its inputs.

    For a convolution every position is a sample.
    """

    name = "rank"
    observes = "runs the model apart, on a fixed batch"

    def __init__(
        self,
        every: int | Schedule = 1000,
        layers: Literal["last", "all"] | Sequence[str] = "last",
        *,
        batch: Any = None,
        delta: float = 0.01,
    ) -> None:
        """Set times and layers.

        Args:
            every: period in updates, or a schedule.
            layers: `last` takes the last hidden layer, whose features the literature ranks; `all`,
                or names.
            batch: inputs of the probe's own; None takes the watch's.
            delta: srank is the smallest k whose singular values make up 1 - delta of the sum.

        Raises:
            ValueError: when delta is not between 0 and 1.
        """
        super().__init__(as_schedule(every, first=True))
        if not 0 < delta < 1:
            raise ValueError(f"delta is {delta}; give a number between 0 and 1 (0.01 is usual)")
        self.chosen = layers
        self.delta = delta
        found = as_batch(batch)
        self.batch = found() if callable(found) else found

    def attach(self, site: Site) -> None:
        """Ask that a batch is at hand.

        Raises:
            ValueError: when a layer that was named does not exist.
        """
        if not isinstance(self.chosen, str):
            site.check_layers(self.chosen)
        if self.batch is None:
            site.want_batch()

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        if not site.layers:
            raise NotMeasurable(site.why_no_layers())
        names = self._names(site)
        for name, (features, samples) in self._features_of_all_ranks(site, names).items():
            if not features.isfinite().all():
                raise NotMeasurable(f"the features of {name} are not finite")
            summary = rank_summary(features, delta=self.delta)
            for figure in ("effective", "srank", "stable", "participation"):
                value = getattr(summary, _FIELDS[figure])
                site.emit(f"{self.name}/{name}/{figure}", float(value), samples)

    def _names(self, site: Site) -> list[str]:
        names = self._chosen(site)
        stacked = [name for name in names if site.layers[name].replicas > 1]
        if stacked:
            raise NotMeasurable(f"{stacked[0]}: it holds replicas, which are not told apart here")
        return names

    def _chosen(self, site: Site) -> list[str]:
        if self.chosen == "last":
            return [list(site.layers)[-1]]
        if self.chosen == "all":
            return list(site.layers)
        closed = [name for name in self.chosen if name not in site.layers]
        if closed:
            raise NotMeasurable(f"{closed[0]}: {site.skipped.get(closed[0], 'not seen yet')}")
        return list(self.chosen)

    def _features_of_all_ranks(
        self, site: Site, names: Sequence[str]
    ) -> dict[str, tuple[Tensor, int]]:
        """Return features with the singular values of all ranks' rows, and the number of rows."""
        own = self._features(site, names)
        if site.process_group is None:
            return {name: (features, len(features)) for name, features in own.items()}
        parts: list[Tensor] = []
        for features in own.values():
            exact = features.double()
            parts += [(exact.T @ exact).flatten(), exact.new_tensor([len(exact)])]
        summed = site.sum_over_ranks(torch.cat(parts)).split([len(part) for part in parts])
        found: dict[str, tuple[Tensor, int]] = {}
        for name, gram, rows in zip(own, summed[::2], summed[1::2], strict=True):
            units = own[name].shape[1]
            if not gram.isfinite().all():
                raise NotMeasurable(f"the features of {name} are not finite")
            values, vectors = torch.linalg.eigh(gram.view(units, units))
            found[name] = (vectors * values.clamp(min=0).sqrt()).T, int(rows)
        return found

    def _features(self, site: Site, names: Sequence[str]) -> dict[str, Tensor]:
        given = {"": self.batch} if isinstance(self.batch, Batch) else site.batches()
        found: dict[str, Tensor] = {}
        for prefix, batch in given.items():
            inside = {n: la for n, la in site.inside(prefix).items() if n in names}
            if inside:
                found |= activations(site.model, batch, inside, entry=prefix)
        return found


_FIELDS = {
    "effective": "effective_rank",
    "srank": "srank",
    "stable": "stable_rank",
    "participation": "participation_ratio",
}
