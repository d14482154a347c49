"""Time several things in turn, A B C A B C ..., so that a machine's drift hits all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping


def seconds(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each action in each round; two rounds of warming up come first."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds + 2):
            # Rotate the order: whoever comes first finds another cache than whoever comes last.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                begin = time.process_time()
                actions[name]()
                took = time.process_time() - begin
                if turn >= 2:
                    found[name].append(took)
    finally:
        gc.enable()
    return found


def ratios(found: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """Return the median over rounds of each action's time over the base's in the same round."""
    return {
        name: statistics.median(a / b for a, b in zip(times, found[base], strict=True))
        for name, times in found.items()
    }


def spread(times: list[float]) -> tuple[float, float]:
    """Return the quartiles."""
    low, _, high = statistics.quantiles(times, n=4)
    return low, high
