"""Saturated units: near a bound of their activation function, or where no gradient comes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SaturationShares:
    """How much of each unit's time is spent near a bound of its activation function.

    Attributes:
        low, high: share of the samples near the lower and the upper bound, float64 Tensor[units];
            NaN for a unit with activations that are not finite.
    """

    low: Tensor
    high: Tensor

    def units(self, share: float = 0.99) -> Tensor:
        """Say which units are near one bound or the other on more than a share of the samples."""
        return self.low + self.high > share


def saturation(
    activations: Tensor, bounds: tuple[float, float] = (-1.0, 1.0), margin: float = 0.01
) -> SaturationShares:
    """Return the share of samples that each unit spends near each bound.

    Args:
        activations: after the activation function, [samples, units].
        bounds: lowest and highest value of the function: (-1, 1) for tanh, (0, 1) for sigmoid.
        margin: share of the range that counts as near.

    Raises:
        ValueError: when a bound is infinite: such a function has no range to saturate in.

    Example:
        >>> saturation(torch.tensor([[1.0, 0.0], [-1.0, 0.2]])).high
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    check_bounded(bounds)
    low, high = near_low(activations, bounds, margin), near_high(activations, bounds, margin)
    return SaturationShares(low.double().mean(0), high.double().mean(0))


def near_low(h: Tensor, bounds: tuple[float, float], margin: float = 0.01) -> Tensor:
    """Return 1 where an activation lies near the lower bound, 0 elsewhere, NaN where it is NaN."""
    low, high = bounds
    # h * 0 carries a NaN over; h is bounded.
    return (h < low + (high - low) * margin).to(torch.float32) + h * 0


def near_high(h: Tensor, bounds: tuple[float, float], margin: float = 0.01) -> Tensor:
    """Return 1 where an activation lies near the upper bound, 0 elsewhere, NaN where it is NaN."""
    low, high = bounds
    return (h > high - (high - low) * margin).to(torch.float32) + h * 0


def gradient_saturated_units(
    activations: Tensor, gradients: Tensor, *, threshold: float = 1e-4, share: float = 0.99
) -> Tensor:
    """Say which units get next to no gradient, whatever their activation function.

    A unit is saturated when |dL/dh| / E|h| < threshold on more than a share of the samples. This is
    what the public code github.com/ajoudaki/loss-of-plasticity calls saturated. It is another set
    than the units near a bound, and the threshold is not free of scale: dL/dh of a mean loss is
    inverse to the batch size. Compare only equal batches.

    Args:
        activations: h, [samples, units].
        gradients: dL/dh, [samples, units].
        threshold: of the ratio.
        share: of the samples.

    Returns:
        BoolTensor[units]; a unit that is always 0 and gets a gradient is not saturated in this
        sense.

    Raises:
        ValueError: when the shapes differ.
    """
    if activations.shape != gradients.shape:
        raise ValueError(
            f"activations have shape {list(activations.shape)} and gradients "
            f"{list(gradients.shape)}; give both of the same samples and units"
        )
    magnitude = activations.abs().mean(0).clamp(min=1e-12)
    return (gradients.abs() / magnitude < threshold).double().mean(0) > share


def check_bounded(bounds: tuple[float, float]) -> None:
    """Refuse the bounds of a function that has no range.

    Raises:
        ValueError: when a bound is infinite or they are exchanged.
    """
    low, high = bounds
    if not 0 < high - low < float("inf"):
        raise ValueError(
            f"the bounds are {bounds}; saturation needs a function with two finite bounds, such "
            "as tanh (-1, 1) or sigmoid (0, 1)"
        )
