"""Units go dormant while the targets move, and what recycling them changes.

A classifier learns ten clusters of points. Every 200 updates the ten classes trade places: nothing
about the points changes, so each task is as hard as the first. Two runs on the same data: `plain`
loses units, and with them the ability to learn; `redo` recycles them (Sokar et al. 2023).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import dynamo_probe as dp
from dynamo_probe.demos.networks import mlp

TASK, BATCH, CLASSES, FEATURES, SAMPLES = 200, 32, 10, 32, 2000


class Accuracy(dp.Probe):
    """The share of all points that the network gets right: a probe of one's own."""

    name = "accuracy"

    def __init__(self, every: int, points: Tensor) -> None:
        """Keep the points; whoever trains sets `classes`."""
        super().__init__(every)
        self.points, self.classes = points, torch.empty(0)

    def fire(self, site: dp.Site) -> None:
        """Read it."""
        with torch.no_grad():
            right = site.model(self.points).argmax(1) == self.classes
        site.emit("accuracy", right.double().mean().item())


def run(
    log_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    updates: int = 4000,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train without and with ReDo; see `demos.Demo.run` for the arguments."""
    for number, name in enumerate(("plain", "redo")):
        treatments = [dp.ReDo(tau=0.1, every=TASK, updates=8)] if name == "redo" else []

        def told(update: int, before: int = number * updates) -> None:
            progress(before + update)

        train(Path(log_dir, name), treatments, seed, updates, told)


def train(
    log_dir: Path,
    treatments: Sequence[dp.Treatment],
    seed: int,
    updates: int,
    progress: Callable[[int], None],
) -> None:
    """Train one network through the tasks under a watch."""
    generator = torch.Generator().manual_seed(seed)
    points, clusters = clustered_points(generator)
    network = mlp((FEATURES, 64, 64, 64, CLASSES), generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    accuracy = Accuracy(TASK, points)
    alert = dp.Alert("dormancy/tau=0.1", above=0.4, for_updates=TASK)
    instruments = [dp.Dormancy(every=50), dp.Updates(every=50), accuracy, alert, *treatments]
    with dp.watch(network, optimizer, instruments, log_dir=log_dir, seed=seed):
        for update in range(updates):
            if update % TASK == 0:
                accuracy.classes = torch.randperm(CLASSES, generator=generator)[clusters]
                progress(update)
            rows = torch.randint(SAMPLES, (BATCH,), generator=generator)
            loss = F.cross_entropy(network(points[rows]), accuracy.classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    progress(updates)


def clustered_points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points, `[samples, features]`, and the cluster of each, `[samples]`."""
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    clusters = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    noise = torch.randn(SAMPLES, FEATURES, generator=generator)
    return centres[clusters] + 1.5 * noise, clusters
