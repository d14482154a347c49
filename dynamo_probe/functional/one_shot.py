"""One-shot pruning by magnitude, and the regrowth of as many connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from dynamo_probe.functional.importance import magnitude
from dynamo_probe.functional.selection import select_exact, select_globally

Scope = Literal["global", "uniform"]
SCOPES: tuple[Scope, ...] = ("global", "uniform")

Masks = dict[str, Tensor]
"""{weight: BoolTensor of its shape}, the connections that are there."""


def one_shot_masks(
    weights: Mapping[str, Tensor], rate: float, scope: Scope, among: Mapping[str, Tensor]
) -> Masks:
    """Keep the connections with the largest |w|.

    Of N weights round(rate N) go, those first that are not there or are 0 already; of equal ones
    those that come last. Where fewer are there than may stay, all of them stay.

    Args:
        weights: {name: weight}.
        rate: share of the weights that is pruned, in [0, 1).
        scope: `global` compares all weights with each other; `uniform` prunes the same share of
            each.
        among: {name: BoolTensor}, the connections that are there.

    Example:
        >>> weights = {"fc": torch.tensor([[3.0, -1.0], [0.5, 2.0]])}
        >>> one_shot_masks(weights, 0.5, "global", {"fc": torch.ones(2, 2).bool()})
        {'fc': tensor([[ True, False],
                [False,  True]])}
    """
    scores = {name: magnitude(weight) for name, weight in weights.items()}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    there = counts(among)
    if scope == "global":
        total = sum(sizes.values())
        k = min(total - round(rate * total), sum(there.values()))
        return select_globally(_on_one_device(scores), k, among=_on_one_device(among))
    keep = {name: min(n - round(rate * n), there[name]) for name, n in sizes.items()}
    return {n: select_exact(s, keep[n], among=among[n]) for n, s in scores.items()}


def regrown(
    masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], number: int | Mapping[str, int]
) -> Masks:
    """Add connections with the largest scores, of all that are not there.

    Args:
        masks: {name: BoolTensor}, the connections that are there.
        scores: {name: score}.
        number: how many in all, or {name: how many}.
    """
    zeros = {name: ~mask for name, mask in masks.items()}
    if isinstance(number, int):
        come = select_globally(_on_one_device(scores), number, among=_on_one_device(zeros))
    else:
        come = {n: select_exact(s, number[n], among=zeros[n]) for n, s in scores.items()}
    return {name: mask | come[name].to(mask.device) for name, mask in masks.items()}


def thinned(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor], share: float) -> Masks:
    """Drop a share of each layer's connections, those with the smallest |w|; round(share n) of n.

    Args:
        masks: {name: BoolTensor}, the connections that are there.
        weights: {name: weight}.
        share: from 0 to 1.
    """
    there = counts(masks)
    return {
        name: select_exact(
            magnitude(weights[name]), there[name] - round(share * there[name]), among=mask
        )
        for name, mask in masks.items()
    }


def counts(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Return {name: how many connections there are}."""
    return {name: int(torch.count_nonzero(mask)) for name, mask in masks.items()}


def _on_one_device(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather what is compared on the first of several devices."""
    device = next(iter(tensors.values())).device
    return {name: tensor.to(device) for name, tensor in tensors.items()}
