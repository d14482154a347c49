"""How the cost of dormancy grows with the depth and the width of a network.

`python -m benchmarks.overhead.growth [--rounds N]` prints Markdown tables of step-time ratios, one
interleaved run for each network, with one thread, in CPU time. The batch shrinks with the network,
so that a step stays short: the small batch is the hard case, because what is done for each reading
does not shrink with it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics

import torch
import torch.nn.functional as F

import dynamo_probe as dp
from benchmarks.overhead.interleaved import seconds
from benchmarks.overhead.workloads import Workload, from_model
from tests.models import mlp

DEPTHS = (4, 8, 16, 32, 64)
WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
BATCH = 128
INTERVALS = (1, 10)


def network(depth: int, width: int, batch: int) -> Workload:
    """Return `depth` linear layers of `width` units, the last without an activation function."""
    torch.manual_seed(0)
    x, y = torch.randn(batch, width), torch.randint(width, (batch,))
    model = mlp(*[width] * (depth + 1))
    plain = torch.optim.SGD(model.parameters(), 1e-3)  # four copies of the widest have to fit
    return from_model(model, x, lambda out: F.cross_entropy(out, y), plain)


def row(depth: int, width: int, batch: int, rounds: int) -> str:
    """Return the ratios of one network as a line of the table."""
    bare, again = network(depth, width, batch), network(depth, width, batch)
    actions = {"bare": bare.update, "A/A": again.update}
    watches: list[dp.Watch] = []
    for every in INTERVALS:
        watched = network(depth, width, batch)
        dormancy = dp.Dormancy(every=every)
        watches.append(dp.watch(watched.model, watched.optimizer, dormancy, on_error="raise"))
        actions[f"{every}"] = watched.update
    found = seconds(actions, rounds)
    for watch in watches:
        watch.close()
    step = statistics.median(found["bare"])
    aa, logged, idle = (
        statistics.median(a / b for a, b in zip(found[name], found["bare"], strict=True))
        for name in ("A/A", "1", "10")
    )
    ten = (9 * idle + logged) / 10
    return (
        f"| {depth} | {width} | {batch} | {1e3 * step:.1f} | {aa:.3f} | {logged:.3f} "
        f"| {1e3 * step * (logged - 1):.2f} | {ten:.3f} |"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"{datetime.date.today()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n")
    print("| layers | width | batch | step, ms | A/A | every 1 | of that, ms | every 10 |")
    print("|---|---|---|---|---|---|---|---|")
    for depth in DEPTHS:
        print(row(depth, 256, BATCH, rounds), flush=True)
    for width in WIDTHS:
        # Few rounds suffice where a step is long.
        batch = BATCH if width <= 1024 else BATCH * 1024 // width
        print(row(4, width, batch, rounds if width <= 2048 else max(5, rounds // 4)), flush=True)


if __name__ == "__main__":
    main()
