"""Checkpoints: all that a training needs to go on, in one file that is whole or not there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save_checkpoint(
    path: Path, agent: str, settings: dict[str, Any], clock: dict[str, Any], parts: dict[str, Any]
) -> None:
    """Write a checkpoint; an interruption leaves the one before it whole.

    Args:
        path: the file.
        agent: which agent it is of.
        settings: what shapes the training.
        clock: where the training is; tensors and plain values.
        parts: generators of torch or NumPy, and whatever has a `state_dict()`.
    """
    states = {name: _state(part) for name, part in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    saved = {"agent": agent, "settings": settings, "clock": clock, "states": states}
    torch.save(saved, unfinished)
    os.replace(unfinished, path)


def load_checkpoint(
    path: Path, agent: str, settings: dict[str, Any], parts: dict[str, Any]
) -> dict[str, Any]:
    """Load the parts from a checkpoint and return its clock.

    Args:
        path: the file.
        agent: which agent goes on from it.
        settings: what shapes the training now.
        parts: as for `save_checkpoint`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is no whole checkpoint, is another agent's, or a setting differs
            from the checkpoint's; nothing is loaded then.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        made_by, before = saved["agent"], saved["settings"]
        states, clock = saved["states"], saved["clock"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a whole checkpoint of an agent: {error}") from error
    if made_by != agent:
        raise ValueError(f"{path} is a checkpoint of {made_by}; resume it with agents.{made_by}")
    names = sorted(before.keys() | settings.keys())
    other = [name for name in names if before.get(name) != settings.get(name)]
    if other:
        made = ", ".join(f"{name}={before.get(name)!r}" for name in other)
        raise ValueError(f"{path} was made with {made}; set the same to resume it")
    if missing := sorted(parts.keys() ^ states.keys()):
        raise ValueError(
            f"{path} and this run do not both have {', '.join(missing)}; "
            "give the same instruments to resume it"
        )
    for name, part in parts.items():
        _load(part, states[name])
    return clock


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    return part.state_dict()


def _load(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = state
    else:
        part.load_state_dict(state)
