"""What dormancy costs on a GPU: synchronisations, CUDA graphs, step time, tokens per second.

`python -m benchmarks.overhead.gpu [--rounds N]` prints Markdown. Without a GPU it says so and ends
well. NOT YET RUN: it was written on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import dynamo_probe as dp
from benchmarks.overhead.workloads import ModuleBlock
from tests.models import GPT

BATCH, LENGTH, VOCABULARY = 4, 1024, 50_304
INTERVALS = (1, 10, 100)


class Run:
    """A GPT the size of GPT-2 small and its bf16 training step, watched or not."""

    def __init__(self, every: int | None, mode: str | None = None) -> None:
        """Build it; `every` None leaves it bare, `mode` is that of torch.compile."""
        torch.manual_seed(0)
        model = GPT(width=768, depth=12, vocabulary=VOCABULARY)
        model.blocks = nn.ModuleList(ModuleBlock(768, heads=12) for _ in range(12))
        self.model: nn.Module = model.to("cuda")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)
        tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), device="cuda")
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
        self.watch: dp.Watch | None = None
        if every is not None:
            dormancy = dp.Dormancy(every=every)
            self.watch = dp.watch(
                self.model,
                self.optimizer,
                dormancy,
                probe_batch=self.inputs[:1],  # shows the layers before the first compiled call
                on_error="raise",
            )
        self.forward: Callable[[Tensor], Tensor] = self.model
        if mode is not None:
            self.forward = torch.compile(self.model, mode=mode, fullgraph=True)

    def update(self) -> None:
        """Make one training step; nothing in it waits for the GPU."""
        torch.compiler.cudagraph_mark_step_begin()  # other runs' steps lie between two of these
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(self.forward(self.inputs).flatten(0, 1), self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def milliseconds(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Time updates by CUDA events, the runs in turn, so that clocks and heat hit all alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 5):
        for name, run in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run.update()
            end.record()
            torch.cuda.synchronize()
            if turn >= 5:
                found[name].append(begin.elapsed_time(end))
    return found


def waits(run: Run, updates: int) -> dict[str, int]:
    """Count what makes the host wait over some updates."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(updates):
            run.update()
    names = [event.name for event in profiled.events() or ()]
    return {
        # The profiler itself synchronises the device at its end: cudaDeviceSynchronize is left out.
        "cudaStreamSynchronize": names.count("cudaStreamSynchronize"),
        "cudaEventSynchronize": names.count("cudaEventSynchronize"),
        "copies to the host": sum("Memcpy DtoH" in name for name in names),
    }


def report_waits() -> None:
    """Print the waits: those of unlogged updates must not differ from the bare run's."""
    print("\n| 10 updates | cudaStreamSynchronize | cudaEventSynchronize | copies to the host |")
    print("|---|---|---|---|")
    for name, every in (("bare", None), ("nothing logged", 10**9), ("all logged", 1)):
        run = Run(every)
        for _ in range(5):
            run.update()
        found = waits(run, 10)
        print(f"| {name} | " + " | ".join(map(str, found.values())) + " |", flush=True)
        _let_go(run)


def report_times(title: str, mode: str | None, rounds: int) -> None:
    """Print step times in one interleaved run: the amortised ratio, tokens per second, memory."""
    choices: list[tuple[str, int | None]] = [("bare", None), ("A/A", None)]
    choices += [(f"every {every}", every) for every in INTERVALS]
    print(f"\n{title}\n\n| | step, ms | ratio | tokens per second |\n|---|---|---|---|")
    runs: dict[str, Run] = {}
    try:
        runs |= {name: Run(every, mode) for name, every in choices}
        found = milliseconds(runs, rounds)
    except Exception as error:  # a mode that torch cannot run here is a result, too
        print(f"| not run | {type(error).__name__}: {str(error).splitlines()[0][:200]} | | |")
        return
    finally:
        for run in runs.values():
            _let_go(run)
    base = statistics.median(found["bare"])
    logged = statistics.median(found["every 1"])
    for name, every in choices:
        step = statistics.median(found[name])
        if every is not None:
            # The median of a sparse run is its unlogged update; the logged one is added by weight.
            step = ((every - 1) * step + logged) / every
        rate = 1e3 * BATCH * LENGTH / step
        print(f"| {name} | {step:.2f} | {step / base:.3f} | {rate:,.0f} |", flush=True)


def report_graphs() -> None:
    """Print how many graphs torch compiled and broke for a gate that opens and shuts."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    run = Run(10, "reduce-overhead")
    for _ in range(31):
        run.update()
    torch.cuda.synchronize()
    statistic: dict[str, Any] = dict(counters["stats"])
    readings = run.watch.history.series("dormancy/samples") if run.watch is not None else ([], [])
    print(
        f"\nCUDA graphs (reduce-overhead), every 10, 31 updates: {statistic.get('unique_graphs')} "
        f"graphs (2 expected), breaks {sum(counters['graph_break'].values())}, CUDA graphs skipped "
        f"{dict(counters['inductor']).get('cudagraph_skips', 0)}, readings {len(readings[0])} "
        f"(4 expected), samples {sorted(set(readings[1]))} ([{BATCH * LENGTH}] expected)"
    )
    _let_go(run)


def _let_go(run: Run) -> None:
    if run.watch is not None:
        run.watch.close()
    run.__dict__.clear()
    torch.cuda.empty_cache()


def main() -> None:
    """Print everything, or why there is nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device, and these figures are a GPU's")
        return
    name = torch.cuda.get_device_name()
    print(f"{datetime.date.today()}, {name}, torch {torch.__version__}, bf16, {BATCH} x {LENGTH}")
    report_waits()
    report_times("eager", None, rounds)
    report_graphs()
    report_times("torch.compile", "default", rounds)
    report_times("torch.compile, reduce-overhead (CUDA graphs)", "reduce-overhead", rounds)


if __name__ == "__main__":
    main()
