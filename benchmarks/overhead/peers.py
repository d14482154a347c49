"""What watching a network costs a training step: dynamo_probe beside the installable peers.

`python -m benchmarks.overhead.peers [--rounds N] [--workloads NAME ...]` prints Markdown tables.
All variants of a workload run in one interleaved run, each on its own copy of the model, with one
thread, in CPU time. A peer that is not installed or does not run is listed with the reason.

Few of so many interleaved rounds fall on the one update in 100 that is logged. So the cost at every
k updates is put together from two medians: ((k - 1) x an update of the variant with interval k on
which nothing is logged + an update of the variant that logs every one) / k.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.overhead.interleaved import seconds, spread
from benchmarks.overhead.variants import OURS, PEERS, Attach, Update, Variant, bare
from benchmarks.overhead.workloads import WORKLOADS, ModuleBlock, Workload, gpt_4

INTERVALS = (1, 10, 100)
TRIAL = 3  # updates of each variant before the clock starts
LIMIT = 20  # a variant whose update takes so many bare ones is left out of the run


def workload(name: str) -> Workload:
    """Return the workload of that name, with every activation function a module."""
    made = WORKLOADS[name]()
    if name != "GPT 4 layers":
        return made
    return gpt_4(lambda: ModuleBlock(192, heads=2))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a variant costs: step-time ratios by interval, and memory beyond the bare step's peak.

    Attributes:
        ratio: {updates between two readings: time of a step / time of a bare step}.
        memory: MiB of tensors at the peak of a logged update, less those of a bare one; of a later
            update and of the first.
    """

    ratio: dict[int, float]
    memory: tuple[float, float]


def peak_memory(name: str, variant: Attach) -> tuple[float, float]:
    """Return MiB of tensors at the peak of a logged update, above what was there before it.

    Returns:
        The peak of a later update, and that of the first, in which some look at the model.
    """
    w = workload(name)
    w.update()
    w.optimizer.zero_grad()
    first = _peak(variant(w, 1))
    w = workload(name)
    update = variant(w, 1)
    for _ in range(TRIAL):
        update()
    w.optimizer.zero_grad()  # gradients from before would count as freed
    return _peak(update), first


def _peak(update: Update) -> float:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        update()
    events = profile.profiler.kineto_results.events()  # pyright: ignore
    events = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return float(torch.tensor([e.nbytes() for e in events]).cumsum(0).max()) / 2**20


def measure(
    name: str, rounds: int, peers: Sequence[Variant] = PEERS
) -> tuple[dict[str, Cost], dict[str, str], tuple[float, float]]:
    """Time all variants of a workload in one interleaved run.

    Returns:
        The costs by variant, the reasons of the variants that do not run, and the quartiles of the
        bare step against itself.
    """
    actions: dict[str, Update] = {"bare": workload(name).update, "A/A": workload(name).update}
    missing: dict[str, str] = {}
    kept: list[Variant] = []
    for variant in (OURS, *peers):
        try:
            made = {k: variant.attach(workload(name), k) for k in INTERVALS}
            for update in made.values():
                _try(update, actions["bare"])
        except Exception as error:
            missing[variant.name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            continue
        actions |= {f"{variant.name}/{k}": update for k, update in made.items()}
        kept.append(variant)
    found = seconds(actions, rounds)
    relative = {
        one: [a / b for a, b in zip(times, found["bare"], strict=True)]
        for one, times in found.items()
    }
    base = peak_memory(name, bare)
    costs = {"A/A": Cost(dict.fromkeys(INTERVALS, statistics.median(relative["A/A"])), (0.0, 0.0))}
    first = TRIAL + 2 + 1  # the update of the first timed round; two rounds warm up
    for variant in kept:
        logged = statistics.median(relative[f"{variant.name}/1"])
        ratio: dict[int, float] = {}
        for k in INTERVALS:
            times = enumerate(relative[f"{variant.name}/{k}"], first)
            idle = [one for update, one in times if update % k] or [logged]
            ratio[k] = ((k - 1) * statistics.median(idle) + logged) / k
        later, opening = peak_memory(name, variant.attach)
        costs[variant.name] = Cost(ratio, (later - base[0], opening - base[1]))
    return costs, missing, spread(relative["A/A"])


def _try(update: Update, bare_update: Update) -> None:
    took = [0.0, 0.0]
    for turn in range(TRIAL):
        for index, one in enumerate((bare_update, update)):
            begin = time.process_time()
            one()
            took[index] = time.process_time() - begin
        if turn and took[1] > LIMIT * took[0]:  # the first one may look at the model
            raise RuntimeError(f"an update took {took[1] / took[0]:.0f} times a bare one")


def table(name: str, rounds: int) -> str:
    """Return the workload's costs as a Markdown table."""
    begin = os.getloadavg()[0]
    costs, missing, (low, high) = measure(name, rounds)
    gives = {v.name: (v.gives, "yes" if v.per_unit else "no") for v in (OURS, *PEERS)}
    lines = [
        f"### {name}",
        "",
        f"{rounds} rounds, load {begin:.1f} to {os.getloadavg()[0]:.1f}; A/A quartiles {low:.3f} "
        f"to {high:.3f}.",
        "",
        "| | gives | per unit | every 1 | every 10 | every 100 | memory, MiB | at first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, cost in costs.items():
        what, units = gives.get(variant, ("the bare step again: the noise", "-"))
        later, opening = cost.memory
        ratios = " | ".join(f"{cost.ratio[k]:.3f}" for k in INTERVALS)
        lines.append(f"| {variant} | {what} | {units} | {ratios} | {later:+.2f} | {opening:+.2f} |")
    for variant, reason in missing.items():
        lines.append(f"| {variant} | {gives[variant][0]} | - | not run | | | {reason} | |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    print(f"{datetime.date.today()}, torch {torch.__version__}\n", flush=True)
    for name in options.workloads:
        print(table(name, options.rounds), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
