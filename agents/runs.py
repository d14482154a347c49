"""What a training run of any agent needs besides its algorithm: settings, checkpoints, progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Result:
    """What a training gave.

    Attributes:
        episode_steps: the environment step at which each episode ended, `[episodes]`.
        episode_returns: the undiscounted return of each episode, `[episodes]`.
        readings: scalar readings of the watch, `{tag: (updates, values)}`; empty without one.
        network: the network as trained.
        updates: updates made, with those before a resumed checkpoint.
        seconds: wall-clock time of this call.
        update_seconds: processor time of this call from its first update on, acting included.
        log_dir: where the log is.
    """

    episode_steps: np.ndarray
    episode_returns: np.ndarray
    readings: Mapping[str, tuple[np.ndarray, np.ndarray]]
    network: nn.Module
    updates: int
    seconds: float
    update_seconds: float
    log_dir: Path | None


@contextmanager
def processor_settings(threads: int) -> Iterator[None]:
    """Count denormal floats as zero and set torch's threads; put both back afterwards.

    The Adam moments of dormant units decay into denormals, and arithmetic with those makes the
    training of a dormant network about twice as slow.
    """
    threads_before, flushed_before = torch.get_num_threads(), sys.float_info.min * 0.5 == 0.0
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)
        torch.set_num_threads(threads_before)


def flat_gradient(parameters: list[nn.Parameter]) -> Tensor:
    """Make the gradients of parameters views of one row `[1, total]`, and return the row.

    Cleared (`zero_`) and clipped (`renorm_`) as one tensor, which for a small network saves a fifth
    of an update. Do not let the optimizer set the gradients to None: that drops the views.
    """
    row = parameters[0].new_zeros(1, sum(parameter.numel() for parameter in parameters))
    pieces = row[0].split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)
    return row


def fill_in(path: Path | None, env_id: str, seed: int) -> Path | None:
    """Fill `{env_id}`, `{seed}` and `{time}` into a path."""
    if path is None:
        return None
    now = time.strftime("%Y%m%d-%H%M%S")
    return Path(str(path).format(env_id=env_id.replace("/", "-"), seed=seed, time=now))


def progress_bar(shown: bool) -> Progress:
    """Return a progress bar with a field `figures`; it is quiet where there is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )


def progress_figures(episodes: list[tuple[int, float]], speed: float, dormant: float | None) -> str:
    """Return one line: mean return of the last 20 episodes, dormant fraction, updates a second."""
    shown = [f"return {np.mean([x for _, x in episodes[-20:]]):.1f}"] if episodes else []
    shown += [f"dormant {dormant:.0%}"] if dormant is not None else []
    return "  ".join([*shown, f"{speed:.0f} updates/s"])


def save_checkpoint(
    path: Path, settings: dict[str, Any], clock: dict[str, Any], parts: dict[str, Any]
) -> None:
    """Write a checkpoint; an interruption leaves the one before it whole.

    Args:
        path: the file.
        settings: what shapes the training.
        clock: where the training is; tensors and plain values.
        parts: whatever has a `state_dict()`.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save({"settings": settings, "clock": clock, "states": states}, unfinished)
    os.replace(unfinished, path)


def load_checkpoint(path: Path, settings: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """Load the parts from a checkpoint and return its clock.

    Args:
        path: the file.
        settings: what shapes the training now.
        parts: whatever has a `load_state_dict(state)`.

    Raises:
        ValueError: when a setting differs from the checkpoint's; nothing is loaded then.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    before = saved["settings"]
    names = sorted(before.keys() | settings.keys())
    other = [name for name in names if before.get(name) != settings.get(name)]
    if other:
        made = ", ".join(f"{name}={before.get(name)!r}" for name in other)
        raise ValueError(f"{path} was made with {made}; set the same to resume it")
    for name, part in parts.items():
        part.load_state_dict(saved["states"][name])
    return saved["clock"]
