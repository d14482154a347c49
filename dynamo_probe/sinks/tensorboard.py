"""Readings in TensorBoard: one record for each update, few tags, and a picture of the layers."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.logs.reading import newest_of
from dynamo_probe.logs.recording import Recording
from dynamo_probe.logs.runlog import RunLog, packed
from dynamo_probe.logs.times import WriteTimes
from dynamo_probe.sinks.selection import ImageTimes, ScalarTags, primary_tau

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from dynamo_probe.sinks.summaries import Value

_log = logging.getLogger(__name__)

_LAYER = re.compile(r"dormancy/layer/(?P<layer>.+)/tau=(?P<tau>[^/]+)")
_SCORES = "dormancy/scores"
_HEATMAP = "dormancy/heatmap"
_LOOKED_THROUGH = 100_000_000
"""Bytes of event files that a new run looks through for another run's log; they take 2 seconds."""


class TensorBoard:
    """Writes readings and events where TensorBoard finds them, with or without TensorFlow.

    Everything of an update is one record in the file: its scalars (32 bits each), the unit scores
    of all layers as one histogram `dormancy/scores`, its events as texts `events/<kind>`, and, at
    updates evenly apart on a logarithmic axis, a picture `dormancy/heatmap` of the dormant fraction
    by layer and time. Beside that stands the log of the whole run so far, for the Dynamo tab and
    the report, written at times evenly apart on a logarithmic axis. In a local directory a record
    is on the disk when `write` returns.

    Args:
        log_dir: the directory of the run, made when it does not exist; best one of its own. By
            default `runs/<date>_<host>`. The event file is opened with the first write.
        writer: write through this `SummaryWriter` instead. It is flushed at `close` and never
            closed; its charts are left alone; `purge_step` is its owner's to set.
        max_scalar_tags: the most scalar tags that are written, as many slow TensorBoard down. Tags
            with fewer slashes come first, and a quarter is held back for tags with at most one, so
            that what is read later (`redo/recycled`) finds room. The other figures are in the
            history and in the picture.
        flush_secs: how often a directory on a remote store is brought up to date, in seconds.

    Raises:
        ValueError: when both `log_dir` and `writer` are given, or `max_scalar_tags < 1`.
        OSError: when `log_dir` cannot be made or written to.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        writer: SummaryWriter | None = None,
        max_scalar_tags: int = 100,
        flush_secs: int = 30,
    ) -> None:
        """Check that the directory can be written to; open nothing yet."""
        # TensorBoard takes a fifth of a second to import: only those who use it pay.
        from dynamo_probe.sinks import summaries
        from dynamo_probe.sinks.heatmap import LayerFractions, draw

        if writer is not None and log_dir is not None:
            raise ValueError(
                "log_dir and writer are both given; leave out log_dir: the writer has one"
            )
        if max_scalar_tags < 1:
            raise ValueError(f"max_scalar_tags is {max_scalar_tags}; give 1 or more")
        self._summaries = summaries
        self._draw = draw
        self._borrowed = writer is not None
        self._writer = writer
        self._log_dir = "" if self._borrowed else _usable(log_dir)
        self._flush_secs = flush_secs
        self._tags = ScalarTags(max_scalar_tags)
        self._fractions = LayerFractions()
        self._tau: str | None = None
        self._images = ImageTimes()
        self._recording = Recording()
        self._log_times = WriteTimes()
        self._log_behind = False
        self._image_due = False
        self._laid_out = self._borrowed
        self._purge_step: int | None = None
        self._step = 0
        self._closed = False

    def recall(self, beginnings: Mapping[int, Sequence[str]]) -> None:
        """Write the tags that were written before a resumption, and no others in their place."""
        for _, tags in sorted(beginnings.items()):
            self._note_tau(tags)
            self._tags.admit(tags, self._tau)

    def resume(self, step: int) -> None:
        """Hide what this directory holds of updates after `step`. A given writer is left alone."""
        self._fractions.forget_after(step)
        self._recall_log()
        self._recording.forget_after(step)
        self._log_behind = False
        self._image_due = self._image_due and len(self._fractions) > 0
        self._step = min(self._step, step)
        if self._borrowed:
            _log.info("the given SummaryWriter hides outdated steps if made with purge_step")
        else:
            self._purge_step = step + 1

    def write(self, step: int, readings: Sequence[Reading], events: Sequence[Event]) -> None:
        """Write one update as one record.

        Raises:
            OSError: when the file cannot be written. The next write starts a new file; what was
                written before stays readable.
            RuntimeError: after `close`.
        """
        if self._closed:
            raise RuntimeError("this TensorBoard sink is closed; make a new one")
        self._step = step
        scalars = [(reading.tag, float(reading.value)) for reading in readings if reading.scalar]
        self._note_fractions(step, scalars)
        values = self._scalars(scalars) + self._histogram(readings)
        values += self._summaries.texts(events)
        if news := self._tags.news():
            values.append(self._summaries.note("events/note", self._summaries.escaped(news)))
        if drawn := self._image_due and self._images.due(step):
            values.append(self._heatmap())
        if scalars and not self._laid_out:
            values.append(self._summaries.layout(self._tau))
        if readings or events:
            if not len(self._recording):
                events = [*events, *self._others(step)]
            self._recording.add(step, readings, events, time.time())
            self._log_behind = len(self._recording) > 0
        if self._log_behind and self._log_times.due(time.monotonic()):
            values.append(self._log())
        self._record(step, values)
        # What is done once counts as done only now: a write that fails is made up for later.
        self._laid_out = self._laid_out or bool(scalars)
        if news:
            _log.warning("%s", news)
            self._tags.told = True
        if drawn:
            self._images.drawn(step)
            self._image_due = False

    def close(self) -> None:
        """Write the last picture, then close the file. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            values = [self._heatmap()] if self._image_due else []
            if self._log_behind:
                values.append(self._log())
            self._record(self._step, values)
        finally:
            if self._writer is not None:
                self._writer.flush()
                if not self._borrowed:
                    self._writer.close()

    def __repr__(self) -> str:
        """Say where it writes to."""
        return f"TensorBoard({self._where()!r})"

    def _recall_log(self) -> None:
        """Go on from the log that lies in the directory, if this process has none of its own."""
        log = None if len(self._recording) else self._log_found()
        if log is not None:
            self._recording.go_on_from(log)

    def _others(self, step: int) -> list[Event]:
        """Say so where another run's log lies in the directory already."""
        log = self._log_found(_LOOKED_THROUGH)
        if log is None or log.writer in self._recording.earlier:
            return []
        reason = (
            "this directory holds the log of another run already, and TensorBoard mixes the two; "
            "give each run a log_dir of its own, or load the watch's state to go on with a run"
        )
        _log.warning("%s: %s", self._where(), reason)
        return [Event(step, "alert", "log_dir", {"reason": reason})]

    def _where(self) -> str:
        return str(self._writer.get_logdir() if self._writer is not None else self._log_dir)

    def _log_found(self, most: float = float("inf")) -> RunLog | None:
        """Return the log that lies in the directory, if there is one that can be read."""
        try:
            return None if "://" in self._where() else newest_of(self._where(), most)
        except OSError as error:
            _log.warning("the log of the run before cannot be read: %s", error)
            return None

    def _log(self) -> Value:
        raw = packed(self._recording.log())
        self._log_times.written(time.monotonic(), len(raw))
        self._log_behind = False
        return self._summaries.log(raw)

    def _record(self, step: int, values: list[Value]) -> None:
        if not values:
            return
        try:
            writer = self._opened()
            writer._get_file_writer().add_summary(self._summaries.summary(values), step)
            if not self._borrowed and "://" not in self._log_dir:
                writer.flush()  # waits for the writer's own thread, so that a failure shows here
        except BaseException:
            self._abandon()
            raise
        self._purge_step = None

    def _opened(self) -> SummaryWriter:
        """Return the writer; open a file when there is none, and mark a resumption."""
        if self._writer is None:
            self._writer = self._summaries.SummaryWriter(
                self._log_dir, max_queue=1000, flush_secs=self._flush_secs
            )
        if self._purge_step is not None:
            # Twice: one loader of TensorBoard takes the first start it meets for the run's own,
            # which hides nothing. That is also why SummaryWriter's purge_step is not enough.
            for _ in range(2):
                start = self._summaries.start()
                self._writer._get_file_writer().add_event(start, step=self._purge_step)
        return self._writer

    def _abandon(self) -> None:
        """Give up a writer that failed: its thread is dead and its last record may be torn."""
        if self._borrowed:
            return
        broken, self._writer = self._writer, None
        self._laid_out = False
        if broken is not None:
            with contextlib.suppress(Exception):
                broken.close()

    def _scalars(self, scalars: Sequence[tuple[str, float]]) -> list[Value]:
        self._tags.admit((tag for tag, _ in scalars), self._tau)
        return [
            self._summaries.scalar(tag, value)
            for tag, value in scalars
            if tag in self._tags.admitted
        ]

    def _histogram(self, readings: Sequence[Reading]) -> list[Value]:
        scores = [
            np.ravel(reading.value)
            for reading in readings
            if not reading.scalar and reading.tag.startswith(_SCORES + "/")
        ]
        if not scores:
            return []
        pooled = self._summaries.histogram(_SCORES, np.concatenate(scores))
        return [] if pooled is None else [pooled]

    def _note_fractions(self, step: int, scalars: Sequence[tuple[str, float]]) -> None:
        found = [(match, value) for tag, value in scalars if (match := _LAYER.fullmatch(tag))]
        self._note_tau(tag for tag, _ in scalars)
        row = {match["layer"]: value for match, value in found if match["tau"] == self._tau}
        if row:
            self._fractions.add(step, row)
            self._image_due = True

    def _note_tau(self, tags: Iterable[str]) -> None:
        taus = [match["tau"] for tag in tags if (match := _LAYER.fullmatch(tag))]
        if self._tau is None and taus:
            self._tau = primary_tau(taus)

    def _heatmap(self) -> Value:
        fractions, layers, updates = self._fractions.matrix()
        title = (
            f"Dormant fraction by layer (tau = {self._tau}), "
            f"updates {updates[0]:,} to {updates[-1]:,}"
        )
        return self._summaries.picture(
            _HEATMAP, self._draw(fractions, layers, updates, title).pixels
        )


def _usable(log_dir: str | os.PathLike[str] | None) -> str:
    """Make the directory and prove that a file can be made in it; remote stores are not tried."""
    if log_dir is None:
        moment = time.strftime("%b%d_%H-%M-%S")
        log_dir = Path("runs") / f"{moment}_{socket.gethostname()}"
    if "://" in str(log_dir):
        return str(log_dir)
    try:
        os.makedirs(log_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=log_dir):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to log_dir {str(log_dir)!r} ({error.strerror}); "
            "give a directory that can be made and written to"
        ) from error
    return str(log_dir)
