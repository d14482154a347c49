"""What a rank has to tell the others about the blocks it saw since they last met."""

from __future__ import annotations

import numpy as np

from dynamo_probe.observation.first_seen import MOST, Places

_ROW, _UPDATE, _NEW = 32, 48, 63
"""Where the parts of the second word begin; the row's number is at 0."""
_LATEST = (1 << _NEW - _UPDATE) - 1


class Journal:
    """Entries of two words, int64: a hash, and where it was and whether it is new.

    Attributes:
        most: entries it holds; what comes after that is not told.
        since: the update at which ranks last met; entries count updates from there.
        lost: how many entries were not told.
    """

    def __init__(self, most: int = 1 << 17) -> None:
        """Begin empty."""
        self.most = most
        self.since = 0
        self.lost = 0
        self._written: list[np.ndarray] = []
        self._length = 0

    def write(self, hashes: np.ndarray, places: Places, *, new: bool) -> None:
        """Note occurrences of blocks.

        Args:
            hashes: uint64 [blocks].
            places: where they are, [blocks].
            new: whether nobody is known to have seen them before.
        """
        room = min(len(hashes), self.most - self._length)
        after = places.updates[:room].astype(np.int64) - self.since
        room = int((after <= _LATEST).sum())
        self.lost += len(hashes) - room
        if room == 0:
            return
        entries = np.empty((room, 2), dtype=np.int64)
        entries[:, 0] = hashes[:room].view(np.int64)
        where = (after[:room] << _UPDATE) | (np.minimum(places.rows[:room], MOST) << _ROW)
        where |= places.numbers[:room] & 0xFFFFFFFF
        entries[:, 1] = where | np.int64(-(1 << _NEW)) if new else where
        self._written.append(entries)
        self._length += room

    def entries(self) -> np.ndarray:
        """Return what is written, int64 [entries, 2]."""
        return np.concatenate([np.empty((0, 2), dtype=np.int64), *self._written])

    def clear(self, update: int) -> None:
        """Begin anew, once everybody was told."""
        self._written.clear()
        self._length = self.lost = 0
        self.since = update

    def restore(self, entries: np.ndarray, since: int, lost: int) -> None:
        """Go on where these were taken."""
        self._written, self._length = [entries.copy()], len(entries)
        self.since, self.lost = since, lost

    def read(self, entries: np.ndarray) -> tuple[np.ndarray, Places, np.ndarray]:
        """Return hashes, places and which are new, of another rank's entries since the same update.

        Args:
            entries: int64 [entries, 2].
        """
        where = entries[:, 1]
        updates = self.since + ((where >> _UPDATE) & _LATEST)
        places = Places(updates, (where >> _ROW) & MOST, where & 0xFFFFFFFF)
        return entries[:, 0].copy().view(np.uint64), places, where < 0
