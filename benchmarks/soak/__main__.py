"""Soak a watch: long runs, and runs that are killed and resumed.

`python -m benchmarks.soak [--updates N] [--kills K] [--log-dir DIR] [--json FILE]`

Without kills it trains in this process, and says whether memory, file handles and threads were flat
and whether the log can be read. With kills it says whether a run that was killed and resumed is the
undisturbed one. The exit status is 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import dynamo_probe as dp
from benchmarks.soak import killing, logs
from benchmarks.soak.process import GROWTH, Sample, growths, sample, second_half, slope
from benchmarks.soak.training import Plan, Run


def soak(plan: Plan) -> dict[str, Any]:
    """Train in this process and measure it every hundredth of the run."""
    samples: list[Sample] = []
    started = time.perf_counter()

    def measure(step: int, watch: dp.Watch) -> None:
        if step % max(1, plan.updates // 100) == 0:
            watches = (watch, run.language.watch)
            points = sum(len(one.history) for one in watches)
            events = sum(len(one.events) for one in watches)
            samples.append(sample(step, points, events))
            if len(samples) % 10 == 0:
                seconds = time.perf_counter() - started
                print(f"{seconds:6.0f} s  {samples[-1]}", flush=True)

    run = Run(plan)
    with run.watch, run.language.watch:
        run.train(measure)
        state = run.watch.state_dict()
    seconds = time.perf_counter() - started
    found, complaints = logs.read(plan.log)
    late = second_half(samples)
    return {
        "updates": plan.updates,
        "seconds": round(seconds, 1),
        "fired": {one.name: one.fired for one in run.watch.doctor().instruments},
        "tags": len(found),
        "points": sum(len(steps) for steps, _ in found.values()),
        "log_bytes": sum(path.stat().st_size for path in plan.log.iterdir()),
        "memory_bytes_per_update": round(slope(late), 3),
        "memory_bytes_allowed": GROWTH,
        "memory_late": [min(s.memory for s in late), max(s.memory for s in late)],
        "objects_late": [min(s.objects for s in late), max(s.objects for s in late)],
        "handles": sorted({s.handles for s in late}),
        "threads": sorted({s.threads for s in late}),
        "problems": growths(samples) + complaints + logs.faults(found, state["history"]["scalars"]),
        "samples": [asdict(one) for one in samples],
    }


def machine() -> dict[str, Any]:
    """Say where and with what the figures were taken."""
    cpu = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    return {"cpu": cpu, "python": platform.python_version(), "torch": torch.__version__}


def main() -> None:
    """Run, print, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=0, help="how often to kill and resume the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--log-dir", type=Path, help="an empty directory; by default a temporary")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if options.log_dir is not None and options.log_dir.exists() and any(options.log_dir.iterdir()):
        parser.error(f"{options.log_dir} is not empty; give a new directory")
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.log_dir or Path(temporary)
        if options.kills:
            outcome = killing.run(options.updates, options.kills, directory, options.seed)
            result = {"updates": options.updates, **asdict(outcome), "problems": outcome.problems}
        else:
            directory.mkdir(parents=True, exist_ok=True)
            result = soak(Plan(options.updates, directory))
    result = {"machine": machine(), **result}
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    shown = {key: value for key, value in result.items() if key != "samples"}
    print(json.dumps(shown, indent=1))
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
