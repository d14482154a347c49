"""What is kept of each unit: statistics that add up over batches and ranks, O(units) in size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

UNBOUNDED = (float("-inf"), float("inf"))


@dataclass(frozen=True, slots=True)
class Statistic:
    """A figure per unit that several batches, and several ranks, combine into one.

    Attributes:
        name: what it is called where it is read.
        reduce: how two of them combine, `sum` or `max`.
        compute: (activations, unit axis, bounds of the activation function) -> Tensor[units].
    """

    name: str
    reduce: Literal["sum", "max"]
    compute: Callable[[Tensor, int, tuple[float, float]], Tensor]


def sum_over_samples(h: Tensor, axis: int) -> Tensor:
    """Sum over everything but the units, in float32 or better: [..., units, ...] -> [units]."""
    dtype = torch.float32 if h.dtype in (torch.float16, torch.bfloat16) else None
    if axis == -1:
        return h.reshape(-1, h.shape[-1]).sum(0, dtype=dtype)
    positions = h.shape[axis + 1 :].numel()
    if h.is_contiguous():
        # Twice as fast on a CPU as one sum over all axes: the inner sum runs along memory.
        return h.view(-1, h.shape[axis], positions).sum(2, dtype=dtype).sum(0)
    return h.sum([d for d in range(h.dim()) if d != h.dim() + axis], dtype=dtype)


def _largest(h: Tensor, axis: int) -> Tensor:
    return h.amax([d for d in range(h.dim()) if d != h.dim() + axis])


def _magnitude(h: Tensor, axis: int, bounds: tuple[float, float]) -> Tensor:
    return sum_over_samples(h if bounds[0] >= 0 else h.abs(), axis)


def _saturated(h: Tensor, axis: int, bounds: tuple[float, float]) -> Tensor:
    return sum_over_samples(near_bounds(h, bounds).to(torch.float32), axis)


def near_bounds(h: Tensor, bounds: tuple[float, float], margin: float = 0.01) -> Tensor:
    """Say which activations lie within `margin` of the range from a bound of their function.

    Args:
        h: activations, any shape.
        bounds: lowest and highest value of the activation function, such as (-1, 1) for tanh. A
            function with an infinite bound has no range to saturate in: nothing is near.
        margin: share of the range that counts as near.

    Returns:
        Booleans of the shape of `h`.
    """
    low, high = bounds
    width = (high - low) * margin
    if width == float("inf"):
        return torch.zeros_like(h, dtype=torch.bool)
    return (h < low + width) | (h > high - width)


MAGNITUDE = Statistic("magnitude", "sum", _magnitude)
"""Sum of |h|. Where the function is not negative (ReLU) the absolute value is left out."""
SATURATED = Statistic("saturated", "sum", _saturated)
"""Number of samples within 1 % of the range from a bound of the activation function."""
HIGHEST = Statistic("highest", "max", lambda h, axis, bounds: _largest(h, axis))
"""Largest h."""
LOWEST = Statistic("lowest", "max", lambda h, axis, bounds: _largest(-h, axis))
"""Largest -h."""


@dataclass(frozen=True, slots=True)
class UnitSums:
    """Statistics of one layer's units over some samples.

    Attributes:
        values: {statistic: float64 Tensor[units]}, on the CPU.
        samples: how many samples went in: rows, times positions for a convolution or a sequence.
        bounds: limits of the layer's activation function.
        replicas: independent networks that are stacked in the layer; the units of the first come
            first, and `samples` are those of each.
    """

    values: dict[str, Tensor]
    samples: int
    bounds: tuple[float, float] = UNBOUNDED
    replicas: int = 1

    def mean_magnitude(self) -> Tensor:
        """Return E|h| of each unit: float64 Tensor[units]."""
        return self.values["magnitude"] / self.samples
