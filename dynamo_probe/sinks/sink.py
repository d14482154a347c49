"""What a sink is, and what may be handed to one.

A sink takes the readings and events of one update at a time and puts them where people look. It is
called from the courier's thread (`dynamo_probe/sinks/courier.py`), never from the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from dynamo_probe.instrument import Event, Reading


@runtime_checkable
class Sink(Protocol):
    """Where readings go: any object with these two methods.

    A sink may also have `resume(step: int)`. It is called before the first write when a run is
    taken up again after update `step`: whatever was written for later updates is out of date.
    A sink that does not write every tag may have `recall(beginnings: dict[int, list[str]])`. It is
    called before `resume` with the scalar tags by the update of their first reading.
    """

    def write(self, step: int, readings: Sequence[Reading], events: Sequence[Event]) -> None:
        """Take everything of one update at once.

        Args:
            step: the optimizer update.
            readings: what was read at this update, in the order in which it was emitted.
            events: what was done or noticed at this update.

        Raises:
            Exception: anything; the courier tells the user once and tries again later.
        """
        ...

    def close(self) -> None:
        """Put away what is still held. Called once, after the last write."""
        ...


def settled(reading: Reading) -> Reading:
    """Return a copy that shares no memory with the run: a plain float or a read-only array.

    Raises:
        TypeError: when the value is neither a real number nor a real array, such as a tensor.
    """
    value = reading.value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        if value.ndim == 0:
            return Reading(int(reading.step), reading.tag, float(value), _count(reading.samples))
        keep = value.dtype if value.dtype in (np.float16, np.float32) else np.float64
        own = np.array(value, dtype=keep)
        own.setflags(write=False)
        return Reading(int(reading.step), reading.tag, own, _count(reading.samples))
    if isinstance(value, (int, float, np.bool_, np.integer, np.floating)):
        return Reading(int(reading.step), reading.tag, float(value), _count(reading.samples))
    raise TypeError(
        f"reading {reading.tag!r} holds a {type(value).__name__}; "
        "emit a float or a NumPy array (tensor.item(), tensor.cpu().numpy())"
    )


def settled_event(event: Event) -> Event:
    """Return a copy whose detail holds plain numbers, texts and lists only."""
    detail = {str(key): _plain(value) for key, value in event.detail.items()}
    return Event(int(event.step), str(event.kind), str(event.subject), detail)


def _count(samples: int | None) -> int | None:
    return None if samples is None else int(samples)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray)):
        return [_plain(part) for part in value]
    return str(value)
