"""The distribution a layer's weights are drawn from: told from the weights, or from the layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Family = Literal["uniform", "normal", "truncated normal", "constant"]

_CUT = 2.0
"""A truncated normal distribution is cut at two standard deviations of the normal (as in JAX)."""
_WITHIN = math.erf(_CUT / math.sqrt(2))
_CUT_STD = math.sqrt(1 - 2 * _CUT * math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi) / _WITHIN)
_ENOUGH_TO_SEE_A_CUT = 256


@dataclass(frozen=True, slots=True)
class Initial:
    """A distribution of weights, symmetric about zero unless it is constant.

    Attributes:
        family: `uniform`, `normal`, `truncated normal` (cut at two standard deviations of the
            normal) or `constant`.
        scale: the bound of a uniform distribution, the value of a constant one, the standard
            deviation of what is drawn otherwise.
    """

    family: Family
    scale: float


def record_initial(weight: Tensor) -> Initial:
    """Tell from a freshly initialised weight the distribution it was drawn from.

    The family is the one under which the values are most likely, each with its best scale. A
    uniform bound is estimated as max|w| (n + 1) / n, which is right on average. With n in the
    thousands the family is certain and the scale good to 1/n (uniform) or 1/sqrt(2 n). Small
    weights say less: below some 30 values a normal sample often passes for a uniform one, which is
    also torch's own default, and the scale is good to tens of per cent. A truncated normal is only
    considered from 256 values on. Orthogonal weights are recorded as normal with their own standard
    deviation.

    Args:
        weight: any shape, at least one value, all finite.

    Returns:
        The family and scale; the scale of equal values is the value itself.

    Raises:
        ValueError: when there are no values, or some are not finite.
    """
    values = weight.detach().to(device="cpu", dtype=torch.float64).flatten()
    n = values.numel()
    if n == 0 or not bool(values.isfinite().all()):
        raise ValueError(
            "the weight is empty or holds NaN or infinite values; record its distribution from "
            "freshly initialised weights"
        )
    if bool((values == values[0]).all()):
        return Initial("constant", float(values[0]))
    largest = float(values.abs().max())
    std = float(values.square().mean().sqrt())
    likelihood: dict[Family, float] = {
        "uniform": -n * math.log(2 * largest),
        "normal": -n / 2 * (math.log(2 * math.pi * std**2) + 1),
    }
    if n >= _ENOUGH_TO_SEE_A_CUT:
        likelihood["truncated normal"] = _truncated_likelihood(n, std, largest)
    family = max(likelihood, key=lambda one: likelihood[one])
    return Initial(family, largest * (n + 1) / n if family == "uniform" else std)


def saved_initials(initials: Mapping[str, Initial]) -> dict[str, tuple[str, float]]:
    """Return distributions as plain values, for a checkpoint."""
    return {name: (one.family, one.scale) for name, one in initials.items()}


def loaded_initials(saved: Mapping[str, Any]) -> dict[str, Initial]:
    """Take back what `saved_initials` gave."""
    return {name: Initial(*one) for name, one in saved.items()}


def default_initial(module: nn.Module) -> Initial:
    """Return the distribution that a layer's own `reset_parameters` draws its weight from.

    `nn.Linear` and the convolutions draw from U(-b, b) with b = 1 / sqrt(fan_in), as
    `kaiming_uniform_` with a = sqrt(5) has the gain sqrt(1/3) and the bound sqrt(3 / fan_in) gain.

    Args:
        module: a layer with a weight of two or more dimensions.

    Raises:
        ValueError: when it has no such weight.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise ValueError(
            f"a {type(module).__name__} has no weight with a fan-in; give its distribution as an "
            "Initial"
        )
    return default_initial_of(weight)


def default_initial_of(weight: Tensor) -> Initial:
    """Return the distribution of `default_initial` for the weight alone: [out, in, ...]."""
    fan_in, _ = fans(weight)
    return Initial("uniform", 1 / math.sqrt(fan_in) if fan_in else 0.0)


def xavier_uniform_initial(weight: Tensor) -> Initial:
    """Return U(-b, b) with b = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16).

    This is what the ReDo reference draws, whatever the layer was initialised with.

    Args:
        weight: [out, in, ...], as in `nn.Linear` and the convolutions.
    """
    return Initial("uniform", math.sqrt(6 / max(1, sum(fans(weight)))))


def fans(weight: Tensor) -> tuple[int, int]:
    """Return how many values a unit reads and how many read a value: [out, in, ...] -> fans."""
    receptive_field = weight.shape[2:].numel()
    return weight.shape[1] * receptive_field, weight.shape[0] * receptive_field


def draw(
    initial: Initial,
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw weights.

    The numbers are drawn where the generator lives and moved, so that a CPU generator gives the
    same weights on every device.

    Args:
        initial: the distribution.
        shape: shape of the result.
        generator: source of randomness; None for torch's default one of the device.
        dtype: type of the result. Half-precision values are drawn in float32 and rounded.
        device: device of the result.

    Returns:
        Tensor of the given shape, type and device.
    """
    exact = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    source = device if generator is None else generator.device
    values = torch.empty(tuple(shape), dtype=exact, device=source)
    if initial.family == "constant":
        values.fill_(initial.scale)
    elif initial.family == "uniform":
        values.uniform_(-initial.scale, initial.scale, generator=generator)
    elif initial.family == "normal":
        values.normal_(0.0, initial.scale, generator=generator)
    else:
        # By the inverse of the distribution function: erfinv(u) sqrt(2) for u in +-P(|x| < cut).
        values.uniform_(-_WITHIN, _WITHIN, generator=generator)
        values.erfinv_().mul_(math.sqrt(2) * initial.scale / _CUT_STD)
        values.clamp_(-_CUT * initial.scale / _CUT_STD, _CUT * initial.scale / _CUT_STD)
    return values.to(device=device, dtype=dtype)


def _truncated_likelihood(n: int, std: float, largest: float) -> float:
    """Return the log-likelihood of the best normal cut at two standard deviations."""
    # Highest at the sample's own deviation, but the largest value has to lie within the cut.
    sigma = max(largest / _CUT, std)
    return -n * (math.log(sigma * math.sqrt(2 * math.pi) * _WITHIN) + (std / sigma) ** 2 / 2)
