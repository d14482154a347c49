"""Choose exactly k of many, deterministically: the best scores, ties by index."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_HALF = 1 << 15
_WORTH_COUNTING = 1 << 14
"""From so many values on, counting them by their leading bits pays."""


def select_exact(scores: Tensor, k: int, *, among: Tensor | None = None) -> Tensor:
    """Select the k largest scores, exactly k of them; of equal ones, those that come first.

    The threshold is found by selection, not by sorting: time linear in the number of scores.

    Args:
        scores: any shape; real numbers, infinities allowed.
        k: how many, from 0 to the number of candidates.
        among: BoolTensor of the same shape, the candidates; None takes all.

    Returns:
        BoolTensor of the shape of `scores` with exactly k True.

    Raises:
        ValueError: when k is out of range, a candidate is NaN, or the shapes differ.

    Example:
        >>> select_exact(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2)
        tensor([False,  True,  True, False])
    """
    if among is not None and among.shape != scores.shape:
        raise ValueError(
            f"among has shape {tuple(among.shape)} and scores {tuple(scores.shape)}; give one "
            "candidate flag for each score"
        )
    candidates = scores.detach().flatten() if among is None else scores.detach()[among]
    if not 0 <= k <= len(candidates):
        raise ValueError(f"k is {k}; there are {len(candidates)} to select from")
    if k == len(candidates):
        _refuse_nan(candidates)
        return torch.ones_like(scores, dtype=torch.bool) if among is None else among.clone()
    if k == 0:
        _refuse_nan(candidates)
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = kth_largest(candidates, k)
    chosen = scores.detach() > threshold
    if among is not None:
        chosen &= among
    missing = k - int(torch.count_nonzero(chosen))
    tied = scores.detach() == threshold
    if among is not None:
        tied &= among
    _add_first(chosen, tied, missing)
    return chosen


def select_globally(
    scores: Mapping[str, Tensor],
    k: int,
    *,
    among: Mapping[str, Tensor] | None = None,
    floors: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Select the k largest scores of several tensors taken as one, exactly k of them.

    Of equal scores, those that come first: in the order of the mapping, then by index.

    Args:
        scores: {name: scores of any shape}.
        k: how many in all.
        among: {name: BoolTensor of candidates}; None takes all.
        floors: {name: how many at least}; a tensor's best ones come first up to its floor. None
            sets no floor.

    Returns:
        {name: BoolTensor}; the counts add up to k.

    Raises:
        ValueError: as for `select_exact`, and when the floors cannot be met.
    """
    candidates = {
        name: s.detach().flatten() if among is None else s.detach()[among[name]]
        for name, s in scores.items()
    }
    available = sum(len(c) for c in candidates.values())
    if not 0 <= k <= available:
        raise ValueError(f"k is {k}; there are {available} to select from")
    if floors and (
        sum(floors.values()) > k or any(floors[n] > len(c) for n, c in candidates.items())
    ):
        raise ValueError(f"the floors {dict(floors)} cannot be met with {k} in all")
    chosen = _globally(scores, candidates, k, among)
    if floors and any(int(torch.count_nonzero(chosen[n])) < floors[n] for n in chosen):
        sure = {
            name: select_exact(s, floors[name], among=None if among is None else among[name])
            for name, s in scores.items()
        }
        lifted = {n: s.masked_fill(sure[n], float("inf")) for n, s in scores.items()}
        rest = {n: (~sure[n] if among is None else among[n] & ~sure[n]) for n in scores}
        candidates = {n: s[rest[n]] for n, s in lifted.items()}
        more = _globally(scores, candidates, k - sum(floors.values()), rest)
        chosen = {name: sure[name] | more[name] for name in scores}
    return chosen


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Return the k-th largest of [n] values (k from 1 to n), a tensor without dimensions.

    Raises:
        ValueError: when a value is NaN.
    """
    _refuse_nan(values)
    if values.dtype != torch.float32 or len(values) < _WORTH_COUNTING:
        return values.kthvalue(len(values) - k + 1).values
    lowest, highest = values.aminmax()
    if lowest == highest:
        return lowest
    # One pass counts the values by their upper 16 bits; only the bucket of the k-th is looked into.
    buckets = (values.contiguous().view(torch.int32) >> 16).to(torch.int16)
    if lowest < 0:
        buckets ^= (buckets >> 15) & 0x7FFF  # read as integers, negative floats run backwards
    counts = torch.bincount(buckets.to(torch.int32) + _HALF, minlength=2 * _HALF)
    from_above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, k))
    inside = values[buckets == _HALF - 1 - place]
    rank = k - int(from_above[place]) + len(inside)
    lowest, highest = inside.aminmax()
    return lowest if lowest == highest else inside.kthvalue(len(inside) - rank + 1).values


def _globally(
    scores: Mapping[str, Tensor],
    candidates: Mapping[str, Tensor],
    k: int,
    among: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    every = torch.cat(list(candidates.values()))
    if k == 0:
        _refuse_nan(every)
        return {name: torch.zeros_like(s, dtype=torch.bool) for name, s in scores.items()}
    threshold = kth_largest(every, k)
    del every
    chosen: dict[str, Tensor] = {}
    ties: dict[str, Tensor] = {}
    for name, s in scores.items():
        chosen[name], ties[name] = s.detach() > threshold, s.detach() == threshold
        if among is not None:
            chosen[name] &= among[name]
            ties[name] &= among[name]
    missing = k - sum(int(torch.count_nonzero(c)) for c in chosen.values())
    for name, tied in ties.items():
        if missing == 0:
            break
        missing -= _add_first(chosen[name], tied, missing)
    return chosen


def _add_first(chosen: Tensor, tied: Tensor, missing: int) -> int:
    """Set the first `missing` of the tied places; return how many were set."""
    if missing == 0:
        return 0
    # Not flatten() of `chosen`: a tensor that is not contiguous would be copied.
    places = tied.nonzero()[:missing]
    chosen[tuple(places.T)] = True
    return len(places)


def _refuse_nan(values: Tensor) -> None:
    # The largest of values is NaN where one of them is, and costs a tenth of isnan().any().
    if values.is_floating_point() and len(values) and bool(values.max().isnan()):
        raise ValueError("a score is NaN: there is no order; find out where it comes from first")
