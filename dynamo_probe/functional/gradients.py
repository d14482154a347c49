"""Gradients: their norms, their zeros, and the two definitions of GraMa (Liu et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from dynamo_probe.functional.dormancy import normalised_scores

# A million squares that vanish, of 1e-38 each, are 1e-4 of the square of this.
_VANISHING = 1e-14


def norms(tensors: Sequence[Tensor], order: Literal[1, 2] = 2) -> list[Tensor]:
    """Return a norm of each tensor, summed in float32 or better.

    In float32 squares vanish below 1e-19 or so and overflow above 1e19. On the CPU a norm that may
    have lost by that is taken again in float64; elsewhere that would cost a wait for the device.

    Args:
        tensors: any shapes, types and devices; sparse ones are summed over what they hold.
        order: 2 for the L2 norm, 1 for the sum of absolute values.

    Returns:
        One tensor without dimensions for each, on its device.
    """
    dense = [_values(tensor) for tensor in tensors]
    found: list[Tensor] = [torch.empty(0)] * len(dense)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(dense):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    for (_, dtype), indices in groups.items():
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
        part = [dense[index] for index in indices]
        summed = torch._foreach_norm(part, order, wide)  # pyright: ignore[reportPrivateImportUsage]
        for index, norm in zip(indices, summed, strict=True):
            if order == 2 and norm.is_cpu and norm.dtype == torch.float32 and _lossy(norm.item()):
                norm = torch.linalg.vector_norm(dense[index], dtype=torch.float64)
            found[index] = norm
    return found


def _lossy(norm: float) -> bool:
    """Whether squares in float32 may have vanished beside it, or have overflowed."""
    return norm < _VANISHING or norm == math.inf


def total_norm(parts: Iterable[float]) -> float:
    """Return the L2 norm of tensors taken as one vector, from the norm of each of them.

    Example:
        >>> total_norm([3.0, 4.0])
        5.0
    """
    # hypot does not overflow where the squares would.
    return math.hypot(*parts)


def count_zeros(gradient: Tensor) -> Tensor:
    """Count the entries that are exactly 0: an int64 tensor without dimensions.

    Entries that a sparse gradient leaves out are 0.
    """
    values = _values(gradient)
    return gradient.numel() - torch.count_nonzero(values)


def grama_activation_scores(gradients: Tensor) -> Tensor:
    """Score units by the gradient that reaches them: GraMa by activation gradients.

    s_i = E|dL/dz_i| / ((1/H) sum_k E|dL/dz_k|), where E is the mean over samples (Liu et al. 2025,
    *Measure gradients, not activations!*). z is the unit's value before the activation function:
    a ReLU unit that never fires gets no gradient there, while dL/dh does not show it.

    Args:
        gradients: dL/dz, [samples, units].

    Returns:
        Tensor[units]: mean 1; 0 everywhere where no gradient comes, NaN where it is not finite.

    Example:
        >>> grama_activation_scores(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor([2., 0.])
    """
    return normalised_scores(gradients.abs().mean(0))


def grama_weight_scores(gradient: Tensor, unit_dim: int = 0) -> Tensor:
    """Score units by the gradient of their incoming weights: GraMa by weight gradients.

    s_i = mean|dL/dW_i| / ((1/H) sum_k mean|dL/dW_k|), over the weights that lead into the unit, of
    the gradient of the whole batch. This is what public code computes under the same name. It is
    another number than `grama_activation_scores`: samples with gradients of opposite sign cancel.

    Args:
        gradient: dL/dW, as in `weight.grad`.
        unit_dim: the dimension that counts the units that the layer makes: 0 for linear layers and
            convolutions, 1 for transposed convolutions.

    Returns:
        Tensor[units]: mean 1; 0 everywhere where no gradient comes, NaN where it is not finite.
    """
    return normalised_scores(mean_by_unit(gradient, unit_dim))


def mean_by_unit(gradient: Tensor, unit_dim: int = 0) -> Tensor:
    """Return the mean absolute gradient of each unit's incoming weights: Tensor[units].

    Args:
        gradient: dL/dW.
        unit_dim: the dimension that counts units.
    """
    rows = gradient.movedim(unit_dim, 0).flatten(1).abs()
    half = rows.dtype in (torch.float16, torch.bfloat16)
    return rows.mean(1, dtype=torch.float32 if half else None)


def _values(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor
