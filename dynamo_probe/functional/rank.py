"""How many directions a layer's features use: the rank family, from one eigen-solve.

The names are kept apart here because they are mixed up in circulation: what is published as
"stable rank" is often `srank`, and sometimes the participation ratio.

All four are functions of the singular values of the features, and none changes when the features
are scaled or rotated. They lie between 1 and min(samples, units), so a full rank shows only with at
least as many samples as units. Features that are all zero have rank 0: no direction carries
anything.

Precision: the singular values are square roots of the eigenvalues of the smaller Gram matrix, in
float64. Rounding shifts every eigenvalue by some max(samples, units) * 2.2e-16 of the largest one.
An eigenvalue below 4 times that is taken for noise and becomes exactly 0, so a direction counts
when its singular value is above about 3e-8 * sqrt(max(samples, units)) of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True)
class RankSummary:
    """The rank family of one layer's features.

    Attributes:
        effective_rank: exp of the entropy of the normalised singular values.
        stable_rank: squared Frobenius norm over squared spectral norm.
        srank: number of leading singular values that make up 1 - delta of their sum.
        participation_ratio: squared sum of the eigenvalues over the sum of their squares.
        delta: what srank leaves out.
        samples: rows of the features.
        units: columns of the features.
    """

    effective_rank: float
    stable_rank: float
    srank: float
    participation_ratio: float
    delta: float
    samples: int
    units: int


def spectrum(features: Tensor, *, center: bool = False) -> Tensor:
    """Return the singular values of the features, from one eigen-solve of the smaller Gram matrix.

    Args:
        features: Tensor[samples, units] of any real type.
        center: subtract each unit's mean over the samples first.

    Returns:
        Tensor[min(samples, units)], float64, descending, on the features' device (on the CPU where
        the device has no float64). Values below the noise of the solve are exactly 0; the module's
        text says where that is.

    Raises:
        TypeError: when the features are complex.
        ValueError: when the features are not `[samples, units]`, are empty, or are not finite.

    Example:
        >>> spectrum(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    relative, largest = _solve(features, center)
    return relative * largest


def rank_summary(features: Tensor, *, delta: float = 0.01, center: bool = False) -> RankSummary:
    """Return the whole rank family of the features, from one eigen-solve.

    Args:
        features: Tensor[samples, units] of any real type.
        delta: see `srank`.
        center: subtract each unit's mean over the samples first.

    Returns:
        The figures with the counts of samples and units. All are 0.0 where the features are zero.

    Raises:
        TypeError: when the features are complex.
        ValueError: when the features are not `[samples, units]`, are empty, or are not finite, or
            delta is not in [0, 1).
    """
    _check_delta(delta)
    relative = _solve(features, center)[0].cpu()
    return RankSummary(
        effective_rank=_effective_rank(relative),
        stable_rank=_stable_rank(relative),
        srank=_srank(relative, delta),
        participation_ratio=_participation_ratio(relative),
        delta=delta,
        samples=features.shape[0],
        units=features.shape[1],
    )


def effective_rank(features: Tensor) -> float:
    """Return exp(H(p)), H the entropy of p = sigma / sum(sigma) (Roy & Vetterli 2007).

    Args:
        features: Tensor[samples, units] of any real type.

    Returns:
        A float between 1 and min(samples, units); 0.0 where the features are zero.

    Raises:
        TypeError: when the features are complex.
        ValueError: when the features are not `[samples, units]`, are empty, or are not finite.

    Example:
        >>> round(effective_rank(torch.eye(4)), 6)
        4.0
    """
    return _effective_rank(_solve(features)[0].cpu())


def stable_rank(features: Tensor) -> float:
    """Return ||A||_F^2 / ||A||_2^2, which is sum(sigma^2) / max(sigma)^2.

    Source: Rudelson & Vershynin 2007, who call it the numerical rank. It is not `srank`, which some
    packages publish under this name.

    Args:
        features: Tensor[samples, units] of any real type.

    Returns:
        A float between 1 and min(samples, units); 0.0 where the features are zero.

    Raises:
        TypeError: when the features are complex.
        ValueError: when the features are not `[samples, units]`, are empty, or are not finite.

    Example:
        >>> stable_rank(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        1.25
    """
    return _stable_rank(_solve(features)[0].cpu())


def srank(features: Tensor, delta: float = 0.01, squared: bool = False) -> float:
    """Return the smallest k whose leading singular values make up 1 - delta of the sum of all.

    Source: Kumar et al. 2021, with delta = 0.01.

    Args:
        features: Tensor[samples, units] of any real type.
        delta: the share of the sum to leave out, in [0, 1). A sum that reaches the share up to
            rounding has reached it, so that equal singular values count the same everywhere.
        squared: take shares of sigma^2, the variance explained, instead of sigma.

    Returns:
        A whole number as a float, between 1 and min(samples, units); 0.0 where the features are
        zero.

    Raises:
        TypeError: when the features are complex.
        ValueError: when the features are not `[samples, units]`, are empty, or are not finite, or
            delta is not in [0, 1).

    Example:
        >>> srank(torch.diag(torch.tensor([98.0, 1.0, 1.0])))
        2.0
    """
    _check_delta(delta)
    return _srank(_solve(features)[0].cpu(), delta, squared)


def participation_ratio(features: Tensor) -> float:
    """Return (sum lambda)^2 / sum(lambda^2) with lambda = sigma^2 (Gao et al. 2017).

    Args:
        features: Tensor[samples, units] of any real type. The source takes lambda of the covariance
            matrix, so it centres the features; here they are taken as they are, like in the other
            figures. `rank_summary(features, center=True)` centres.

    Returns:
        A float between 1 and min(samples, units); 0.0 where the features are zero.

    Raises:
        TypeError: when the features are complex.
        ValueError: when the features are not `[samples, units]`, are empty, or are not finite.

    Example:
        >>> round(participation_ratio(torch.diag(torch.tensor([3.0, 1.0]))), 6)  # 10^2 / 82
        1.219512
    """
    return _participation_ratio(_solve(features)[0].cpu())


def _solve(features: Tensor, center: bool = False) -> tuple[Tensor, Tensor]:
    """Return the singular values relative to the largest, descending, and the largest."""
    _check(features)
    matrix = features.detach()
    if matrix.device.type == "mps":
        matrix = matrix.cpu()
    matrix, scale = _near_one(matrix.double())
    if center:
        # Differences to the first row first: identical rows then give exactly 0, never rounding.
        matrix = matrix - matrix[0]
        matrix, rescale = _near_one(matrix - matrix.mean(dim=0))
        scale *= rescale
    samples, units = matrix.shape
    gram = matrix.T @ matrix if units <= samples else matrix @ matrix.T
    eigenvalues = torch.linalg.eigvalsh(gram).flip(0)
    noise = eigenvalues[0] * 4 * max(samples, units) * _EPSILON
    eigenvalues = torch.where(eigenvalues > noise, eigenvalues, 0.0)
    largest = eigenvalues[0]
    relative = eigenvalues / largest if largest > 0 else eigenvalues
    return relative.sqrt(), largest.sqrt() * scale


def _near_one(matrix: Tensor) -> tuple[Tensor, float]:
    """Divide by a power of two, which is exact, so that squares stay in the range of float64."""
    exponent = int(torch.frexp(matrix.abs().max()).exponent)
    scale = 2.0 ** max(-1000, min(exponent, 1000))
    return matrix / scale, scale


def _effective_rank(relative: Tensor) -> float:
    if relative[0] == 0:
        return 0.0
    return torch.special.entr(relative / relative.sum()).sum().exp().item()


def _stable_rank(relative: Tensor) -> float:
    return relative.square().sum().item()


def _srank(relative: Tensor, delta: float, squared: bool = False) -> float:
    if relative[0] == 0:
        return 0.0
    shares = (relative.square() if squared else relative).cumsum(0)
    rounding = len(relative) * _EPSILON
    reached = shares >= shares[-1] * (1.0 - delta - rounding)
    return float(reached.int().argmax().item() + 1)


def _participation_ratio(relative: Tensor) -> float:
    if relative[0] == 0:
        return 0.0
    eigenvalues = relative.square()
    return (eigenvalues.sum().square() / eigenvalues.square().sum()).item()


def _check(features: Tensor) -> None:
    if features.ndim != 2:
        raise ValueError(
            f"the features have shape {list(features.shape)}; give [samples, units]. For a "
            'convolution: einops.rearrange(features, "sample unit h w -> (sample h w) unit")'
        )
    if features.numel() == 0:
        raise ValueError(
            f"the features have shape {list(features.shape)}; give at least one sample and one unit"
        )
    if features.is_complex():
        raise TypeError(f"the features are of type {features.dtype}; give real features")
    finite = features.isfinite()
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {features.numel()} features are NaN or infinite; find the "
            "layer that makes them, or leave those samples out"
        )


def _check_delta(delta: float) -> None:
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"delta is {delta}; give a number from 0 up to, not including, 1 (0.01)")
