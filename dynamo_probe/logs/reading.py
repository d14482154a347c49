"""Logs read back from event files: also those of a run that was killed, or that still goes on."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dynamo_probe.logs.runlog import RunLog, Unreadable, unpacked, writers

TAG = "dynamo_probe/log"
"""The tag of the log in event files."""
PLUGIN = "dynamo_probe"
"""The name of the plugin that its summaries are for."""

_log = logging.getLogger(__name__)
_MOST = 1 << 30


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something about a run's files that its reader should know.

    Attributes:
        run: the run's name.
        text: what it is, and what to do.
    """

    run: str
    text: str


def read_logs(directory: str | os.PathLike[str]) -> dict[str, RunLog]:
    """Read the logs of all runs in a directory; what cannot be read is logged as a warning.

    Returns:
        {run: its newest log}: a run is a directory with event files, named by its path below
        `directory`, `.` for that itself; sorted by name.

    Raises:
        FileNotFoundError: when there is no such directory.
        ValueError: when no run in it has a log of dynamo_probe.
    """
    logs, troubles = read_all(directory)
    for one in troubles:
        _log.warning("%s: %s", one.run, one.text)
    return logs


def read_all(directory: str | os.PathLike[str]) -> tuple[dict[str, RunLog], list[Trouble]]:
    """Read as `read_logs` does; what there is to say about the files comes back, too."""
    top = Path(directory)
    if not top.exists():
        raise FileNotFoundError(f"there is no directory {str(top)!r}; give that of the log")
    if top.is_file():
        raise ValueError(f"{str(top)!r} is a file; give the directory that it lies in")
    logs: dict[str, RunLog] = {}
    troubles: list[Trouble] = []
    events = False
    for folder, names in _folders(top):
        events = True
        run = folder.relative_to(top).as_posix()
        found, texts = _newest([folder / name for name in names])
        troubles += [Trouble(run, text) for text in texts]
        if found is not None:
            logs[run] = found
    if not logs:
        why = "; ".join(f"{one.run}: {one.text}" for one in troubles[:3])
        hint = why or (
            "its event files have none: attach a probe with dp.watch(..., log_dir=...)"
            if events
            else "it has no event files: give the directory that log_dir= named, or one above it"
        )
        raise ValueError(f"no log of dynamo_probe in {str(top)!r} ({hint})")
    return logs, troubles


def newest_of(directory: str | os.PathLike[str], most: float = float("inf")) -> RunLog | None:
    """Return the newest log in a directory itself, None where there is none that can be read.

    Args:
        directory: of the run.
        most: bytes that are looked through; where there are more, nothing is.
    """
    folder = Path(directory)
    if not folder.is_dir():
        return None
    paths = [path for path in folder.iterdir() if "tfevents" in path.name]
    if sum(path.stat().st_size for path in paths) > most:
        return None
    return _newest(paths)[0]


TWO_WRITERS = (
    "several processes wrote to this directory at once, and only the newest log is shown; give "
    "each run a log_dir of its own"
)


def of_one_run(raws: Sequence[bytes]) -> bool:
    """Whether logs, the newest last, are of one run: it goes on from all who wrote the others."""
    signed = [writers(raw) for raw in raws]
    return all(one[0] in signed[-1] for one in signed)


def _folders(top: Path) -> Iterator[tuple[Path, list[str]]]:
    for folder, folders, files in os.walk(top):
        folders.sort()
        names = sorted(name for name in files if "tfevents" in name)
        if names:
            yield Path(folder), names


def _newest(paths: list[Path]) -> tuple[RunLog | None, list[str]]:
    logs: list[tuple[RunLog, bytes]] = []
    texts: list[str] = []
    for path in sorted(paths, key=lambda path: path.name):
        last: bytes | None = None
        try:
            for last in blobs(path):  # noqa: B007  (the newest is the one that counts)
                pass
        except OSError as error:
            texts.append(f"{path.name} cannot be read: {error.strerror}")
        if last is None:
            continue
        try:
            logs.append((unpacked(last), last))
        except Unreadable as error:
            texts.append(f"{path.name}: {error}")
    if not logs:
        return None, texts
    logs.sort(key=lambda pair: pair[0].wall)
    if not of_one_run([raw for _, raw in logs]):
        texts.append(TWO_WRITERS)
    return logs[-1][0], texts


def blobs(path: Path) -> Iterator[bytes]:
    """Yield the logs in an event file, up to where it was cut short or damaged."""
    needle = TAG.encode()
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if length > _MOST or not _intact(head[:8], head[8:]):
                return
            record = file.read(length)
            if len(record) < length or len(file.read(4)) < 4:
                return
            # Most records hold other things: those are not even parsed. The checksum of a log is
            # within it; that of a record takes a fifth of a second for a megabyte in Python.
            if needle in record:
                yield from _logs_in(record)


def _intact(data: bytes, check: bytes) -> bool:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return struct.unpack("<I", check)[0] == masked_crc32c(data)


def _logs_in(record: bytes) -> Iterator[bytes]:
    from tensorboard.compat.proto import event_pb2

    event = cast(Any, event_pb2).Event()  # its class is made at run time
    try:
        event.ParseFromString(record)
    except Exception:  # not a record of an event file
        return
    for value in event.summary.value:
        if value.tag == TAG and len(value.tensor.string_val) == 1:
            yield value.tensor.string_val[0]
