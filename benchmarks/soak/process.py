"""What a process holds: memory, file handles, threads, objects; and whether that grows."""

from __future__ import annotations

import gc
import os
import re
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GROWTH = 800_000.0
"""The most that memory may grow over the second half of a run, in bytes.

In 200,000 updates that is 8 bytes an update, where one float that is kept takes 32. Shorter runs
still warm up in their second half: for them it is more.
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What this process holds after an update.

    Attributes:
        step: the update.
        memory: resident memory, in bytes.
        handles: open files.
        threads: threads of Python.
        objects: objects that the garbage collector knows.
        readings: readings in the history.
        events: events in the list.
    """

    step: int
    memory: int
    handles: int
    threads: int
    objects: int
    readings: int
    events: int


def sample(step: int, readings: int, events: int) -> Sample:
    """Measure this process; Linux only."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    handles = min(_handles() for _ in range(5))
    memory = 1024 * int(found[1])
    return Sample(
        step, memory, handles, threading.active_count(), len(gc.get_objects()), readings, events
    )


def _handles() -> int:
    """Count open files, after a moment: another thread may just have one open for a moment."""
    time.sleep(0.002)
    return len(os.listdir("/proc/self/fd")) - 1  # one is the listing's own


def slope(samples: Sequence[Sample]) -> float:
    """Return by how much memory grows, in bytes an update: the median over all pairs of samples.

    A least-squares line would follow the few samples before which the allocator gave memory back.
    """
    pairs = [
        (later.memory - earlier.memory) / (later.step - earlier.step)
        for place, later in enumerate(samples)
        for earlier in samples[:place]
    ]
    return statistics.median(pairs)


def second_half(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples after the warm-up, in which histories fill up and caches are made."""
    return samples[len(samples) // 2 :]


def growths(samples: Sequence[Sample], bound: float = GROWTH) -> list[str]:
    """Return what grew in the second half of a run; nothing when it was flat."""
    late = second_half(samples)
    found = []
    allowed = 2 * bound / samples[-1].step
    if (memory := slope(late)) > allowed:
        found.append(f"memory grew by {memory:.1f} bytes an update (bound {allowed:.1f})")
    for what in ("handles", "threads"):
        counts = sorted({getattr(one, what) for one in late})
        if counts[0] != counts[-1]:
            found.append(f"{what} were between {counts[0]} and {counts[-1]}")
    return found
