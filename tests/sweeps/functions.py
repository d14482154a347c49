"""Functions that the tests of sweeps run in other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
        return {"what": object}
    if seed == 1 and kind == "system exit":
        sys.exit("no more")
    if seed == 1 and kind == "child":
        multiprocessing.get_context("spawn").Process(target=print).start()
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


def numbers(seed: int) -> Any:
    return {"array": np.arange(2), "tensor": torch.tensor(1.5), "seed": np.int64(seed)}


def dies_between(seed: int) -> int:
    """Answer, and be killed a moment later, when the process has nothing to do or the next call."""
    os.system(f"(sleep 0.02; kill -9 {os.getpid()}) &")
    return seed
