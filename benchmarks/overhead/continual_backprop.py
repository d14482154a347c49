"""What continual backpropagation adds to an update, by how often it looks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.treatments.continual_backprop import ContinualBackprop

WORKLOADS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "64-128-128-10, batch 32": lambda: (
        nn.Sequential(
            *(nn.Linear(64, 128), nn.ReLU()), *(nn.Linear(128, 128), nn.ReLU()), nn.Linear(128, 10)
        ),
        torch.randn(32, 64),
    ),
    "conv 16, linear 128, batch 32 of 4x10x10": lambda: (
        nn.Sequential(
            *(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 6)),
        ),
        torch.randn(32, 4, 10, 10),
    ),
}
ARMS: dict[str, Callable[[], list[dp.Treatment]]] = {
    "none": list,
    "every=1": lambda: [ContinualBackprop()],
    "every=1, rate 1e-2": lambda: [ContinualBackprop(1e-2)],
    "every=10": lambda: [ContinualBackprop(every=10)],
}
ROUNDS, UPDATES, WARMUP = 20, 100, 2


def main() -> None:
    """Take turns, and print the median time of an update for each."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name, make in WORKLOADS.items():
        runs = {arm: _Run(*make(), treatments()) for arm, treatments in ARMS.items()}
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(ROUNDS):
            for arm, run in runs.items():
                times[arm].append(run.seconds())
        plain = statistics.median(times["none"][WARMUP:])
        print(name)
        for arm, found in times.items():
            median = statistics.median(found[WARMUP:])
            print(f"  {arm:<20} {1e6 * median:6.0f} us an update, {1e6 * (median - plain):+5.0f}")


class _Run:
    def __init__(self, network: nn.Module, inputs: Tensor, treatments: list[dp.Treatment]) -> None:
        self.network, self.inputs = network, inputs
        self.optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
        if treatments:
            self.watch = dp.watch(network, self.optimizer, treatments, on_error="raise")

    def seconds(self) -> float:
        """Return the processor time of an update."""
        started = time.process_time()
        for _ in range(UPDATES):
            self.optimizer.zero_grad()
            self.network(self.inputs).square().mean().backward()
            self.optimizer.step()
        return (time.process_time() - started) / UPDATES


if __name__ == "__main__":
    main()
