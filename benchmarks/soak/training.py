"""The training that is soaked: a small network that carries every probe, ReDo, alerts and sinks.

The targets change from time to time, so that gradients jump, units fall dormant and alerts come and
go. Batches come from three random number generators, whose states are part of a checkpoint.

`python -m benchmarks.soak.training DIRECTORY UPDATES` trains, or goes on from the last checkpoint.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from benchmarks.soak.language import Language

BATCH = 32
INPUTS = 8

Meter = Callable[[int, dp.Watch], None]
"""Called after every update with its number and the watch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is; all periods follow from that.

    Attributes:
        updates: the updates of the run.
        directory: where the run keeps its log, its checkpoint and its end.
    """

    updates: int
    directory: Path

    @property
    def every(self) -> int:
        """The period of the probes that are read often."""
        return min(50, max(10, self.updates // 100))

    @property
    def checkpoint_every(self) -> int:
        return max(10, self.updates // 40)

    @property
    def task_every(self) -> int:
        """How long the targets stay the same."""
        return max(50, self.updates // 100)

    @property
    def capacity(self) -> int:
        """Points that the history keeps of a tag: it is full after a quarter of the run."""
        return max(2, self.updates // self.every // 4)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    @property
    def end(self) -> Path:
        """The state of everything after the last update."""
        return self.directory / "end.pt"

    @property
    def progress(self) -> Path:
        """Eight bytes that always hold the number of updates taken."""
        return self.directory / "progress"


def probes(
    plan: Plan, train_step: Callable[[], object], evaluate: Callable[[], float]
) -> dict[str, Callable[[], dp.Probe]]:
    """Return how each public probe is made, but for alerts and what looks at tokens.

    Args:
        plan: the run.
        train_step: makes one update on data of its own.
        evaluate: gives a score.
    """
    every = plan.every
    return {
        "Dormancy": lambda: dp.Dormancy(every=every),
        "Rank": lambda: dp.Rank(every=5 * every, layers="all"),
        "Gradients": lambda: dp.Gradients(every=every),
        "Updates": lambda: dp.Updates(every=every),
        "Saturation": lambda: dp.Saturation(every=every),
        "Trainability": lambda: dp.Trainability(every=max(1, plan.updates // 10), updates=20),
        "ContinualBackpropUtility": lambda: dp.ContinualBackpropUtility(every=every),
        "Topology": lambda: dp.Topology(every=5 * every),
        "PruningPlasticity": lambda: dp.PruningPlasticity(
            every=max(1, plan.updates // 10),
            train_step=train_step,
            evaluate=evaluate,
            updates=5,
        ),
    }


def alerts() -> list[dp.Alert]:
    """Return rules of which some come and go and some stay silent."""
    return [
        dp.Alert("dormancy/tau=0.1", above=0.02, clear=0.0),
        dp.Alert("gradients/norm_before_clipping", above=1.5, relative_to="median", window=8),
        dp.alerts.dead_layer(),
        dp.alerts.rank_collapse(),
        dp.alerts.gradient_spike(times=3.0),
        dp.alerts.non_finite(),
        dp.alerts.idle_treatment(for_updates=1000),
    ]


class Latest:
    """The cheapest tracker: it keeps the newest figures."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.update(metrics, step=step)


class Run:
    """A network, its optimizer, its data and its watch."""

    def __init__(self, plan: Plan) -> None:
        torch.set_num_threads(1)
        # Denormal numbers in the optimizer's state would make some updates many times slower.
        torch.set_flush_denormal(True)
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        self.plan = plan
        self.model = nn.Sequential(
            nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3, fused=True)
        self.teacher = torch.randn(INPUTS)
        self.step = 0
        self.latest = Latest()
        own = torch.Generator().manual_seed(2)
        self.held_out = torch.randn(4 * BATCH, INPUTS, generator=own)
        made = probes(plan, self.recover, self.score)
        instruments = [make() for make in made.values()]
        sparse = dp.RigL(0.5, stop=10**9, every=4 * plan.every)
        self.watch = dp.watch(
            self.model,
            self.optimizer,
            [*instruments, dp.ReDo(tau=0.1, every=2 * plan.every), sparse, *alerts()],
            log_dir=plan.log,
            sinks=[self.latest.log],
            probe_batch=torch.randn(64, INPUTS, generator=torch.Generator().manual_seed(1)),
            on_error="raise",
        )
        # What is bounded has to reach its bound in the first part of the run.
        self.watch.history = dp.History(capacity=plan.capacity)
        self.watch.most_events = 100
        self.language = Language(plan.every, plan.capacity)

    def train(self, meter: Meter) -> None:
        """Take the updates that are left."""
        while self.step < self.plan.updates:
            self._update()
            self.language.update()
            self.step += 1
            meter(self.step, self.watch)
            if self.step % self.plan.checkpoint_every == 0:
                self.save(self.plan.checkpoint)

    def _update(self) -> None:
        if self.step % self.plan.task_every == 0:
            self.teacher = torch.randn(INPUTS) * random.uniform(0.5, 4.0)
        inputs = torch.randn(BATCH, INPUTS)
        noise = torch.from_numpy(np.random.standard_normal(BATCH).astype(np.float32))
        self.optimizer.zero_grad()
        targets = (inputs @ self.teacher).sin() + 0.1 * noise
        loss = (self.model(inputs).squeeze(1) - targets).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def recover(self) -> None:
        """Make an update on inputs of its own."""
        self.optimizer.zero_grad()
        self._error(self.held_out).backward()
        self.optimizer.step()

    @torch.no_grad()
    def score(self) -> float:
        return -float(self._error(self.held_out))

    def _error(self, inputs: Tensor) -> Tensor:
        return (self.model(inputs).squeeze(1) - (inputs @ self.teacher).sin()).square().mean()

    def save(self, path: Path) -> None:
        """Write everything at once or not at all."""
        unfinished = path.with_suffix(".unfinished")
        torch.save(self.state(), unfinished)
        os.replace(unfinished, path)

    def state(self) -> dict[str, Any]:
        name, keys, *place = np.random.get_state()
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "teacher": self.teacher,
            "torch": torch.get_rng_state(),
            "numpy": (name, torch.from_numpy(np.array(keys, dtype=np.int64)), *place),
            "python": random.getstate(),
            "watch": self.watch.state_dict(),
            "language": self.language.state(),
        }

    def resume(self) -> None:
        """Go on from the last checkpoint; make the first one where there is none."""
        if not self.plan.checkpoint.exists():
            self.save(self.plan.checkpoint)
            return
        state = torch.load(self.plan.checkpoint, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.teacher = state["teacher"]
        torch.set_rng_state(state["torch"])
        name, keys, *place = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *place))
        random.setstate(state["python"])
        self.watch.load_state_dict(state["watch"])
        self.language.resume(state["language"])


def equal(one: Any, other: Any) -> bool:
    """Whether two states are equal to the bit; NaN equals the same NaN, 0 is not -0."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and (
            one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, float):
        return isinstance(other, float) and np.float64(one).tobytes() == np.float64(other).tobytes()
    return type(one) is type(other) and one == other


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of the parts in which two states differ."""
    if equal(one, other):
        return []
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{name}/{key}")]
    return [name]


def main() -> None:
    """Train in this process, telling how far it is, and save the end."""
    plan = Plan(int(sys.argv[2]), Path(sys.argv[1]))
    plan.directory.mkdir(parents=True, exist_ok=True)
    plan.progress.write_bytes(bytes(8))
    with plan.progress.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        run = Run(plan)
        with run.watch, run.language.watch:
            run.resume()

            def tell(step: int, watch: dp.Watch) -> None:
                shared[:] = step.to_bytes(8, "little")

            tell(run.step, run.watch)
            run.train(tell)
            run.save(plan.end)


if __name__ == "__main__":
    main()
