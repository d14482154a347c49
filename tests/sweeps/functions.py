"""Functions that the tests of sweeps run in other processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Found:
    total: int
    threads: int
    process: int


def add(left: int, right: int, seed: int) -> Found:
    return Found(left + 10 * right + 100 * seed, torch.get_num_threads(), os.getpid())


def fails_once(folder: str, seed: int) -> int:
    marker = Path(folder) / f"tried-{seed}"
    if not marker.exists():
        marker.touch()
        raise ZeroDivisionError("the first time")
    return seed


def odd(kind: str, seed: int) -> Any:
    if seed == 1 and kind == "raise":
        raise ZeroDivisionError("seed 1 never works")
    if seed == 1 and kind == "exit":
        os._exit(3)
    if seed == 1 and kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 1 and kind == "result":
        return {"what": lambda: 0}
    if seed == 1 and kind == "words":
        return {"what": torch.zeros(2)}
    return {"seed": seed}


def slow(folder: str, seed: int) -> int:
    (Path(folder) / f"begun-{seed}").touch()
    if seed > 1:
        time.sleep(60)
    return seed


def counted(folder: str, seed: int) -> float:
    with (Path(folder) / "calls").open("a") as file:
        file.write(f"{seed}\n")
    return float("nan") if seed == 2 else seed / 2
