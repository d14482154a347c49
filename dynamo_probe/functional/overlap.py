"""How far two sets of units are the same set."""

from __future__ import annotations

import torch
from torch import Tensor


def overlap_coefficient(a: Tensor, b: Tensor) -> float:
    """Return the overlap coefficient of two sets of units: |a and b| / min(|a|, |b|).

    It is 1 when one set lies within the other and 0 when they share nothing. Taken of the dormant
    units at two times, it says whether dormancy persists (Sokar et al. 2023).

    Args:
        a: bool mask, True for the units of the first set; any shape, such as `[units]`.
        b: bool mask of the same shape, on the same device.

    Returns:
        A float in [0, 1]; NaN when either set is empty, because then there is nothing to share.

    Raises:
        TypeError: when a mask is not of type bool.
        ValueError: when the shapes differ.

    Example:
        >>> before = torch.tensor([True, True, False])
        >>> overlap_coefficient(before, torch.tensor([True, False, True]))
        0.5
    """
    for mask in (a, b):
        if mask.dtype != torch.bool:
            raise TypeError(
                f"a mask is of type {mask.dtype}; give a bool one, such as scores <= tau"
            )
    if a.shape != b.shape:
        raise ValueError(
            f"the masks have shapes {list(a.shape)} and {list(b.shape)}; give two of the same units"
        )
    shared, first, second = torch.stack([(a & b).sum(), a.sum(), b.sum()]).tolist()
    return shared / min(first, second) if first and second else float("nan")
