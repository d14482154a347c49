"""Keep a series bounded and even: every second point goes whenever it is full."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Any


class Thinning:
    """Decides which points of a growing series are kept.

    Of the points numbered 0, 1, 2, ... those at multiples of the stride are kept, and the newest.
    The stride starts at 1 and doubles when the series is full. So the first and the newest point
    are always there, the kept ones are evenly spaced over the whole run, and their number lies
    between half the capacity and the capacity once the series has been full.

    Args:
        capacity: the most points that are kept, at least 2.

    Attributes:
        count: the points seen.
        stride: of how many points one is kept; a power of two.

    Raises:
        ValueError: when `capacity < 2`.
    """

    __slots__ = ("capacity", "count", "stride")

    def __init__(self, capacity: int) -> None:
        """Set the bound."""
        if capacity < 2:
            raise ValueError(f"capacity is {capacity}; give 2 or more (the first and the newest)")
        self.capacity = capacity
        self.count = 0
        self.stride = 1

    def append(self, columns: Sequence[MutableSequence[Any]], row: Sequence[Any]) -> None:
        """Add one point, a value to each column; all columns have the same length."""
        if self.count and (self.count - 1) % self.stride:
            for column in columns:
                column.pop()  # the newest until now, kept only for being the newest
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        self.count += 1
        self.fit(columns)

    def fit(self, columns: Sequence[MutableSequence[Any]]) -> None:
        """Double the stride until the columns are within the capacity."""
        while len(columns[0]) > self.capacity:
            self.stride *= 2
            for column in columns:
                newest = column.pop()
                del column[1::2]
                column.append(newest)

    def cut(self, columns: Sequence[MutableSequence[Any]], length: int) -> None:
        """Forget the points from index `length` on, as if they had never been added."""
        if length < len(columns[0]):
            for column in columns:
                del column[length:]
            self.count = max(0, (length - 1) * self.stride + 1)
