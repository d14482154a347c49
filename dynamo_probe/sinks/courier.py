"""The way from the training loop to the sinks: a bounded queue and one thread."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.sinks.sink import Sink, settled, settled_event

_log = logging.getLogger(__name__)

Trouble = Callable[[str, str], None]
"""Called with a sink's name and a message. It may run in the courier's thread."""


@dataclass(frozen=True, slots=True)
class _Update:
    step: int
    readings: tuple[Reading, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class _Resume:
    step: int
    beginnings: Mapping[int, Sequence[str]] = field(default_factory=dict)


class _Door:
    """One sink, and how it is treated when it fails. Used by the courier's thread alone."""

    longest_pause = 64

    def __init__(self, sink: Sink, name: str) -> None:
        self.sink = sink
        self.name = name
        self.written = 0
        self.missed = 0
        self.trouble: str | None = None
        self._pause = 0
        self._skip = 0
        self._resume: _Resume | None = None

    def take(self, parcel: _Update | _Resume) -> Exception | None:
        """Hand a parcel over and return why it failed; then pause for 1, 2, 4, ... updates."""
        if isinstance(parcel, _Resume):
            self._resume = parcel
            return None
        if self._skip:
            self._skip -= 1
            self.missed += 1
            return None
        try:
            if self._resume is not None:
                recall = getattr(self.sink, "recall", None)
                if recall is not None:
                    recall(self._resume.beginnings)
                resume = getattr(self.sink, "resume", None)
                if resume is not None:
                    resume(self._resume.step)
                self._resume = None
            self.sink.write(parcel.step, parcel.readings, parcel.events)
        except Exception as error:
            self.missed += 1
            self._pause = min(2 * self._pause or 1, self.longest_pause)
            self._skip = self._pause
            return error
        if self._pause:
            _log.info("%s writes again at update %d", self.name, parcel.step)
            self._pause = 0
        self.written += 1
        return None


class Courier:
    """Takes readings to sinks without ever keeping the training loop waiting.

    The thread starts with the first `send`. When the queue is full the update that waits longest
    is dropped, so that the newest figures arrive; the loss is counted and told once. A sink that
    raises is told once and misses that update; it is tried again after 1, 2, 4, ... at most 64
    further updates, and the other sinks go on. In a forked child process a courier does nothing.

    Args:
        sinks: objects with the methods of `Sink`; none is fine, and then there is no thread.
        on_trouble: called with a sink's name and a message, at most once for each kind of trouble
            of a sink. It may be called from the courier's thread: it must be safe to call there,
            and must not call the courier.
        waiting: the most updates that wait, at least 1.

    Raises:
        TypeError: when a sink lacks a method.
        ValueError: when `waiting < 1`.
    """

    def __init__(
        self, sinks: Sequence[Sink], on_trouble: Trouble | None = None, *, waiting: int = 1000
    ) -> None:
        """Take the sinks; nothing is started."""
        if waiting < 1:
            raise ValueError(f"waiting is {waiting} updates; give 1 or more")
        for sink in sinks:
            if not isinstance(sink, Sink):
                raise TypeError(
                    f"{sink!r} is not a sink; give an object with "
                    "write(step, readings, events) and close()"
                )
        self._doors = tuple(map(_Door, sinks, _names(sinks)))
        self._on_trouble = on_trouble
        self._most = waiting
        self._process = os.getpid()
        self._condition = threading.Condition()  # guards everything below
        self._queue: deque[_Update | _Resume] = deque()
        self._sent = self._done = self._lost = 0
        self._at: str | None = None
        self._closing = self._abandoned = self._loss_told = False
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> int:
        """The updates that were dropped before any sink saw them."""
        return self._lost

    def send(self, step: int, readings: Sequence[Reading], events: Sequence[Event]) -> None:
        """Hand over everything of one update. Values are copied; this never waits for a sink.

        Raises:
            TypeError: when a value is neither a real number nor a real array.
        """
        if self._doors and os.getpid() == self._process:
            readings = tuple(map(settled, readings))
            self._put(_Update(int(step), readings, tuple(map(settled_event, events))))

    def resume(self, step: int, beginnings: Mapping[int, Sequence[str]] | None = None) -> None:
        """Tell the sinks that the run is taken up again after update `step`. Never dropped.

        Args:
            step: the update.
            beginnings: the scalar tags that were read up to there, by the update at which each was
                read first.
        """
        if self._doors and os.getpid() == self._process:
            self._put(_Resume(int(step), dict(beginnings or {})))

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything sent so far was handed to the sinks.

        Args:
            timeout: how long to wait at most, in seconds.

        Returns:
            Whether it was. False also after a `close` that gave up.
        """
        if self._thread is None or os.getpid() != self._process:
            return True
        with self._condition:
            goal = self._sent
            self._condition.wait_for(lambda: self._done >= goal or self._abandoned, timeout)
            return self._done >= goal and not self._abandoned

    def close(self, timeout: float = 10.0) -> bool:
        """Write what waits, close the sinks and end the thread. Calling it again does nothing.

        Args:
            timeout: how long to wait at most, in seconds. After that the thread is given up: it
                ends as soon as the sink that holds it returns, and never keeps Python from ending.

        Returns:
            Whether all was handed over and closed in time.
        """
        if not self._doors or os.getpid() != self._process:
            return True
        with self._condition:
            if self._closing:
                return not self._abandoned
            self._closing = True
            self._start()
            self._condition.notify_all()
            thread = self._thread
        assert thread is not None
        thread.join(timeout)
        atexit.unregister(self.close)
        with self._condition:
            if not thread.is_alive():
                return True
            self._abandoned = True
            left, name = self._updates_waiting(), self._at or "the courier"
            self._condition.notify_all()
        self._tell(
            name,
            f"did not come back within {timeout:g} s and was given up; "
            f"{left} waiting updates were not written",
        )
        return False

    def report(self) -> list[str]:
        """Return a line for each sink that missed updates, and one for what no sink has seen."""
        lines = [
            f"{door.name} missed {door.missed} updates and wrote {door.written}: {door.trouble}"
            for door in self._doors
            if door.missed
        ]
        if self._lost:
            lines.append(f"{self._lost} updates reached no sink: they were too slow, or closed")
        return lines

    def _put(self, parcel: _Update | _Resume) -> None:
        with self._condition:
            if self._closing:
                self._lost += isinstance(parcel, _Update)
                return
            self._start()
            if isinstance(parcel, _Update) and len(self._queue) >= self._most:
                self._drop_oldest()
            self._queue.append(parcel)
            self._sent += 1
            tell, self._loss_told = self._lost and not self._loss_told, self._lost > 0
            name = self._at or self._doors[0].name
            self._condition.notify_all()
        if tell:
            self._tell(
                name,
                f"is slower than the run: {self._most} updates wait, and older ones are dropped "
                "from now on. Read less often, or write to a faster place",
            )

    def _drop_oldest(self) -> None:
        for place, parcel in enumerate(self._queue):
            if isinstance(parcel, _Update):  # a resumption must arrive: it hides what is outdated
                del self._queue[place]
                self._lost += 1
                self._done += 1
                return

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="dynamo_probe courier", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while (parcel := self._next()) is not None:
            for door in self._doors:
                self._at = door.name
                error = door.take(parcel)
                if error is not None and door.trouble is None:
                    door.trouble = f"{type(error).__name__}: {error}"
                    self._tell(
                        door.name,
                        f"could not write update {parcel.step} ({door.trouble}); "
                        "training goes on, and so do the other sinks. It is tried again later",
                    )
                if self._abandoned:
                    break
            with self._condition:
                self._at = None
                self._done += 1
                self._condition.notify_all()
        for door in self._doors:
            self._at = door.name
            try:
                door.sink.close()
            except Exception as error:
                self._tell(door.name, f"could not be closed ({type(error).__name__}: {error})")

    def _next(self) -> _Update | _Resume | None:
        with self._condition:
            self._condition.wait_for(lambda: self._queue or self._closing)
            return self._queue.popleft() if self._queue and not self._abandoned else None

    def _updates_waiting(self) -> int:
        return sum(isinstance(parcel, _Update) for parcel in self._queue)

    def _tell(self, name: str, message: str) -> None:
        _log.warning("%s %s", name, message)
        if self._on_trouble is not None:
            try:
                self._on_trouble(name, message)
            except Exception:
                _log.exception("on_trouble failed")


def _names(sinks: Sequence[Sink]) -> list[str]:
    """Name the sinks by their types; the second of a type is `TensorBoard 2`."""
    seen: Counter[str] = Counter()
    names = []
    for sink in sinks:
        kind = type(sink).__name__
        seen[kind] += 1
        names.append(kind if seen[kind] == 1 else f"{kind} {seen[kind]}")
    return names
