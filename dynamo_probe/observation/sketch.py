"""What a run has seen of its data, in fixed memory: blocks of tokens, found again at any offset.

Rows are cut into blocks of n tokens, and a hash of each block is kept; the hash of every run of n
tokens is looked up, at every offset. This is how rsync finds what a file has in common with an
older one (Tridgell and Mackerras 1996). A stretch of 2n - 1 tokens or more that came before holds
a whole block, so that it is always found, and only one hash in n tokens takes memory. Sampling by
hash value, in contrast, has to keep twice as many for the same promise, or misses stretches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_probe.functional.repetition import UNKNOWN, classes_of, false_share
from dynamo_probe.functional.rolling_hash import Pieces, PrefixSums
from dynamo_probe.observation.bloom import PROBES, Bloom
from dynamo_probe.observation.first_seen import SLOT, FirstSeen, Places
from dynamo_probe.observation.journal import Journal

SHORTEST = 8
"""Pieces of fewer tokens are not looked at: they repeat by chance."""
LEAST = 1 << 16
"""Bytes below which a sketch is of no use."""
_NEAR = 17
"""Bits of the small filter that finds repeats within a batch."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What of some rows of tokens had been seen before.

    Attributes:
        measured: tokens that were looked at.
        short: tokens that lie in pieces too short to be looked at, padding left out.
        classes: uint8 [rows, T], the class of each token (`functional.repetition.classes_of`);
            None where all are fresh.
        rows: the row of each repeated run of n tokens that is a known block, [runs].
        counts: how often the block has been seen by then; 0 where that is unknown.
        first: where it was seen first; meaningful where the count is known.
    """

    measured: int
    short: int
    classes: np.ndarray | None
    rows: np.ndarray
    counts: np.ndarray
    first: Places


class Sketch:
    """Memory of a stream of tokens: a Bloom filter of blocks, and a sample with counts and places.

    Attributes:
        n: tokens in a block.
        bloom: every block that was seen.
        table: a sample of them.
        journal: what other ranks have to be told; None in a process alone.
    """

    def __init__(self, memory: int, n: int, *, shared: bool = False) -> None:
        """Divide the memory: one part in sixteen, or less, for the sample.

        Args:
            memory: bytes, at least `LEAST`.
            n: tokens in a block.
            shared: whether other ranks are to be told.
        """
        self.n = n
        slots = 1 << (memory // 16 // SLOT).bit_length() - 1
        self.bloom = Bloom((memory - slots * SLOT) // 8)
        self.table = FirstSeen(slots)
        self.journal = Journal() if shared else None

    @property
    def nbytes(self) -> int:
        """Bytes that are kept between updates, the journal left out."""
        arrays = [self.bloom.words, *_table(self.table).values()]
        return sum(array.nbytes for array in arrays)

    def false_share(self) -> float:
        """Return the share of fresh tokens that look repeated by now, by arithmetic."""
        bloom = self.bloom
        return false_share(bloom.inserted, len(bloom.words), bloom.near, PROBES, self.n)

    def see(self, tokens: np.ndarray, valid: np.ndarray | None, places: Places) -> Seen:
        """Look rows up, then remember them.

        Args:
            tokens: whole numbers [rows, T], none negative.
            valid: bool [rows, T], False at padding; None where there is none.
            places: of each row, [rows].

        Returns:
            What had been seen before, in earlier calls or earlier in these rows.
        """
        n, (rows, length) = self.n, tokens.shape
        pieces = Pieces.whole(rows, length) if valid is None else Pieces.between(valid)
        sums = PrefixSums.of(tokens)
        grams = sums.grams(n)
        width = max(grams.shape[1], 1)
        lengths = pieces.ends - pieces.starts
        long, short = lengths >= n, (lengths >= SHORTEST) & (lengths < n)
        block_rows, block_starts = pieces.chosen(long).blocks(n)
        blocks = block_rows * width + block_starts
        hashes, few = grams.reshape(-1), pieces.chosen(short)
        if len(few.rows):  # a short piece counts as a whole, behind the runs of n tokens
            hashes = np.concatenate([hashes, sums.pieces(few.rows, few.starts, few.ends)])
            blocks = np.concatenate([blocks, grams.size + np.arange(len(few.rows))])

        spans = _Spans(grams.size, width, n, few)
        old = self.bloom.known(hashes)
        if len(old) and valid is not None:
            old = old[spans.inside(old, valid)]
        covered = spans.cover(old, tokens.shape)
        if covered is not None:
            # A block of which every token was found lies within what is remembered already.
            unmet = np.ones(len(hashes), dtype=bool)
            unmet[old] = False
            blocks = blocks[unmet[blocks]]
            blocks = blocks[~spans.all_covered(blocks, covered)]
        fresh, blocks = _first_of_each(hashes, blocks)
        near = _later(hashes, fresh, blocks)
        if len(near) and valid is not None:
            near = near[spans.inside(near, valid)]

        self.bloom.add(fresh)
        new = places.at(spans.rows(blocks))
        self.table.add(fresh, new)
        total, measured = int(lengths.sum()), int(lengths[lengths >= SHORTEST].sum())
        again = old
        if len(near):
            again = np.union1d(old, near)
            covered = spans.cover(again, tokens.shape)
        counts, first, kept = self._count(hashes[again])
        if self.journal is not None:
            self.journal.write(fresh, new, new=True)
            known = again[kept]
            self.journal.write(hashes[known], places.at(spans.rows(known)), new=False)
        classes = None if covered is None else spans.classes(again, counts, covered)
        return Seen(measured, total - measured, classes, spans.rows(again), counts, first)

    def _count(self, hashes: np.ndarray) -> tuple[np.ndarray, Places, np.ndarray]:
        """Count occurrences of blocks that came before.

        Returns:
            How often each has been seen by then (0 where that is unknown), where first, and which
            are known.
        """
        counts, updates, rows, numbers = np.zeros((4, len(hashes)), dtype=np.int64)
        kept = np.empty(0, dtype=np.int64)
        if len(hashes):
            kept, slots = self.table.find(hashes)
            counts[kept] = self.table.count(slots)
            found = self.table.places(slots)
            updates[kept], rows[kept], numbers[kept] = found.updates, found.rows, found.numbers
        return counts, Places(updates, rows, numbers), kept

    def learn(self, told: np.ndarray) -> None:
        """Take in what another rank has written in its journal since the last time.

        Args:
            told: int64 [entries, 2], of the same window as the own journal.
        """
        assert self.journal is not None
        hashes, places, new = self.journal.read(told)
        fresh = np.flatnonzero(new)
        known = np.zeros(len(fresh), dtype=bool)
        known[self.bloom.known(hashes[fresh])] = True
        first = fresh[~known]
        self.bloom.add(hashes[first])
        both = fresh[known]  # two ranks met it in one window, each for the first time
        kept, slots = self.table.find(hashes[both])
        self.table.earlier(slots, places.at(both[kept]))
        self.table.add(hashes[first], places.at(first))
        again = np.concatenate([both, np.flatnonzero(~new)])
        self.table.count(self.table.find(hashes[again])[1])

    def state_dict(self) -> dict[str, Any]:
        """Return the memory as tensors of signed whole numbers."""
        state: dict[str, Any] = {"words": _tensor(self.bloom.words), "n": self.n}
        state["inserted"] = self.bloom.inserted
        state["table"] = {name: _tensor(array) for name, array in _table(self.table).items()}
        if self.journal is not None:
            state["journal"] = torch.from_numpy(self.journal.entries().copy())
            state |= {"since": self.journal.since, "lost": self.journal.lost}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; it must have the same sizes."""
        _copy(state["words"], self.bloom.words)
        self.bloom.inserted = int(state["inserted"])
        for name, array in _table(self.table).items():
            _copy(state["table"][name], array)
        if self.journal is not None and "journal" in state:
            self.journal.restore(state["journal"].numpy(), state["since"], state["lost"])


def looked_at(shape: tuple[int, ...], valid: np.ndarray | None) -> np.ndarray:
    """Return bool [rows, T], True at the tokens that `Sketch.see` looks at."""
    pieces = Pieces.whole(shape[0], shape[1]) if valid is None else Pieces.between(valid)
    pieces = pieces.chosen(pieces.ends - pieces.starts >= SHORTEST)
    step = np.zeros((shape[0], shape[1] + 1), dtype=np.int8)
    step[pieces.rows, pieces.starts] = 1
    step[pieces.rows, pieces.ends] -= 1
    return np.cumsum(step, axis=1)[:, :-1] > 0


@dataclass(frozen=True, slots=True)
class _Spans:
    """Where hashes stand: runs of n tokens by row and offset, then pieces shorter than that."""

    grams: int
    width: int
    n: int
    few: Pieces

    def rows(self, at: np.ndarray) -> np.ndarray:
        rows = at // self.width
        late = np.flatnonzero(at >= self.grams)
        rows[late] = self.few.rows[at[late] - self.grams]
        return rows

    def edges(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, starts = self.rows(at), at % self.width
        ends = starts + self.n
        late = np.flatnonzero(at >= self.grams)
        starts[late] = self.few.starts[at[late] - self.grams]
        ends[late] = self.few.ends[at[late] - self.grams]
        return rows, starts, ends

    def inside(self, at: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Return which spans hold no padding."""
        return self.all_covered(at, valid)

    def all_covered(self, at: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """Return which spans have a flag at every token."""
        rows, starts, ends = self.edges(at)
        covered = flags[rows, starts] & flags[rows, ends - 1]  # most are out after this
        maybe = np.flatnonzero(covered)
        runs = maybe[at[maybe] < self.grams]
        covered[runs] = flags.reshape(-1)[self._tokens(rows[runs], starts[runs], flags)].all(axis=1)
        for i in maybe[at[maybe] >= self.grams]:
            covered[i] = flags[rows[i], starts[i] : ends[i]].all()
        return covered

    def _tokens(self, rows: np.ndarray, starts: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """Return where the tokens of runs stand in rows laid end to end, [runs, n]."""
        return (rows * flags.shape[1] + starts)[:, None] + np.arange(self.n)

    def cover(self, at: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return bool [rows, T], True within a span; None where there is no span."""
        if len(at) == 0:
            return None
        covered = np.zeros(shape, dtype=bool)
        rows, starts, ends = self.edges(at)
        runs = at < self.grams
        covered.reshape(-1)[self._tokens(rows[runs], starts[runs], covered)] = True
        for i in np.flatnonzero(~runs):
            covered[rows[i], starts[i] : ends[i]] = True
        return covered

    def classes(self, at: np.ndarray, counts: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """Return the class of each token: that of the largest known count of a span around it."""
        classes = covered.astype(np.uint8) * np.uint8(UNKNOWN)
        known = np.flatnonzero(counts)
        known = known[np.argsort(counts[known], kind="stable")]  # the largest is written last
        found = classes_of(counts[known])
        rows, starts, ends = self.edges(at[known])
        runs = at[known] < self.grams
        where = self._tokens(rows[runs], starts[runs], classes)
        classes.reshape(-1)[where] = found[runs, None]
        for i in np.flatnonzero(~runs):  # a short piece is a span of its own
            classes[rows[i], starts[i] : ends[i]] = found[i]
        return classes


def _first_of_each(hashes: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different hashes that stand at some places, ascending, and the first place."""
    order = at[np.argsort(hashes[at], kind="stable")]
    ordered = hashes[order]
    first = np.ones(len(at), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first], order[first]


def _later(hashes: np.ndarray, own: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return where some hashes stand again.

    Args:
        hashes: all of them.
        own: those that are looked for, ascending and all different.
        at: their first places.
    """
    if len(own) == 0:
        return at
    small = np.zeros(1 << _NEAR, dtype=bool)
    small[(own >> np.uint64(64 - _NEAR)).view(np.int64)] = True
    likely = small.take((hashes >> np.uint64(64 - _NEAR)).view(np.int64))
    likely[at] = False
    maybe = np.flatnonzero(likely)
    match = np.minimum(np.searchsorted(own, hashes[maybe]), len(own) - 1)
    return maybe[(own[match] == hashes[maybe]) & (maybe > at[match])]


def _table(table: FirstSeen) -> dict[str, np.ndarray]:
    return {name: getattr(table, name) for name in table.__slots__}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.view(f"i{array.itemsize}").copy())


def _copy(tensor: Tensor, into: np.ndarray) -> None:
    into[:] = tensor.numpy().view(into.dtype)
