"""A set of hashes in fixed memory that never forgets one, and sometimes knows one it never met."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

PROBES = 6
"""Words that an entry sets bits in; one more errs a tenth less and writes a sixth more."""

_U = np.uint64
_REMIX = tuple(
    _U(c)
    for c in (
        0,
        0x9FB21C651E98DF25,
        0xC2B2AE3D27D4EB4F,
        0xE7037ED1A0B428DB,
        0x8EBC6AF09C88C6E3,
        0x589965CC75374CC3,
    )
)


@lru_cache(maxsize=1)
def _masks() -> np.ndarray:
    """Return 4096 pairs of bits as uint64; one look-up instead of six operations."""
    generator = np.random.Generator(np.random.PCG64(0))
    first = generator.integers(64, size=4096)
    second = (first + generator.integers(1, 64, size=4096)) % 64
    masks = (_U(1) << first.astype(_U)) | (_U(1) << second.astype(_U))
    masks.flags.writeable = False
    return masks


class Bloom:
    """A Bloom filter (Bloom 1970) in 64-bit words, two bits in each of `PROBES` words.

    Two bits in one word cost one look into memory. The first look goes to a part of its own, small
    enough to stay near the processor: most of what was never met is out after it.

    Attributes:
        words: uint64 [words]; the first `near` of them are for the first look.
        near: a power of two.
        inserted: different entries.
    """

    __slots__ = ("inserted", "near", "words")

    def __init__(self, words: int) -> None:
        """Begin empty, with so many words."""
        self.words = np.zeros(words, dtype=_U)
        self.near = 1 << (words // (PROBES - 1)).bit_length() - 1
        self.inserted = 0

    def known(self, hashes: np.ndarray) -> np.ndarray:
        """Return which hashes were met, as ascending indices [known].

        Args:
            hashes: uint64 [hashes].
        """
        where, mask = self._probe(hashes, 0)
        bits = self.words.take(where)
        bits &= mask
        found = np.flatnonzero(bits == mask)
        for turn in range(1, PROBES):
            if len(found) == 0:
                break
            where, mask = self._probe(hashes[found], turn)
            found = found[(self.words[where] & mask) == mask]
        return found

    def add(self, hashes: np.ndarray) -> None:
        """Put hashes in, each once.

        Args:
            hashes: uint64 [hashes], all different and none of them in the filter.
        """
        probes = [self._probe(hashes, turn) for turn in range(PROBES)]
        where = np.concatenate([where for where, _ in probes])
        mask = np.concatenate([mask for _, mask in probes])
        while len(where):  # of several bits for one word in one go, only one arrives
            self.words[where] |= mask
            lost = (self.words[where] & mask) != mask
            where, mask = where[lost], mask[lost]
        self.inserted += len(hashes)

    def _probe(self, hashes: np.ndarray, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the word that each hash looks at in a turn, and its two bits."""
        if turn == 0:
            where = hashes >> _U(65 - self.near.bit_length())
            low = hashes & _U(4095)
        else:
            hashes = hashes * _REMIX[turn]
            where = hashes >> _U(32)
            where *= _U(len(self.words) - self.near)
            where >>= _U(32)
            where += _U(self.near)
            low = (hashes >> _U(20)) & _U(4095)
        return where.view(np.int64), _masks().take(low.view(np.int64))
