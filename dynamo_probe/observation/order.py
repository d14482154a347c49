"""Whether updates repeat an earlier stretch of the stream row by row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynamo_probe.functional.repetition import FRESH
from dynamo_probe.observation.first_seen import Places
from dynamo_probe.observation.sketch import Seen

UPDATES = 3
"""Consecutive updates that make a repeat of the order; shuffling does not do that by chance."""
ROWS = 8
"""Rows of known origin, at least, that they hold together."""
SHARE = 0.9
"""Share of an update's rows that have to be repeated, and of the known ones to be in order."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A row of which a part or all had been seen before, and where.

    Attributes:
        update: when it came again.
        row: its row in that update's batch, over micro-batches and ranks.
        first_update: when it was seen first.
        first_row: its row then; 65535 stands for that and beyond.
        number: its number since the beginning of the run, modulo 2^32.
        first_number: its number then.
        share: the share of its tokens that came before, wherever.
    """

    update: int
    row: int
    first_update: int
    first_row: int
    number: int
    first_number: int
    share: float

    def __str__(self) -> str:
        """Put it in words."""
        return (
            f"row {self.row} of update {self.update} ({self.share:.0%} repeated) was seen first as "
            f"row {self.first_row} of update {self.first_update}"
        )


def origins_of(seen: Seen, valid: np.ndarray | None, places: Places) -> tuple[int, list[Origin]]:
    """Find out where rows were seen first, by the rarest of the runs that came before.

    A run that is seen everywhere, such as the head of a licence, does not say where a row is from.

    Args:
        seen: what of the rows had been seen before.
        valid: bool [rows, T], False at padding; None where there is none.
        places: of the rows, now.

    Returns:
        How many rows came before, as a whole or nearly; and the origins that are known.
    """
    if seen.classes is None:
        return 0, []
    length = seen.classes.shape[1] if valid is None else np.maximum(valid.sum(axis=1), 1)
    shares = (seen.classes > FRESH).sum(axis=1) / length
    known = np.flatnonzero(seen.counts)
    known = known[np.lexsort((seen.counts[known], seen.rows[known]))]
    known = known[np.diff(seen.rows[known], prepend=-1) != 0]
    columns = (
        places.updates[seen.rows[known]],
        places.rows[seen.rows[known]],
        seen.first.updates[known],
        seen.first.rows[known],
        places.numbers[seen.rows[known]],
        seen.first.numbers[known],
    )
    listed = zip(*(c.tolist() for c in columns), shares[seen.rows[known]].tolist(), strict=True)
    return int((shares >= SHARE).sum()), [Origin(*one) for one in listed]


@dataclass(slots=True)
class Order:
    """The run of updates that goes on: rows that lie one and the same number of rows back.

    Attributes:
        shift: that number; None where no run goes on.
        begin: the first update of the run.
        end: its newest.
        first_begin: the update that the first one repeats.
        first_end: the update that the newest one repeats.
        rows: rows of known origin in it.
        updates: updates in it that hold such rows.
        told: whether the run was told of.
        habit: whether a run was told of, and no stretch without order has come since.
        loose: updates of that stretch.
    """

    shift: int | None = None
    begin: int = 0
    end: int = 0
    first_begin: int = 0
    first_end: int = 0
    rows: int = 0
    updates: int = 0
    told: bool = False
    habit: bool = False
    loose: int = 0

    def see(
        self,
        update: int,
        rows: int,
        repeated: int,
        origins: list[Origin],
        resumed: int | None = None,
    ) -> bool:
        """Take the next update.

        Args:
            update: its number.
            rows: its rows.
            repeated: those that were seen before, as a whole or nearly.
            origins: where rows were seen first, as far as that is known.
            resumed: the update that training went on from; None where it began at the first.

        Returns:
            Whether there is something to tell: the run has become long enough, and order had been
            broken before it, or it follows upon a resume.
        """
        if rows == 0:
            return False
        if repeated < SHARE * rows:
            self._begin(None, update, [])
            return False
        known = [o for o in origins if o.first_update < update and o.share >= SHARE]
        if not known:
            return False  # nothing speaks against it, and nothing for it
        shifts = np.array([(o.number - o.first_number) % (1 << 32) for o in known])
        if self.shift is None or (shifts == self.shift).mean() < SHARE:
            values, sizes = np.unique(shifts, return_counts=True)
            agree = sizes.max() >= SHARE * len(shifts)
            self._begin(int(values[sizes.argmax()]) if agree else None, update, known)
            return False
        self.end, self.first_end = update, max(o.first_update for o in known)
        self.rows += len(known)
        self.updates += 1
        self.loose = 0
        if self.told or self.updates < UPDATES or self.rows < ROWS:
            return False
        news = not self.habit or self.is_replay(resumed)
        self.told = self.habit = True
        return news

    def is_replay(self, resumed: int | None) -> bool:
        """Whether the run began with a resume."""
        return resumed is not None and resumed < self.begin <= resumed + 2

    def _begin(self, shift: int | None, update: int, known: list[Origin]) -> None:
        first = min((o.first_update for o in known), default=0)
        last = max((o.first_update for o in known), default=0)
        taken = shift is not None
        self.loose += 1
        self.habit = self.habit and self.loose < UPDATES
        self.shift, self.begin, self.end = shift, update, update
        self.first_begin, self.first_end = first, last
        self.rows, self.updates, self.told = len(known) * taken, int(taken), False

    def state_dict(self) -> dict[str, Any]:
        """Return the run."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        for name, value in state.items():
            setattr(self, name, value)
