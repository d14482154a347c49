"""Random labels of Gaussian inputs, drawn anew for every task: can the network still memorise?"""

from __future__ import annotations

import torch

from benchmarks.papers import continual
from benchmarks.papers.continual import ARMS, Run, Setting

__all__ = ["ARMS", "SETTING", "Run", "run"]

SAMPLES = 512
SETTING = Setting(
    widths=(64, 128, 128, 128, 10),
    kaiming=False,
    tasks=12,
    updates=200,  # 25 epochs
    batch_size=64,
    learning_rate=1e-3,
    redo_every=100,
    redo_updates=4,
    redo_tau=0.025,
)


def run(arm: str, seed: int, *, setting: Setting = SETTING) -> Run:
    """Train one arm; see `continual.run`."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    inputs = torch.randn(SAMPLES, setting.widths[0], generator=generator)
    labels = [
        torch.randint(setting.widths[-1], (SAMPLES,), generator=generator)
        for _ in range(setting.tasks)
    ]
    return continual.run(setting, inputs, labels, arm, seed)
