"""Run a function in two processes with gloo, and compare with one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2


def _enter(rank: int, function: Callable[..., Any], args: tuple[Any, ...], folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    try:
        torch.save(function(rank, *args), f"{folder}/result{rank}")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def on_two_ranks(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what `function(rank, *args)` returns on each of two ranks; it must be importable."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (function, args, folder), nprocs=RANKS)
        return [
            torch.load(Path(folder) / f"result{rank}", weights_only=False) for rank in range(RANKS)
        ]
