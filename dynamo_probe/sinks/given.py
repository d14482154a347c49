"""Turn what a user gives for sinks into sinks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from dynamo_probe.sinks.function import LogFunction
from dynamo_probe.sinks.sink import Sink


def as_sinks(log_dir: str | os.PathLike[str] | None, given: Sequence[Any]) -> list[Sink]:
    """Return the sinks: TensorBoard for a log directory, writers and log functions wrapped.

    Raises:
        TypeError: when something has no `write` and `close` and cannot be called.
        OSError: when the log directory cannot be written.
    """
    from dynamo_probe.sinks.tensorboard import TensorBoard

    listed: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    sinks: list[Sink] = [] if log_dir is None else [TensorBoard(log_dir)]
    for sink in listed:
        if hasattr(sink, "add_scalar") and hasattr(sink, "_get_file_writer"):
            sinks.append(TensorBoard(writer=sink))
        elif isinstance(sink, Sink) and not isinstance(sink, type):
            sinks.append(sink)
        elif callable(sink) and not isinstance(sink, type):
            sinks.append(LogFunction(sink))
        else:
            raise TypeError(
                f"{sink!r} is no sink; give an object with write(step, readings, events) and "
                "close(), a torch.utils.tensorboard.SummaryWriter, or a function such as wandb.log"
            )
    return sinks
