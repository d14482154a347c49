"""What TensorBoard makes of a log, with both of its Python loaders."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.util import tensor_util

Series: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
"""The updates and the values of each scalar tag."""


# What it says when it hides the updates that a resumed run has taken again.
_PURGED = re.compile(r"Detected out of order event\.step .* Purging ")


class _Complaints(logging.Handler):
    """Keeps what TensorBoard says while it reads: it logs what it cannot read and goes on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not _PURGED.match(record.getMessage()):
            self.heard.append(record.getMessage())


def read(directory: Path) -> tuple[Series, list[str]]:
    """Read a log as `tensorboard --load_fast=false` does: all files, outdated steps purged.

    Returns:
        The scalar series, and what TensorBoard complained about.

    Raises:
        AssertionError: when its two loaders do not agree.
    """
    complaints = _Complaints()
    logger = logging.getLogger("tensorboard")
    logger.addHandler(complaints)
    try:
        now = plugin_event_accumulator.EventAccumulator(
            str(directory), tensor_size_guidance={"scalars": 0}
        )
        now.Reload()
        before = event_accumulator.EventAccumulator(str(directory), size_guidance={"scalars": 0})
        before.Reload()
    finally:
        logger.removeHandler(complaints)
    tags = sorted(now.PluginTagToContent("scalars"))
    found = {tag: _series(now.Tensors(tag)) for tag in tags}
    old = {
        tag: (np.array([e.step for e in rows]), np.array([e.value for e in rows], np.float32))
        for tag in before.Tags()["scalars"]
        for rows in [before.Scalars(tag)]
    }
    assert not apart(found, old), f"TensorBoard's loaders disagree about {apart(found, old)[:3]}"
    return found, complaints.heard


def _series(events: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    values = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events]
    return np.array([event.step for event in events]), np.array(values, np.float32)


def apart(one: Series, other: Series) -> list[str]:
    """Return the tags whose series are not equal to the bit."""
    return sorted(one.keys() ^ other.keys()) + [
        tag
        for tag in sorted(one.keys() & other.keys())
        if one[tag][0].tolist() != other[tag][0].tolist()
        or one[tag][1].tobytes() != other[tag][1].tobytes()
    ]


def faults(log: Series, history: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with a log: steps that do not increase, figures that history denies.

    Args:
        log: what was read.
        history: the scalars of a history's state.
    """
    found = [] if log else ["there are no scalars"]
    for tag, (steps, values) in log.items():
        if (np.diff(steps) <= 0).any():
            found.append(f"{tag}: the updates do not increase")
            continue
        kept = history[tag]["steps"].numpy()
        expected = history[tag]["values"].numpy().astype(np.float32)
        places = np.searchsorted(steps, kept)
        there = places < len(steps)
        there[there] = steps[places[there]] == kept[there]
        if not there.all():
            found.append(f"{tag}: {(~there).sum()} readings of the history are not in the log")
        if values[places[there]].tobytes() != expected[there].tobytes():
            found.append(f"{tag}: values differ from the history's")
    return found
