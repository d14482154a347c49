"""Connections go and come while a classifier learns, and pruning costs more once the rate is low.

GraNet (Liu et al. 2021) takes the density from 50 % to 10 % along a cubic schedule and exchanges
connections on the way. Twelve times the watch asks what pruning would cost at that moment, beside
the same network left as it is; the learning rate drops at half and at three quarters of the way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import dynamo_probe as dp
from dynamo_probe.demos.networks import mlp

BATCH, CLASSES, FEATURES, SAMPLES = 64, 10, 20, 4000


def run(
    log_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    updates: int = 1500,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train sparsely; see `demos.Demo.run` for the arguments."""
    generator = torch.Generator().manual_seed(seed)
    inputs, classes = classification(generator)
    held_out = slice(0, SAMPLES // 4)
    network = mlp((FEATURES, 128, 128, 64, CLASSES), generator)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, [updates // 2, updates * 3 // 4], 0.1)
    apart = torch.Generator().manual_seed(seed + 1)  # the trial trains on batches of its own

    def step(source: torch.Generator) -> None:
        rows = torch.randint(SAMPLES // 4, SAMPLES, (BATCH,), generator=source)
        loss = F.cross_entropy(network(inputs[rows]), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def accuracy() -> float:
        with torch.no_grad():
            right = network(inputs[held_out]).argmax(1) == classes[held_out]
        return right.float().mean().item()

    every = max(1, updates // 30)
    instruments = [
        dp.GraNet(0.1, 0.5, start=0, end=max(1, updates * 4 // 5), every=every),
        dp.Topology(every=every),
        dp.Dormancy(every=every),
        dp.PruningPlasticity(
            every=max(1, updates // 12),
            train_step=lambda: step(apart),
            evaluate=accuracy,
            rates=(0.9, 0.98),
            updates=60,
            also=[apart],
        ),
    ]
    with dp.watch(network, optimizer, instruments, log_dir=Path(log_dir, "granet"), seed=seed):
        for update in range(updates):
            step(generator)
            drops.step()
            if update % every == 0:
                progress(update)
    progress(updates)


def classification(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return inputs, `[samples, features]`, and what a random network calls them, `[samples]`."""
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    hidden = torch.randn(FEATURES, 32, generator=generator)
    outward = torch.randn(32, CLASSES, generator=generator)
    return inputs, ((inputs @ hidden).relu() @ outward).argmax(1)
