"""Repeated data in exact counts: the experiment of Hernandez et al. 2022 around any dataset."""

from __future__ import annotations

import math
from collections.abc import Sized
from fractions import Fraction
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dynamo_probe.data.order import SampleOrder

Sample = TypeVar("Sample", covariant=True)


class RepeatedMixture(SampleOrder[Sample]):
    """A share of the training samples are repeats of a small random pool, the rest comes once.

    The design of Hernandez et al. 2022, section 1.1: of `pool * repeats / fraction` positions, in
    random order, a share `fraction` belongs to `pool` samples that come `repeats` times each. All
    other positions have samples of their own. Nothing is approximate: where the counts do not come
    out even, that is an error.

    It is a dataset (read in order, so do not shuffle), and `sampler()` walks the same order on a
    loader of the underlying dataset: sharded over ranks, and resumable.

    Args:
        dataset: a dataset with `len(dataset)` and `dataset[index]`.
        fraction: share of the positions that are repeats, above 0, up to 1; a `Fraction` is exact.
        pool: how many samples are repeated.
        repeats: how often each of them comes, at least 2.
        seed: of the choice of samples and of their order.

    Attributes:
        order: indices into the dataset, `[positions]`, int64.
        repeated: which positions are repeats, `[positions]`, bool.
        pool_indices: the samples that are repeated, `[pool]`.
        fresh_indices: the samples that come once, `[positions - pool * repeats]`.

    Raises:
        TypeError: when the dataset has no length.
        ValueError: when a number is out of range, the counts do not come out even, or the dataset
            is too small.

    Example:
        >>> mixture = RepeatedMixture(range(1000), fraction=0.9, pool=3, repeats=30, seed=0)
        >>> len(mixture), int(mixture.repeated.sum()), len(mixture.fresh_indices)
        (100, 90, 10)
        >>> len(mixture.unrepeated()), len(mixture.unique_only())
        (100, 10)
    """

    def __init__(
        self, dataset: Dataset[Sample], fraction: float, pool: int, repeats: int, seed: int = 0
    ) -> None:
        """Choose the samples and their order."""
        exact = _exact(fraction)
        _check(exact, pool, repeats)
        size = _size(dataset)
        total = int(pool * repeats / exact)
        fresh = total - pool * repeats
        if size < pool + fresh:
            raise ValueError(
                f"a pool of {pool} and {fresh} samples that come once need {pool + fresh} samples, "
                f"but the dataset has {size}; lower pool or repeats, or raise the fraction"
            )
        generator = torch.Generator().manual_seed(seed)
        self._shuffled = torch.randperm(size, generator=generator)
        self.pool_indices = self._shuffled[:pool]
        self.fresh_indices = self._shuffled[pool : pool + fresh]
        deck = torch.cat([self.pool_indices.repeat(repeats), self.fresh_indices])
        deal = torch.randperm(total, generator=generator)
        self._numbers = {
            "fraction": str(exact), "pool": pool, "repeats": repeats, "seed": seed, "size": size,
        }  # fmt: skip
        origin = {"variant": "repeated", **self._numbers}
        super().__init__(dataset, deck[deal], deal < pool * repeats, origin)

    def unrepeated(self) -> SampleOrder[Sample]:
        """Return the baseline: as many positions, each with a sample of its own.

        Raises:
            ValueError: when the dataset has fewer samples than that.
        """
        if len(self._shuffled) < len(self):
            raise ValueError(
                f"{len(self)} samples without a repeat need as many in the dataset, which has "
                f"{len(self._shuffled)}; give a larger dataset, or lower pool or repeats"
            )
        return self._variant("unrepeated", self._shuffled[: len(self)])

    def unique_only(self) -> SampleOrder[Sample]:
        """Return the control for fewer fresh samples: the mixture with its repeats left out.

        What the mixture does worse than this is harm by the repeats; what the baseline does better
        than this is what the samples would have been worth that the repeats displace.

        Raises:
            ValueError: when every position is a repeat.
        """
        if len(self.fresh_indices) == 0:
            raise ValueError("with fraction=1 nothing but repeats is there; lower the fraction")
        return self._variant("unique only", self.order[~self.repeated])

    def _variant(self, name: str, order: Tensor) -> SampleOrder[Sample]:
        never = torch.zeros(len(order), dtype=torch.bool)
        return SampleOrder(self.dataset, order, never, {"variant": name, **self._numbers})


def _exact(fraction: float) -> Fraction:
    """Return the fraction that is meant: 1/10 for 0.1, which in binary is a little more."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f"the fraction is {fraction}; give one above 0 and up to 1, and use "
            "RepeatedMixture(...).unrepeated() for no repeats"
        )
    if isinstance(fraction, Fraction):
        return fraction
    near = Fraction(fraction).limit_denominator(10**6)
    return near if float(near) == fraction else Fraction(fraction)


def _check(fraction: Fraction, pool: int, repeats: int) -> None:
    """Refuse counts that do not come out even, and name the nearest that do."""
    if pool < 1 or repeats < 2:
        raise ValueError(f"pool={pool}, repeats={repeats}; give at least 1 and 2")
    repeated, part = pool * repeats, fraction.numerator
    if repeated % part == 0:
        return
    total = repeated / fraction
    near = Fraction(repeated, round(total))
    ways = [
        f"repeats={_nearest(repeats, part, pool, 2)}",
        f"pool={_nearest(pool, part, repeats, 1)}",
        f"fraction=Fraction({near.numerator}, {near.denominator})",
    ]
    raise ValueError(
        f"{pool} samples {repeats} times are {repeated} positions, a fraction {float(fraction):g} "
        f"of {float(total):.2f}, which is not a whole number; give {', or '.join(ways)}"
    )


def _nearest(value: int, part: int, other: int, least: int) -> int:
    """Return the number nearest to a value whose product with another is a multiple of a part."""
    step = part // math.gcd(part, other)
    least = -(-least // step) * step
    return max(least, round(value / step) * step)


def _size(dataset: Dataset[Sample]) -> int:
    if not isinstance(dataset, Sized):
        raise TypeError(
            f"{type(dataset).__name__} has no len(); give a map-style dataset, such as a list of "
            "samples or a Dataset with __len__ and __getitem__"
        )
    return len(cast(Sized, dataset))
