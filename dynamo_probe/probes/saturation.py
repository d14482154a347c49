"""The share of saturated units and entries over training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dynamo_probe.functional.saturation import SaturationShares, near_high, near_low
from dynamo_probe.instrument import Probe
from dynamo_probe.observation.statistics import Statistic, sum_over_samples
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable, Where, as_where


class Saturation(Probe):
    """Measure saturation: activations near a bound of their activation function.

    Defined for functions with two finite bounds: tanh, sigmoid, hardtanh, relu6 and their like.
    Other layers are left out and told. Readings over all bounded layers, and for one layer under
    `saturation/layer/NAME/`:

    - `saturation/entries`, `saturation/entries_low`, `saturation/entries_high`: the share of
      activations within `margin` of the range from a bound, from the lower, from the upper one;
    - `saturation/units`, `saturation/units_low`, `saturation/units_high`: the share of units of
      which more than `share` of the samples lie there.

    Units with activations that are not finite take no part. Saturation by gradients is another
    thing and depends on the scale of the loss and the batch size, so that a figure of it over
    micro-batches or under a gradient scaler would be wrong; for a batch of your own there is
    `functional.gradient_saturated_units`.
    """

    name = "saturation"

    def __init__(
        self,
        every: int | Schedule = 100,
        on: Literal["training", "probe"] | Any = "training",
        *,
        margin: float = 0.01,
        share: float = 0.99,
        updates: int = 1,
    ) -> None:
        """Set times and what is near.

        Args:
            every: period in updates, or a schedule.
            on: `training` takes the loop's own batches, `probe` the watch's probe batch; or give a
                batch.
            margin: share of the function's range that counts as near a bound.
            share: share of the samples above which a unit counts as saturated.
            updates: how many updates before a reading are gathered.

        Raises:
            TypeError: when `on` is something else.
            ValueError: when a number is out of range.
        """
        super().__init__(as_schedule(every, first=True))
        if not 0 < margin < 0.5:
            raise ValueError(f"margin is {margin}; give a number between 0 and 0.5 (0.01 is usual)")
        if not 0 <= share < 1:
            raise ValueError(f"share is {share}; give a number from 0 to below 1 (0.99 is usual)")
        if updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        self.where: Where = as_where(on)
        self.margin = margin
        self.share = share
        self.updates = updates
        self._told: set[str] = set()

    def attach(self, site: Site) -> None:
        """Ask for the counts of activations near each bound."""

        def count(near: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def counted(h: Tensor, axis: int, bounds: tuple[float, float]) -> Tensor:
                if not bounds[1] - bounds[0] < float("inf"):
                    return h.new_zeros(h.shape[axis])
                return sum_over_samples(near(h, bounds, self.margin), axis)

            return counted

        statistics = (
            Statistic("low", "sum", count(near_low)),
            Statistic("high", "sum", count(near_high)),
        )
        self.source = site.observe(self, statistics, self.where)

    def begin(self, site: Site) -> None:
        """Tell which layers have no bounds."""
        for name, layer in site.layers.items():
            if not layer.bounds[1] - layer.bounds[0] < float("inf") and name not in self._told:
                self._told.add(name)
                reason = f"{layer.activation} is not known to have two finite bounds"
                site.note("skipped", f"{self.name}: {name}", reason=reason)

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        sums = {
            name: one
            for name, one in self.source.read().items()
            if one.bounds[1] - one.bounds[0] < float("inf")
        }
        if not sums:
            raise NotMeasurable("no hidden layer that was seen has a bounded activation function")
        shares = {
            name: SaturationShares(
                one.values["low"] / one.samples, one.values["high"] / one.samples
            )
            for name, one in sums.items()
        }
        samples = min(one.samples for one in sums.values())
        self._report(site, self.name, list(shares.values()), samples)
        for name, one in shares.items():
            self._report(site, f"{self.name}/layer/{name}", [one], sums[name].samples)

    def _report(
        self, site: Site, prefix: str, layers: Sequence[SaturationShares], samples: int
    ) -> None:
        low, high = (torch.cat([getattr(s, side) for s in layers]) for side in ("low", "high"))
        finite = low.isfinite()
        low, high = low[finite], high[finite]
        for suffix, shares in (("", low + high), ("_low", low), ("_high", high)):
            if len(shares):
                site.emit(f"{prefix}/entries{suffix}", float(shares.mean()), samples)
                units = (shares > self.share).double().mean()
                site.emit(f"{prefix}/units{suffix}", float(units), samples)

    def state_dict(self) -> dict[str, Any]:
        """Return what was told."""
        return {"told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._told = set(state["told"])
