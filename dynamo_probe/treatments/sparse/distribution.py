"""How connections are spread over layers: by formula, as given, or wherever the scores are best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from dynamo_probe.anatomy.weights import Weight
from dynamo_probe.functional.densities import (
    check_density,
    erk_densities,
    exact_counts,
    uniform_densities,
)
from dynamo_probe.treatments.sparse.granularity import Granularity

Distribution = str | Mapping[str, float]
"""`uniform`, `erk`, or {pattern of names: density}."""

_FORMULAS = {"uniform": uniform_densities, "erk": erk_densities}


def check_distribution(distribution: Distribution) -> None:
    """Refuse a distribution that there is not.

    Raises:
        TypeError: when it is neither a name nor densities by name.
        ValueError: when it is an unknown name, or a density is out of range.
    """
    if isinstance(distribution, str):
        if distribution not in _FORMULAS:
            raise ValueError(
                f"distribution is {distribution!r}; give 'uniform', 'erk' or {{pattern: density}}"
            )
        return
    if not isinstance(distribution, Mapping):
        raise TypeError(
            f"distribution is {distribution!r}; give 'uniform', 'erk' or {{pattern: density}}"
        )
    if not distribution:
        raise ValueError("distribution is empty; give {pattern of names: density}")
    for pattern, density in distribution.items():
        check_density(density, f"the density of {pattern!r}")


def layer_counts(
    weights: Mapping[str, Weight],
    distribution: Distribution,
    density: float,
    floor: float,
    granularity: Granularity,
) -> dict[str, int]:
    """Return how many connections each weight gets; single ones add up exactly to the budget.

    Args:
        weights: {name: weight}.
        distribution: how they are spread. Given densities are taken as they are: `density` is then
            not looked at.
        density: share of all connections.
        floor: least density of a layer.
        granularity: the pattern that the counts have to allow.

    Raises:
        ValueError: when a weight has no density, a density has no weight, or the budget cannot be
            met.
    """
    shapes = {name: weight.shape for name, weight in weights.items()}
    if isinstance(distribution, str):
        densities = _FORMULAS[distribution](shapes, density)
        total = round(density * sum(weight.parameter.numel() for weight in weights.values()))
    else:
        _check_patterns(weights, distribution)
        densities, total = {name: _given(name, distribution) for name in weights}, None
    counts = exact_counts(shapes, densities, total=total, floor=floor)
    return {name: granularity.count(weights[name], count) for name, count in counts.items()}


def _given(name: str, densities: Mapping[str, float]) -> float:
    for pattern, density in densities.items():
        if _names(pattern, name):
            return density
    raise ValueError(
        f"distribution= has no density for {name!r}; add a pattern such as '*': 1.0, or leave it "
        "whole with exclude="
    )


def _check_patterns(weights: Iterable[str], densities: Mapping[str, float]) -> None:
    for pattern in densities:
        if not any(_names(pattern, name) for name in weights):
            raise ValueError(
                f"the pattern {pattern!r} of distribution= names none of the weights that are "
                f"masked ({', '.join(weights)}): correct it or leave it out"
            )


def _names(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)
