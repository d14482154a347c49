"""Where blocks of tokens were seen first, and how often since: a sample in fixed memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_U = np.uint64
MOST = 65535
"""Counts stop here."""
SLOT = 16
"""Bytes of a slot."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where something is in the stream.

    Attributes:
        updates: the update, [places].
        rows: the row of that update's batch, over all ranks and micro-batches.
        numbers: the row's number since the beginning of the run, modulo 2^32.
    """

    updates: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray

    def at(self, which: np.ndarray) -> Places:
        """Return some of them."""
        return Places(self.updates[which], self.rows[which], self.numbers[which])


class FirstSeen:
    """A table with one block in each slot: of all that belong there, the one of smallest hash.

    Which blocks it keeps depends on their content alone, so that they are a fair sample of all that
    were ever inserted, in whatever order they came, and tables of several ranks can be joined. A
    block that was kept from its first sight on has an exact count; one that was pushed out never
    comes back. (A count-min sketch counts everything, but too high as soon as there are more blocks
    than cells; a wrong repeat count is worse than one that is not known.) A hash that agrees with a
    kept one in its slot and its upper half is taken for it.

    Attributes:
        tags: uint32 [slots], the upper half of each hash.
        counts: uint16 [slots], occurrences; 0 is an empty slot.
        updates: int32 [slots], of the first sight.
        rows: uint16 [slots]; 65535 stands for that and beyond.
        numbers: uint32 [slots].
    """

    __slots__ = ("counts", "numbers", "rows", "tags", "updates")

    def __init__(self, slots: int) -> None:
        """Begin empty; the number of slots is a power of two, at least 2^11."""
        self.tags = np.zeros(slots, dtype=np.uint32)
        self.counts = np.zeros(slots, dtype=np.uint16)
        self.updates = np.zeros(slots, dtype=np.int32)
        self.rows = np.zeros(slots, dtype=np.uint16)
        self.numbers = np.zeros(slots, dtype=np.uint32)

    def _addresses(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slots = (hashes >> _U(8)) & _U(len(self.tags) - 1)
        return slots.view(np.int64), (hashes >> _U(32)).astype(np.uint32)

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up hashes.

        Args:
            hashes: uint64 [hashes].

        Returns:
            Which of them are kept, as indices [kept], and their slots [kept].
        """
        slots, tags = self._addresses(hashes)
        kept = np.flatnonzero((self.tags[slots] == tags) & (self.counts[slots] > 0))
        return kept, slots[kept]

    def add(self, hashes: np.ndarray, places: Places) -> None:
        """Offer blocks that were seen for the first time; some are kept.

        Args:
            hashes: uint64 [blocks], all different and not kept.
            places: where they are, [blocks].
        """
        slots, tags = self._addresses(hashes)
        wins = np.flatnonzero((self.counts[slots] == 0) | (tags < self.tags[slots]))
        address = (slots[wins] << 32) | tags[wins]
        order = wins[np.argsort(address)]
        order = order[np.diff(slots[order], prepend=-1) != 0]  # the smallest tag of each slot
        slots = slots[order]
        self.tags[slots] = tags[order]
        self.counts[slots] = 1
        self._place(slots, places.at(order))

    def _place(self, slots: np.ndarray, places: Places) -> None:
        self.updates[slots] = places.updates
        self.rows[slots] = np.minimum(places.rows, MOST)
        self.numbers[slots] = places.numbers

    def count(self, slots: np.ndarray) -> np.ndarray:
        """Count another occurrence in each of these slots, in order.

        Args:
            slots: slots [occurrences]; one may come several times.

        Returns:
            How often the block has been seen by then, [occurrences].
        """
        order = np.argsort(slots, kind="stable")
        begin = np.flatnonzero(np.diff(slots[order], prepend=-1) != 0)
        size = np.diff(begin, append=len(slots))
        turn = np.empty(len(slots), dtype=np.int64)
        turn[order] = np.arange(1, len(slots) + 1) - np.repeat(begin, size)
        seen = np.minimum(self.counts[slots] + turn, MOST)
        which = slots[order[begin]]
        self.counts[which] = np.minimum(self.counts[which] + size, MOST)
        return seen

    def earlier(self, slots: np.ndarray, places: Places) -> None:
        """Take the earlier of two first sights, for blocks that two ranks saw for themselves."""
        here = (self.updates[slots].astype(np.int64) << 16) | self.rows[slots]
        there = (places.updates.astype(np.int64) << 16) | np.minimum(places.rows, MOST)
        first = np.flatnonzero(there < here)
        self._place(slots[first], places.at(first))

    def places(self, slots: np.ndarray) -> Places:
        """Return where the blocks in these slots were seen first."""
        numbers = self.numbers[slots].astype(np.int64)
        return Places(
            self.updates[slots].astype(np.int64), self.rows[slots].astype(np.int64), numbers
        )
