"""Handwritten digits whose classes trade places: the first sign of lost plasticity in seconds.

The ten classes are permuted anew for every task. Nothing about the images changes, and a fresh
network learns each task equally well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import dynamo_probe as dp
from benchmarks.papers import continual
from benchmarks.papers.continual import ARMS, Run, Setting

__all__ = ["ARMS", "SETTING", "Run", "run"]

SETTING = Setting(
    widths=(64, 128, 128, 128, 10),
    kaiming=True,
    tasks=20,
    updates=200,
    batch_size=32,
    learning_rate=1e-2,
    redo_every=200,
    redo_updates=8,
    redo_tau=0.025,
)


def run(
    arm: str,
    seed: int,
    *,
    setting: Setting = SETTING,
    writer: SummaryWriter | None = None,
    report: Callable[[int, float, float], None] = lambda task, accuracy, dormant: None,
    watchers: Sequence[dp.Instrument] = (),
) -> Run:
    """Train one arm; see `continual.run`."""
    inputs, labels = tasks(seed, setting.tasks)
    return continual.run(
        setting, inputs, labels, arm, seed, writer=writer, report=report, watchers=watchers
    )


def tasks(seed: int, count: int) -> tuple[Tensor, list[Tensor]]:
    """Return the images, `[samples, 64]`, and the classes of all of them in each task."""
    images, digits = load_digits(return_X_y=True)
    inputs, classes = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(digits)
    generator = torch.Generator().manual_seed(1_000 + seed)
    return inputs, [torch.randperm(10, generator=generator)[classes] for _ in range(count)]
