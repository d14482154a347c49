"""When a log is written: it is written whole each time, so it must not be written often."""

from __future__ import annotations


class WriteTimes:
    """Writes lie evenly apart on a logarithmic axis of time; large logs are written less often.

    What a killed run loses is what came after the last write: a twentieth of the run at most, or
    the time that it takes to earn the bytes of a write at `rate`, or `shortest`.

    Args:
        rate: bytes a second that are written at most, on average.
        growth: by what share a run has to grow between two writes.
        shortest: seconds between two writes at least.
    """

    def __init__(self, *, rate: float = 500.0, growth: float = 0.05, shortest: float = 5.0) -> None:
        """Begin with a write due at once."""
        self.rate = rate
        self.growth = growth
        self.shortest = shortest
        self._start: float | None = None
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether the log is to be written; now is a time in seconds that never goes back."""
        if self._start is None:
            self._start = now
        return now >= self._next

    def written(self, now: float, size: int) -> None:
        """Take note that it was, and of how many bytes it had."""
        start = now if self._start is None else self._start
        pause = max(self.shortest, self.growth * (now - start), size / self.rate)
        self._next = now + pause
