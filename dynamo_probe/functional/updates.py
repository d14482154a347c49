"""How far weights move: in one update, and since the beginning; and how large they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynamo_probe.functional.gradients import norms, total_norm


def relative_change(after: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Return ||after - before|| / ||before||, all tensors taken as one vector.

    Of the weights around an update this is the relative update size; of the weights now and at the
    beginning it is the distance from initialisation.

    Args:
        after: tensors of any shapes.
        before: as many, of the same shapes.

    Returns:
        A float, not negative; NaN where all of `before` is 0.

    Example:
        >>> relative_change([torch.tensor([3.0, 6.0])], [torch.tensor([3.0, 4.0])])
        0.4
    """
    size = total_norm(float(norm) for norm in norms(before))
    moved = total_norm(float(norm) for norm in change_norms(after, before))
    return moved / size if size else float("nan")


def change_norms(after: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    """Return ||after - before|| of each pair, taken in float32 or better.

    One difference is held at a time: the weights of a large model exist twice already.

    Args:
        after: tensors of any shapes.
        before: as many, of the same shapes and on the same devices.

    Returns:
        One tensor without dimensions for each, on its device.
    """
    return [
        torch.linalg.vector_norm(_wide(new) - _wide(old))
        for new, old in zip(after, before, strict=True)
    ]


def mean_weight_magnitude(weights: Sequence[Tensor]) -> float:
    """Return the mean |w| over all entries of some weights.

    Returns:
        A float; NaN when there are no entries.

    Example:
        >>> mean_weight_magnitude([torch.tensor([1.0, -3.0]), torch.tensor([[5.0]])])
        3.0
    """
    entries = sum(weight.numel() for weight in weights)
    total = sum(float(norm) for norm in norms(weights, 1))
    return total / entries if entries else float("nan")


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
