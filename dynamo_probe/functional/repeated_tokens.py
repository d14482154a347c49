"""Random tokens repeated with random lags, and the pairs of positions that repetition makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def repeated_tokens(
    vocab_size: int,
    *,
    bos: int | None = None,
    period: int = 25,
    copies: int = 4,
    sequences: int = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw sequences of unique random tokens that are repeated, each with a lag of its own.

    The tokens of a copy are drawn without replacement, so that a token matches its own copies only.
    The lag of a sequence is drawn from half of `period` to one and a half of it: at one lag for
    all, a model could find the copy by position alone.

    Args:
        vocab_size: tokens are drawn from 0 to `vocab_size` - 1.
        bos: id of the token to put first, which is not drawn; None for none. 0 is an id.
        period: mean lag between copies, at least 2.
        copies: length in periods, at least 2.
        sequences: how many.
        generator: on the CPU; None takes one of its own with seed 0.

    Returns:
        int64 `[sequences, period * copies]`, one longer with `bos`, on the CPU.

    Raises:
        ValueError: when an argument is out of range, or the vocabulary has fewer than `period`
            tokens to draw from.

    Source: Olsson et al. 2022, *In-context Learning and Induction Heads*, head activation
    evaluators (25 tokens, 4 times, after a start token); the random lags are added here.
    """
    check_counts(2, period=period, copies=copies)
    check_counts(1, sequences=sequences)
    draw = UniqueTokens(vocab_size, bos, period, generator)
    length = period * copies
    low, high = max(2, (period + 1) // 2), min(period + period // 2, draw.free)
    lags = torch.randint(low, high + 1, (sequences,), generator=draw.generator).tolist()
    return draw.begun([draw(lag).repeat(-(-length // lag))[:length] for lag in lags])


class UniqueTokens:
    """Draws different tokens from a vocabulary, the start token never among them.

    Attributes:
        free: how many tokens there are to draw from.
        generator: that draws them.
    """

    def __init__(
        self, vocab_size: int, bos: int | None, needed: int, generator: torch.Generator | None
    ) -> None:
        """Check that there are as many as are needed.

        Raises:
            ValueError: when there are not, or an argument is out of range.
        """
        check_counts(2, vocab_size=vocab_size)
        if bos is not None and (isinstance(bos, bool) or not isinstance(bos, int) or bos < 0):
            raise ValueError(f"bos is {bos!r}; give the id of a token, or None for none")
        self._bos = bos
        self._inside = bos is not None and bos < vocab_size
        self.free = vocab_size - self._inside
        if self.free < needed:
            raise ValueError(
                f"{needed} different tokens are needed and the vocabulary has {self.free} to draw "
                f"from; give period={self.free} or less"
            )
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def __call__(self, count: int) -> Tensor:
        """Return so many different tokens, `[count]`."""
        drawn = torch.randperm(self.free, generator=self.generator)[:count]
        if self._bos is not None and self._inside:
            drawn += drawn >= self._bos
        return drawn

    def begun(self, rows: Sequence[Tensor]) -> Tensor:
        """Return sequences behind the start token, where there is one, `[sequences, length]`."""
        tokens = torch.stack(list(rows))
        if self._bos is None:
            return tokens
        return torch.cat([tokens.new_full((len(tokens), 1), self._bos), tokens], dim=1)


def check_counts(least: int, **counts: int) -> None:
    """Refuse what is no whole number, or too small.

    Raises:
        ValueError: with the name.
    """
    for name, given in counts.items():
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise ValueError(f"{name} is {given!r}; give a whole number of {least} or more")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of a query and a key in one sequence, ascending by query, and what each counts for.

    Attributes:
        queries: `[pairs]`.
        keys: `[pairs]`.
        kinds: `[2 * scores, pairs]`, float: 1 where the pair counts for a score, in the order of
            `SCORES`: over all queries, then over those with exactly one earlier copy.
        counts: how many queries the mean of each is over, int64 `[2 * scores]`.
    """

    queries: Tensor
    keys: Tensor
    kinds: Tensor
    counts: Tensor

    def to(self, device: torch.device) -> Pairs:
        """Return the pairs on a device."""
        return Pairs(*(getattr(self, name).to(device) for name in self.__slots__))

    def reached(self, free: Tensor) -> Tensor:
        """Return for how many queries at least one successor is free, [heads].

        Args:
            free: 1 where the mask lets the pair through, `[pairs, heads]`.
        """
        matching = self.kinds[0] > 0
        queries = self.queries[matching]
        length = int(self.queries[-1]) + 1 if len(self.queries) else 0
        found = free.new_zeros(length, free.shape[1])
        found.index_add_(0, queries, free[matching])
        return (found > 0).sum(0).to(free)


SCORES = ("prefix_matching", "duplicate_token", "previous_token", "sink")


def pairs_of(tokens: Tensor, kept: Tensor | None = None) -> Pairs:
    """Return the pairs of one sequence that the scores of heads are made of.

    For a query at p: prefix matching is on j + 1 for every earlier j with the same token, duplicate
    token on those j; previous token is on p - 1, sink on the first position.

    Args:
        tokens: `[length]`.
        kept: BoolTensor `[length]`, False at padding; None where there is none.
    """
    length = len(tokens)
    device = tokens.device
    at = torch.arange(length, device=device) if kept is None else kept.nonzero()[:, 0]
    first = at[:1]
    found: list[tuple[Tensor, Tensor, int]] = []
    inner = tokens[at]
    earlier = torch.zeros(len(at), dtype=torch.long, device=device)
    for begin in range(0, len(at), 1024):
        rows = torch.arange(begin, min(begin + 1024, len(at)), device=device)
        same = (inner[rows][:, None] == inner[None, :]) & (
            torch.arange(len(at), device=device) < rows[:, None]
        )
        earlier[rows] = same.sum(1)
        row, column = same.nonzero(as_tuple=True)
        query = at[rows[row]]
        found.append((query, at[column + 1], 0))
        found.append((query, at[column], 1))
    found.append((at[1:], at[:-1], 2))
    found.append((at[1:], first.expand(len(at) - 1), 3))
    queries = torch.cat([query for query, _, _ in found])
    keys = torch.cat([key for _, key, _ in found])
    which = torch.cat([torch.full_like(query, score) for query, _, score in found])
    queries, order = queries.sort(stable=True)
    keys, which = keys[order], which[order]
    whole = torch.stack([which == score for score in range(len(SCORES))]).double()
    copies = torch.zeros(length, dtype=torch.long, device=device)
    copies[at] = earlier
    kinds = torch.cat([whole, whole * (copies[queries] == 1)])
    repeated, once, rest = (earlier > 0).sum(), (earlier == 1).sum(), max(0, len(at) - 1)
    counts = torch.stack([repeated, repeated, *repeated.new_full((2,), rest), *[once] * 4])
    return Pairs(queries, keys, kinds, counts)
