"""What writing a log costs beside watching: `python -m benchmarks.overhead.writing`.

Processor time of all threads, the writer's among them: on a machine with an idle core less of it is
seen. An MLP of three hidden layers of 512 units, batch 64, one thread of torch. Opening and closing
a log take 0.1 s, which weighs much in runs as short as these.

Found, 500 updates, on a noisy machine (A/A 0.95): 1.18 at every 10, 1.05 at every 100. Longer runs
pay per reading: 1.5 ms, of which 0.15 are for the log of the Dynamo tab.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import torch
from torch import nn

import dynamo_probe as dp
from benchmarks.overhead.interleaved import ratios, seconds, spread


def train(every: int, updates: int, logs: bool) -> None:
    torch.manual_seed(0)
    widths = (64, 512, 512, 512)
    pairs = zip(widths, widths[1:], strict=False)
    layers = [part for wide in pairs for part in (nn.Linear(*wide), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(512, 8))
    optimizer = torch.optim.Adam(net.parameters())
    x = torch.randn(64, 64)
    with tempfile.TemporaryDirectory() as folder:
        log_dir = folder if logs else None
        with dp.watch(net, optimizer, dp.Dormancy(every=every), log_dir=log_dir):
            for _ in range(updates):
                optimizer.zero_grad()
                net(x).square().mean().backward()
                optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| every | A/A | with a log | quartiles |")
    print("|---:|---:|---:|---|")
    for every in (10, 100):
        kinds = {"base": False, "again": False, "log": True}
        actions = {name: partial(train, every, options.updates, x) for name, x in kinds.items()}
        found = seconds(actions, options.rounds)
        median = ratios(found, "base")
        parts = [a / b for a, b in zip(found["log"], found["base"], strict=True)]
        low, high = spread(parts)
        print(
            f"| {every} | {median['again']:.3f} | {median['log']:.3f} | {low:.3f} to {high:.3f} |"
        )


if __name__ == "__main__":
    main()
