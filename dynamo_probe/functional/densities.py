"""How many weights each layer keeps: uniform and Erdős-Rényi-kernel densities, exact counts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]


def uniform_densities(
    shapes: Shapes, density: float, *, dense: Collection[str] = ()
) -> dict[str, float]:
    """Give every layer the same density, but for those that stay dense.

    Args:
        shapes: {weight's name: its shape}.
        density: share of all weights that are kept, in (0, 1].
        dense: weights that are kept whole; the others make up for them.

    Returns:
        {name: density}; the sum of density x size is `density` x the sum of sizes.

    Raises:
        ValueError: when a density is out of range, a weight is empty, or the dense weights alone
            are more than the budget.

    Example:
        >>> uniform_densities({"a": (4, 8), "b": (8, 2)}, 0.25)
        {'a': 0.25, 'b': 0.25}
    """
    return _scaled(shapes, density, dense, {name: 1.0 for name in shapes})


def erk_densities(
    shapes: Shapes, density: float, *, dense: Collection[str] = ()
) -> dict[str, float]:
    """Give layers the Erdős-Rényi-kernel densities (Evci et al. 2020, *Rigging the Lottery*).

    A layer's density is eps p with p = sum(shape) / prod(shape); for a convolution that is
    (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w). eps is such that the weights kept are
    `density` of all. While a density would exceed 1, the layers with the largest p are made dense
    and eps is found again.

    Args:
        shapes: {weight's name: its shape}.
        density: share of all weights that are kept, in (0, 1].
        dense: weights that are kept whole from the beginning.

    Returns:
        {name: density}; the sum of density x size is `density` x the sum of sizes.

    Raises:
        ValueError: as for `uniform_densities`.

    Example:
        >>> erk_densities({"wide": (100, 100), "narrow": (100, 10)}, 0.1)["wide"]
        0.07096774193548387
    """
    return _scaled(
        shapes,
        density,
        dense,
        {name: sum(shape) / math.prod(shape) for name, shape in _full(shapes)},
    )


def exact_counts(
    shapes: Shapes, densities: Mapping[str, float], *, total: int | None = None, floor: float = 0.0
) -> dict[str, int]:
    """Turn densities into whole numbers of weights that add up to the budget, to the weight.

    Shares are rounded down; what is missing goes to the largest remainders, ties in the order of
    `shapes`. No layer gets less than one weight, nor less than `floor` of it. Where that takes more
    than the budget has, or where `total` is not what the densities come to, the densities of all
    other layers are scaled alike, up to 1.

    Args:
        shapes: {weight's name: its shape}.
        densities: {name: density}, each in [0, 1].
        total: how many weights in all; None takes the rounded sum of density x size.
        floor: the least density of a layer, in [0, 1].

    Returns:
        {name: count}.

    Raises:
        ValueError: when a density is missing or out of range, the floors alone exceed the total,
            or the total exceeds all there is.

    Example:
        >>> exact_counts({"a": (3,), "b": (3,)}, {"a": 0.5, "b": 0.5}, total=3)
        {'a': 2, 'b': 1}
    """
    sizes = {name: math.prod(shape) for name, shape in _full(shapes)}
    least = least_counts(shapes, floor)
    wanted = {name: _listed(name, densities) * size for name, size in sizes.items()}
    if total is None:
        total = round(math.fsum(wanted.values()))
    check_total(total, least, sizes)
    shares = _scaled_shares(wanted, least, sizes, total)
    counts = {name: math.floor(share + 1e-9) for name, share in shares.items()}
    order = sorted(sizes, key=lambda name: counts[name] - shares[name])
    while (missing := total - sum(counts.values())) > 0:
        room = [name for name in order if counts[name] < sizes[name]]
        each = max(1, missing // (4 * len(room)))
        for name in room[:missing]:
            counts[name] += min(each, sizes[name] - counts[name])
    return counts


def least_counts(shapes: Shapes, floor: float) -> dict[str, int]:
    """Return the least number of weights of each layer: `floor` of it, and 1 at least."""
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}; give a density from 0 to 1")
    return {name: max(1, math.ceil(floor * math.prod(s) - 1e-9)) for name, s in _full(shapes)}


def check_total(total: int, least: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Refuse a number of weights that the layers cannot hold.

    Raises:
        ValueError: the message says what to change.
    """
    if sum(least.values()) > total:
        raise ValueError(
            f"{total} weights are to stay, but {len(least)} layers need at least "
            f"{sum(least.values())} (no layer is emptied): raise the density or lower the floor"
        )
    if total > sum(sizes.values()):
        raise ValueError(
            f"{total} weights are to stay, and there are {sum(sizes.values())}: lower the total"
        )


def check_density(density: float, what: str = "density") -> None:
    """Refuse a density out of range.

    Raises:
        ValueError: when it is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(
            f"{what} is {density}; give the share of weights that stay, above 0 and at most 1 "
            "(1 is dense; a density is 1 - sparsity)"
        )


def _scaled(
    shapes: Shapes, density: float, dense: Collection[str], weight_of: Mapping[str, float]
) -> dict[str, float]:
    """Return min(1, eps p) with the eps that meets the budget."""
    check_density(density)
    sizes = {name: math.prod(shape) for name, shape in _full(shapes)}
    unknown = [name for name in dense if name not in sizes]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is to stay dense and is not among {list(sizes)}")
    whole = set(dense)
    budget = density * sum(sizes.values())
    while True:
        left = budget - sum(sizes[name] for name in whole)
        free = [name for name in sizes if name not in whole]
        if left < -1e-9 * budget or (free and left <= 0):
            raise ValueError(
                f"the layers that stay dense have more weights than a density of {density} "
                "leaves: name fewer of them or raise the density"
            )
        if not free:
            return dict.fromkeys(sizes, 1.0)
        scale = left / sum(weight_of[name] * sizes[name] for name in free)
        largest = max(weight_of[name] for name in free)
        if scale * largest <= 1 + 1e-12:
            return {n: 1.0 if n in whole else min(1.0, scale * weight_of[n]) for n in sizes}
        whole |= {name for name in free if weight_of[name] == largest}


def _listed(name: str, densities: Mapping[str, float]) -> float:
    """Return the density of a weight, at most 1; refuse what is none."""
    if name not in densities:
        raise ValueError(f"{name!r} has no density; give one for each of the weights")
    if not 0 <= densities[name] <= 1 + 1e-9:
        raise ValueError(f"the density of {name!r} is {densities[name]}; give a share from 0 to 1")
    return min(densities[name], 1.0)


def _scaled_shares(
    wanted: Mapping[str, float], least: Mapping[str, int], sizes: Mapping[str, int], total: int
) -> dict[str, float]:
    """Return c x what is wanted, between the least and the size, with the c that gives the total.

    c is rounded so that the shares do not exceed the total; it is 1 where what is wanted will do.
    """

    def shares(scale: float) -> dict[str, float]:
        return {n: min(max(scale * w, least[n]), sizes[n]) for n, w in wanted.items()}

    excess = math.fsum(shares(1.0).values()) - total
    if abs(excess) <= 0.5:  # what rounding the total comes to
        return shares(1.0)
    low, high = 0.0, 1.0
    if excess < 0:
        low, high = 1.0, max((sizes[n] / w for n, w in wanted.items() if w > 0), default=1.0)
    while low < (middle := (low + high) / 2) < high:
        if math.fsum(shares(middle).values()) <= total:
            low = middle
        else:
            high = middle
    return shares(low)


def _full(shapes: Shapes) -> list[tuple[str, Sequence[int]]]:
    if not shapes:
        raise ValueError("no weights were given; give {name: shape}")
    for name, shape in shapes.items():
        if not len(shape) or math.prod(shape) < 1:
            raise ValueError(f"{name!r} has shape {tuple(shape)}: it holds no weights")
    return list(shapes.items())
