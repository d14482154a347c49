"""Hashes of every run of n tokens, by differences of one polynomial prefix sum.

The prefix sum is P_j = sum over k < j of x_k b^k modulo 2^64, with x_k a mixed token and b odd, so
that (P_{i+n} - P_i) b^-i depends on the tokens i .. i+n-1 and not on where they stand (Karp and
Rabin 1987). Every run of every length is then one subtraction and one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_BASE = 0xD1342543DE82EF95
_TOKEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_LENGTH = np.uint64(0xA0761D6478BD642F)


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return b^i and b^-i modulo 2^64 for i < length."""
    forth, back = _powers_up_to(length.bit_length())
    return forth[:length], back[:length]


@lru_cache(maxsize=32)
def _powers_up_to(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return more powers than are asked for, so that rows of many lengths share them."""
    length = 1 << bits
    found: list[np.ndarray] = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        steps = np.full(length, base, dtype=np.uint64)
        steps[:1] = 1
        found.append(np.cumprod(steps, dtype=np.uint64))
        found[-1].flags.writeable = False
    return found[0], found[1]


def _finish(sums: np.ndarray) -> np.ndarray:
    """Spread the entropy of a polynomial over all bits, in place; a bijection."""
    sums ^= sums >> np.uint64(32)
    sums *= _MIX
    sums ^= sums >> np.uint64(29)
    return sums


@dataclass(frozen=True, slots=True)
class PrefixSums:
    """The polynomial prefix sums of rows of tokens.

    Attributes:
        sums: uint64 [rows, T + 1].
    """

    sums: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray) -> PrefixSums:
        """Take rows of tokens.

        Args:
            tokens: whole numbers [rows, T], none negative.
        """
        # A copy in row order: the powers run along the rows.
        mixed = np.ascontiguousarray(tokens, dtype=np.int64).view(np.uint64) * _TOKEN
        mixed ^= mixed >> np.uint64(31)
        rows, length = mixed.shape
        mixed *= _powers(length)[0]
        sums = np.empty((rows, length + 1), dtype=np.uint64)
        sums[:, 0] = 0
        np.cumsum(mixed, axis=1, out=sums[:, 1:])
        return cls(sums)

    def grams(self, n: int) -> np.ndarray:
        """Hash every run of n tokens.

        Returns:
            uint64 [rows, T - n + 1]; [rows, 0] where rows are shorter than n.
        """
        rows, length = self.sums.shape[0], self.sums.shape[1] - 1
        if length < n:
            return np.empty((rows, 0), dtype=np.uint64)
        hashes = self.sums[:, n:] - self.sums[:, :-n]
        hashes *= _powers(length)[1][: length - n + 1]
        return _finish(hashes)

    def pieces(self, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Hash pieces of any length; pieces of different lengths have different hashes.

        Args:
            rows: whole numbers [pieces].
            starts: the first token of each piece.
            ends: one past its last token.

        Returns:
            uint64 [pieces].
        """
        hashes = self.sums[rows, ends] - self.sums[rows, starts]
        hashes *= _powers(self.sums.shape[1] - 1)[1][starts]
        hashes += (ends - starts).astype(np.uint64) * _LENGTH
        return _finish(hashes)


def gram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """Hash every run of n tokens, whatever its place in the row.

    Args:
        tokens: whole numbers [rows, T], none negative.
        n: tokens in a gram.

    Returns:
        uint64 [rows, T - n + 1].

    Example:
        >>> row = np.array([[5, 1, 2, 3, 9, 1, 2, 3]])
        >>> hashes = gram_hashes(row, 3)[0]
        >>> bool(hashes[1] == hashes[5]), len(set(hashes.tolist()))
        (True, 5)
    """
    return PrefixSums.of(tokens).grams(n)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs of tokens without padding.

    Attributes:
        rows: the row of each piece, [pieces], ascending.
        starts: its first token.
        ends: one past its last token.
    """

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def whole(cls, rows: int, length: int) -> Pieces:
        """Take rows without padding."""
        number = np.arange(rows if length else 0)
        return cls(number, np.zeros_like(number), np.full_like(number, length))

    @classmethod
    def between(cls, valid: np.ndarray) -> Pieces:
        """Take the runs of True.

        Args:
            valid: bool [rows, T], False at padding.
        """
        edge = np.zeros((valid.shape[0], valid.shape[1] + 2), dtype=np.int8)
        edge[:, 1:-1] = valid
        step = np.diff(edge, axis=1)
        rows, starts = np.nonzero(step == 1)
        return cls(rows, starts, np.nonzero(step == -1)[1])

    def chosen(self, which: np.ndarray) -> Pieces:
        """Return some of them."""
        return Pieces(self.rows[which], self.starts[which], self.ends[which])

    def blocks(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut pieces of n tokens or more into blocks of n; the last one may overlap the one before.

        Returns:
            Rows and first tokens of the blocks, [blocks], in reading order.
        """
        length = self.ends - self.starts
        count = -(-length // n)
        which = np.repeat(np.arange(len(count)), count)
        turn = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        starts = np.minimum(self.starts[which] + turn * n, self.ends[which] - n)
        return self.rows[which], starts
