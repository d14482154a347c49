"""Kill a training with SIGKILL at random moments, and compare its end with an undisturbed one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.soak import logs
from benchmarks.soak.training import Plan, differences

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run that was killed.

    Attributes:
        kills: the updates at which it was killed.
        resumed: the updates from which it went on, after each.
        differing: the parts of the end that are not bit-identical to the undisturbed run's.
        faults: what is wrong with the two logs.
        complaints: what TensorBoard complained about when it read them.
        log_differing: the tags whose series in the logs differ.
        tags: the scalar tags in the log.
        points: the scalar readings in the log.
        files: the event files of the killed run.
        events: the events at the end.
    """

    kills: list[int]
    resumed: list[int]
    differing: list[str]
    faults: list[str]
    complaints: list[str]
    log_differing: list[str]
    tags: int
    points: int
    files: int
    events: int

    @property
    def problems(self) -> list[str]:
        """Everything that should not be; empty when the promise was kept."""
        found = [f"{name} differs" for name in self.differing]
        found += self.faults + self.complaints
        return found + [f"the log of {tag} differs" for tag in self.log_differing]


def moments(updates: int, kills: int, seed: int) -> list[int]:
    """Return random updates, one in each of `kills` equal parts of a run."""
    draw = random.Random(seed)
    edges = [round(part * updates / kills) for part in range(kills + 1)]
    return [draw.randrange(max(1, low), high) for low, high in zip(edges, edges[1:], strict=False)]


def run(updates: int, kills: int, directory: Path, seed: int = 0) -> Outcome:
    """Train once undisturbed and once with kills, side by side, and compare."""
    draw = random.Random(seed)
    whole, killed = (Plan(updates, directory / name) for name in ("whole", "killed"))
    undisturbed = _start(whole)
    died, resumed = [], []
    try:
        for moment in moments(updates, kills, seed):
            process = _start(killed)
            # Not always right after an update: also during readings, checkpoints and writes.
            died.append(_kill(process, killed, moment, draw.uniform(0.0, 0.02)))
            resumed.append(int(torch.load(killed.checkpoint, weights_only=True)["step"]))
        for process, plan in ((_start(killed), killed), (undisturbed, whole)):
            if process.wait() != 0:
                raise RuntimeError(f"a training failed: {_errors(plan)}")
    finally:
        undisturbed.kill()
    return _compare(whole, killed, died, resumed)


def _compare(whole: Plan, killed: Plan, died: list[int], resumed: list[int]) -> Outcome:
    ends = [torch.load(plan.end, weights_only=True) for plan in (whole, killed)]
    read = [logs.read(plan.log) for plan in (whole, killed)]
    histories = [end["watch"]["history"]["scalars"] for end in ends]
    found, _ = read[1]
    return Outcome(
        kills=died,
        resumed=resumed,
        differing=differences(*ends),
        faults=[
            f"{name}: {fault}"
            for name, (series, _), history in zip(("whole", "killed"), read, histories, strict=True)
            for fault in logs.faults(series, history)
        ],
        complaints=[complaint for _, heard in read for complaint in heard],
        log_differing=logs.apart(read[0][0], found),
        tags=len(found),
        points=sum(len(steps) for steps, _ in found.values()),
        files=len(list(killed.log.glob("*tfevents*"))),
        events=len(ends[1]["watch"]["events"]),
    )


def _start(plan: Plan) -> subprocess.Popen[bytes]:
    plan.directory.mkdir(parents=True, exist_ok=True)
    plan.progress.write_bytes(bytes(8))
    command = [sys.executable, "-m", "benchmarks.soak.training"]
    with (plan.directory / "errors.txt").open("ab") as errors:
        return subprocess.Popen(
            [*command, str(plan.directory), str(plan.updates)], cwd=_ROOT, stderr=errors
        )


def _kill(process: subprocess.Popen[bytes], plan: Plan, moment: int, pause: float) -> int:
    """Kill a training `pause` seconds after it has reached an update; return how far it came."""
    while (reached := _reached(plan)) < moment:
        if process.poll() is not None:
            raise RuntimeError(f"a training ended at update {reached}: {_errors(plan)}")
        time.sleep(0.001)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"a training ended by itself before its kill at {moment}")
    return _reached(plan)


def _reached(plan: Plan) -> int:
    return int.from_bytes(plan.progress.read_bytes(), "little")


def _errors(plan: Plan) -> str:
    return (plan.directory / "errors.txt").read_text()[-2000:]
