"""Sets of dormant units over time: do dormant units stay dormant, beyond chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import dynamo_probe as dp
from dynamo_probe.functional.dormancy import normalised_scores
from dynamo_probe.observation.statistics import MAGNITUDE
from dynamo_probe.source import Where, as_where


class Lives(dp.Probe):
    """Keep the scores of all units at each reading.

    Attributes:
        scores: {layer: Tensor[units]} of each reading, in order.
        network: what is watched.
    """

    name = "lives"

    def __init__(self, every: int, updates: int, on: Any = "training") -> None:
        """Set when, how many updates' batches a reading takes, or `on` which batch it is taken."""
        super().__init__(every)
        self.updates = updates
        self.where: Where = as_where(on)
        self.scores: list[dict[str, Tensor]] = []

    def attach(self, site: dp.Site) -> None:
        """Ask for the units' mean magnitudes."""
        self.source = site.observe(self, (MAGNITUDE,), self.where)
        self.network = site.model

    def fire(self, site: dp.Site) -> None:
        """Keep them."""
        sums = self.source.read()
        self.scores.append({n: normalised_scores(one.mean_magnitude()) for n, one in sums.items()})

    def dormant(self, tau: float) -> list[dict[str, Tensor]]:
        """Return the dormant units of each reading, bool `{layer: [units]}`."""
        return [{n: scores <= tau for n, scores in reading.items()} for reading in self.scores]


def overlap(then: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """Return |A and B| / min(|A|, |B|) over all layers; NaN when a set is empty."""
    shared = sum(int((then[name] & now[name]).sum()) for name in then)
    smaller = min(_size(then), _size(now))
    return shared / smaller if smaller else float("nan")


def overlap_by_chance(then: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """Return what `overlap` is on average, if each layer's dormant units were drawn at random.

    Two random sets of a and b of n units share a b / n of them (hypergeometric).
    """
    shared = sum(int(then[n].sum()) * int(now[n].sum()) / len(then[n]) for n in then)
    smaller = min(_size(then), _size(now))
    return shared / smaller if smaller else float("nan")


def persistence(readings: Sequence[Mapping[str, Tensor]]) -> tuple[tuple[float, float], ...]:
    """Return (overlap of each reading's dormant units with the last ones, by chance)."""
    last = readings[-1]
    return tuple((overlap(one, last), overlap_by_chance(one, last)) for one in readings[:-1])


def of_score(scores: Mapping[str, Tensor], dormant: Mapping[str, Tensor], seed: int | None) -> dict:
    """Return as many units of each layer as are dormant in it: random ones, or the most active.

    Args:
        scores: `{layer: [units]}`.
        dormant: bool `{layer: [units]}`.
        seed: of the random ones; None takes those with the highest scores.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    chosen = {}
    for name, mask in dormant.items():
        order = scores[name].argsort(descending=True, stable=True)
        if generator is not None:
            order = torch.randperm(len(mask), generator=generator)
        chosen[name] = torch.zeros_like(mask)
        chosen[name][order[: int(mask.sum())]] = True
    return chosen


def _size(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())
