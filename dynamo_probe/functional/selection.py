"""Choose exactly k of many, deterministically: the best scores, ties by index."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

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
        ValueError: when k is out of range, a candidate is NaN, or `among` is no BoolTensor of the
            shape of `scores`.

    Example:
        >>> select_exact(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2)
        tensor([False,  True,  True, False])
    """
    flags = {} if among is None else {"": _flags(scores, among)}
    return _select({"": scores.detach()}, k, flags)[""]


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
        floors: {name: how many at least}; a tensor's best ones come first up to its floor. Where
            there is no name, there is no floor.

    Returns:
        {name: BoolTensor}; the counts add up to k.

    Raises:
        ValueError: as for `select_exact`, and when the floors cannot be met.
    """
    if not scores:
        raise ValueError("no scores were given; give {name: scores}")
    # In one precision: a threshold means the same everywhere.
    kind = reduce(torch.promote_types, (s.dtype for s in scores.values()))
    scores = {name: s.detach().to(kind) for name, s in scores.items()}
    flags = {} if among is None else {n: _flags(s, among[n]) for n, s in scores.items()}
    available = _available(scores, flags)
    _check_number(k, sum(available.values()))
    least = {name: 0 if floors is None else floors.get(name, 0) for name in scores}
    if sum(least.values()) > k or any(not 0 <= least[n] <= available[n] for n in least):
        raise ValueError(
            f"the floors {least} cannot be met with {k} in all: lower them, or select more"
        )
    chosen = _select(scores, k, flags)
    if any(number and int(torch.count_nonzero(chosen[n])) < number for n, number in least.items()):
        sure = {n: select_exact(s, least[n], among=flags.get(n)) for n, s in scores.items()}
        rest = {n: flags[n] & ~sure[n] if flags else ~sure[n] for n in scores}
        more = _select(scores, k - sum(least.values()), rest)
        chosen = {name: sure[name] | more[name] for name in scores}
    return chosen


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Return the k-th largest of [n] values (k from 1 to n), a tensor without dimensions.

    Raises:
        ValueError: when a value is NaN.
    """
    refuse_nan(values)
    if values.dtype != torch.float32 or len(values) < _WORTH_COUNTING:
        return _kth_largest(values, k)
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
    return lowest if lowest == highest else _kth_largest(inside, rank)


def refuse_nan(values: Tensor) -> None:
    """Refuse scores among which there is no order.

    Raises:
        ValueError: when one is NaN.
    """
    # The largest of values is NaN where one of them is, and costs a tenth of isnan().any().
    if values.is_floating_point() and values.numel() and bool(values.max().isnan()):
        raise ValueError("a score is NaN: there is no order; find out where it comes from first")


def _kth_largest(values: Tensor, k: int) -> Tensor:
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        # kthvalue refuses to run then, as its index is not determined where values are equal.
        return values.sort(descending=True).values[k - 1]
    return values.kthvalue(len(values) - k + 1).values


def _flags(scores: Tensor, among: Tensor) -> Tensor:
    if among.shape != scores.shape or among.dtype != torch.bool:
        raise ValueError(
            f"among is {among.dtype} of shape {tuple(among.shape)} and scores have shape "
            f"{tuple(scores.shape)}; give a BoolTensor with one flag for each score"
        )
    return among


def _available(scores: Mapping[str, Tensor], flags: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        name: int(torch.count_nonzero(flags[name])) if flags else s.numel()
        for name, s in scores.items()
    }


def _check_number(k: int, available: int) -> None:
    if not 0 <= k <= available:
        raise ValueError(f"k is {k}; there are {available} to select from")


def _select(scores: Mapping[str, Tensor], k: int, flags: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the k largest of several tensors; of equal ones, those that come first.

    Args:
        scores: {name: scores}.
        k: how many in all.
        flags: {name: BoolTensor of candidates}; empty where all are.
    """
    available = sum(_available(scores, flags).values())
    _check_number(k, available)
    everything = _joined(scores, flags)
    if k in (0, available):
        refuse_nan(everything)
        if k and flags:
            return {name: flags[name].clone() for name in scores}
        return {n: torch.full_like(s, bool(k), dtype=torch.bool) for n, s in scores.items()}
    threshold = kth_largest(everything, k)
    del everything
    chosen = {name: s >= threshold.to(s.device) for name, s in scores.items()}
    for name, flag in flags.items():
        chosen[name] &= flag
    excess = sum(int(torch.count_nonzero(flag)) for flag in chosen.values()) - k
    for name in reversed(list(scores)):
        if excess == 0:
            break
        # Only now, because equal scores are rare, and looking for them is dear.
        tied = (scores[name] == threshold.to(scores[name].device)) & chosen[name]
        places = tied.nonzero()[-excess:]
        chosen[name][tuple(places.T)] = False
        excess -= len(places)
    return chosen


def _joined(scores: Mapping[str, Tensor], flags: Mapping[str, Tensor]) -> Tensor:
    """Return all candidates in one row; floats that are none stand there as the lowest of all."""
    home = next(iter(scores.values())).device
    parts: list[Tensor] = []
    for name, s in scores.items():
        if not flags:
            parts.append(s.flatten().to(home))
        elif s.is_floating_point():  # several times cheaper than picking the candidates out
            lowest = torch.full((), float("-inf"), dtype=s.dtype, device=s.device)
            parts.append(torch.where(flags[name], s, lowest).flatten().to(home))
        else:
            parts.append(s[flags[name]].to(home))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
