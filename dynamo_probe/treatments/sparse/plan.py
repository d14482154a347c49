"""An update of the masks, as a pure function: who goes, who comes (GraNet, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from dynamo_probe.anatomy.weights import Weight
from dynamo_probe.functional.densities import least_counts
from dynamo_probe.functional.selection import select_globally
from dynamo_probe.treatments.sparse.granularity import Granularity

Scores = Mapping[str, Tensor]
Masks = dict[str, Tensor]
GrowScope = Literal["layer", "global", "momentum"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What an update of the masks comes to.

    Attributes:
        masks: {name: BoolTensor}, the connections that are to be there.
        stayed: {name: BoolTensor}, those that were there and never left during the update; the
            others of `masks` are new, also where they had been there before.
    """

    masks: Masks
    stayed: Masks


class Planner:
    """Plans updates of the masks.

    Args:
        weights: {name: weight}.
        granularity: the pattern that connections come and go in.
        everywhere: prune over all layers at once, and not layer by layer.
        grow_scope: where connections are grown: in the `layer` that lost them; `global`, wherever
            the scores are best; `momentum`, in proportion to the mean score of each layer's active
            connections (SNFS).
        floor: least density of a layer.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        granularity: Granularity,
        everywhere: bool,
        grow_scope: GrowScope,
        floor: float,
    ) -> None:
        """Take the rules."""
        self.weights = weights
        self.granularity = granularity
        self.everywhere = everywhere
        self.grow_scope = grow_scope
        self.floors = least_counts({n: w.shape for n, w in weights.items()}, floor)
        self.size = sum(math.prod(w.shape) for w in weights.values())

    def plan(
        self,
        masks: Masks,
        counts: Mapping[str, int] | int,
        share: float,
        prune_scores: Callable[[], Scores],
        grow_scores: Callable[[], Scores],
    ) -> Plan:
        """Plan one update: to the density of the schedule, then an exchange at that density.

        Args:
            masks: the connections that are there.
            counts: how many are to be there, for each layer, or in all.
            share: share of each layer's connections that are exchanged.
            prune_scores: makes the scores by which connections stay, when they are needed.
            grow_scores: makes the scores by which they are grown.

        Raises:
            ValueError: when the counts cannot be met, or a score is NaN.
        """
        grow_scores = cache(grow_scores)
        there = {name: int(torch.count_nonzero(mask)) for name, mask in masks.items()}
        wanted = counts if isinstance(counts, int) else sum(counts.values())
        changes = wanted != sum(there.values()) if isinstance(counts, int) else counts != there
        exchanges = share > 0 and wanted < self.size
        prune = prune_scores() if exchanges or (changes and wanted < self.size) else {}
        grown = masks
        if changes:
            grown = self._resize(masks, there, counts, prune, grow_scores)
        stayed = {name: masks[name] & grown[name] for name in masks} if changes else masks
        if exchanges:
            kept = {n: self._drop(n, mask, prune[n], share) for n, mask in grown.items()}
            stayed = {name: stayed[name] & kept[name] for name in kept}
            grown = self._regrow(grown, kept, grow_scores())
        return Plan(dict(grown), dict(stayed))

    def _resize(
        self,
        masks: Masks,
        there: Mapping[str, int],
        counts: Mapping[str, int] | int,
        prune: Scores,
        grow_scores: Callable[[], Scores],
    ) -> Masks:
        if isinstance(counts, int):
            if counts == self.size:
                return {name: torch.ones_like(mask) for name, mask in masks.items()}
            if counts < sum(there.values()):
                floors = {name: min(self.floors[name], there[name]) for name in masks}
                return select_globally(prune, counts, among=masks, floors=floors)
            more = counts - sum(there.values())
            others = {name: ~mask for name, mask in masks.items()}
            new = select_globally(grow_scores(), more, among=others)
            return {name: masks[name] | new[name] for name in masks}
        found: Masks = {}
        for name, mask in masks.items():
            where, count = self.weights[name], counts[name]
            if count == math.prod(where.shape):
                found[name] = torch.ones_like(mask)
            elif count < there[name]:
                found[name] = self.granularity.best(where, prune[name], count, mask)
            elif count > there[name]:
                found[name] = self.granularity.grow(where, grow_scores()[name], mask, count)
            else:
                found[name] = mask
        return found

    def _drop(self, name: str, mask: Tensor, scores: Tensor, share: float) -> Tensor:
        if self.grow_scope == "layer" and bool(mask.all()):
            return mask  # nothing could grow in exchange but what was dropped
        return self.granularity.drop(self.weights[name], scores, mask, share)

    def _regrow(self, masks: Masks, kept: Masks, scores: Scores) -> Masks:
        there = {name: int(torch.count_nonzero(mask)) for name, mask in masks.items()}
        if self.grow_scope == "layer":
            return {
                name: self.granularity.grow(self.weights[name], scores[name], mask, there[name])
                if mask is not masks[name]
                else mask
                for name, mask in kept.items()
            }
        left = {name: int(torch.count_nonzero(mask)) for name, mask in kept.items()}
        missing = sum(there.values()) - sum(left.values())
        # What a layer has lost below its floor it gets back first.
        owed = {n: max(0, min(self.floors[n], there[n]) - left[n]) for n in kept}
        others = {name: ~mask for name, mask in kept.items()}
        if self.grow_scope == "global":
            new = select_globally(scores, missing, among=others, floors=owed)
            return {name: kept[name] | new[name] for name in kept}
        # The means are of what was there before the exchange, as in SNFS's reference.
        mean = {
            n: float(scores[n][m].double().mean()) if there[n] else 0.0 for n, m in masks.items()
        }
        room = {n: math.prod(self.weights[n].shape) - left[n] - owed[n] for n in kept}
        more = shared_out(missing - sum(owed.values()), mean, room)
        count = {name: left[name] + owed[name] + more[name] for name in kept}
        return {
            name: self.granularity.grow(self.weights[name], scores[name], mask, count[name])
            for name, mask in kept.items()
        }


def shared_out(amount: int, shares: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Divide a whole number in proportion to shares, as far as there is room, exactly.

    Args:
        amount: what is divided; at most the sum of the room.
        shares: {name: how much it wants}, non-negative; where nobody wants any, all get alike.
        room: {name: how much it can take}.

    Raises:
        ValueError: when there is not the room, or a share is negative or not finite.

    Example:
        >>> shared_out(10, {"a": 3.0, "b": 1.0}, {"a": 5, "b": 9})
        {'a': 5, 'b': 5}
    """
    if amount > sum(room.values()):
        raise ValueError(f"{amount} are to be divided, and there is room for {sum(room.values())}")
    wrong = [name for name in room if not 0 <= shares[name] < math.inf]
    if wrong:
        raise ValueError(
            f"the share of {wrong[0]} is {shares[wrong[0]]}: dividing by mean scores needs scores "
            "that are finite and not negative; give another grow= or grow_scope='layer'"
        )
    given = dict.fromkeys(room, 0)
    while (left := amount - sum(given.values())) > 0:
        open_to = [name for name in room if given[name] < room[name]]
        total = sum(shares[name] for name in open_to)
        even = not total > 0
        for name in open_to:
            part = left / len(open_to) if even else left * shares[name] / total
            given[name] += min(room[name] - given[name], math.floor(part))
        if left == amount - sum(given.values()):
            # Less than one for each: the largest shares first.
            for name in sorted(open_to, key=lambda n: -shares[n])[:left]:
                given[name] += 1
    return given
