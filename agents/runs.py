"""A training run of any agent: its log, watch, progress, evaluations, checkpoints and result."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

import dynamo_probe as dp
from agents.checkpoints import load_checkpoint, save_checkpoint
from agents.environments import Actions, Environments, Step
from agents.evaluation import Policy, evaluate, show_video
from agents.settings import RunArgs

logger = logging.getLogger(__name__)

DORMANT = "dormancy/tau=0.1"


@dataclass(frozen=True, slots=True)
class Result:
    """What a training gave.

    Attributes:
        episode_steps: the environment step at which each episode ended, `[episodes]`.
        episode_returns: the undiscounted return of each episode, `[episodes]`.
        evaluations: {environment step: returns of the episodes without exploration}.
        readings: scalar readings of the watch, `{tag: (updates, values)}`; empty without one.
        network: the network as trained, or all of an agent's networks in one module.
        updates: updates made, with those before a resumed checkpoint.
        seconds: wall-clock time of this call.
        update_seconds: processor time of this call from its first update on, acting included.
        log_dir: where the log is.
    """

    episode_steps: np.ndarray
    episode_returns: np.ndarray
    evaluations: Mapping[int, tuple[float, ...]]
    readings: Mapping[str, tuple[np.ndarray, np.ndarray]]
    network: nn.Module
    updates: int
    seconds: float
    update_seconds: float
    log_dir: Path | None


class Run:
    """A training while it runs. Enter it, act, learn, and end every round with `keep`.

    Attributes:
        args: the settings.
        environments: what is acted in.
        updates: updates begun.
        watch: the watch, where there are instruments.
        writer: the TensorBoard log, where there is one.
        resumed: the `extra` that was saved with the checkpoint it goes on from; empty otherwise.
    """

    def __init__(
        self,
        agent: str,
        args: RunArgs,
        environments: Environments,
        parts: dict[str, Any],
        *,
        watched: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        instruments: Sequence[dp.Instrument],
        policy: Policy,
        actions: Sequence[Actions],
    ) -> None:
        """Set it up; nothing begins before it is entered.

        Args:
            agent: names the agent in logs and checkpoints.
            args: the settings.
            environments: not yet reset.
            parts: what a checkpoint keeps: networks, optimizers, replay, generators.
            watched: the network that the instruments watch.
            optimizer: what updates it; the steps of the first one are the watch's clock.
            instruments: what the watch carries; there is no watch without any.
            policy: acts without exploration, in evaluations.
            actions: the kinds of actions that it gives.
        """
        self.args, self.environments = args, environments
        self.updates = 0
        self.watch: dp.Watch | None = None
        self.writer: SummaryWriter | None = None
        self.resumed: dict[str, Any] = {}
        self._agent, self._parts = agent, parts
        self._watched, self._optimizer, self._instruments = watched, optimizer, instruments
        self._policy, self._actions = policy, actions
        self._log_dir = fill_in(args.log_dir, agent, args.env_id, args.seed)
        self._evaluations: dict[int, tuple[float, ...]] = {}
        self._marks: dict[str, int] = {}
        self._begun = 0  # the environment step that this call begins at
        self._stack = ExitStack()
        self._saved_at: int | None = None
        self._update_started: float | None = None

    @property
    def step(self) -> int:
        """Environment steps so far."""
        return self.environments.steps

    def __enter__(self) -> Run:
        """Begin, or go on from the checkpoint.

        Raises:
            ValueError: when the checkpoint does not fit.
        """
        self._started = time.perf_counter()
        with ExitStack() as stack:
            args, parts = self.args, self._parts
            if self._log_dir is not None:
                self.writer = SummaryWriter(self._log_dir)
                stack.callback(self.writer.close)
            if self._instruments:
                sinks = [] if self.writer is None else [self.writer]
                watch = dp.watch(
                    self._watched,
                    self._optimizer,
                    self._instruments,
                    sinks=sinks,
                    seed=args.seed,
                    clocks={"environment steps": lambda: self.step},
                )
                self.watch = parts["watch"] = stack.enter_context(watch)
            if args.resume is None:
                self.environments.reset(args.seed)
            else:
                self._resume(args.resume)
            self._bar = stack.enter_context(progress_bar(args.progress))
            self._task = self._bar.add_task(
                args.env_id, total=args.total_steps, completed=self.step, figures=""
            )
            self._row = (self.updates, time.perf_counter())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close the log and the watch; say what is left after an exception."""
        self._stack.close()
        if error is not None:
            left = "no checkpoint was written"
            if self._saved_at is not None:
                left = f"{self.args.checkpoint} is whole, of step {self._saved_at}"
            logger.error("training stopped at step %d; %s", self.step, left)

    def act(self, actions: np.ndarray) -> Step:
        """Step the environments, and log the returns of the episodes that ended."""
        step = self.environments.step(actions)
        if self.writer is not None:
            for figure in step.returns:
                self.writer.add_scalar("charts/episodic_return", figure, self.step)
        return step

    def begin_update(self) -> None:
        """Count an update."""
        if self._update_started is None:
            self._update_started = time.process_time()
        self.updates += 1

    def due(self, what: str, every: int | None) -> bool:
        """Whether a multiple of `every` environment steps has been passed since it was last due."""
        if every is None:
            return False
        now = self.step // every
        passed = now > self._marks.get(what, self._begun // every)
        if passed:
            self._marks[what] = now
        return passed

    def log(self, figures: Mapping[str, float | Tensor]) -> None:
        """Log figures of this step, and show how the training goes."""
        now = time.perf_counter()
        speed = (self.updates - self._row[0]) / (now - self._row[1])
        self._row = (self.updates, now)
        if self.writer is not None and speed > 0:
            for tag, figure in {"charts/updates_per_second": speed, **figures}.items():
                self.writer.add_scalar(tag, float(figure), self.step)
        if not self._bar.disable:
            dormant = None
            if self.watch is not None and DORMANT in self.watch.history:
                dormant = float(self.watch.history.latest(DORMANT))
            line = progress_figures(self.environments.episodes, speed, dormant)
            self._bar.update(self._task, completed=self.step, figures=line)

    def keep(self, **extra: Any) -> None:
        """End a round: evaluate and write a checkpoint, where they are due.

        Args:
            **extra: what else the agent needs to go on; it comes back in `resumed`.
        """
        args = self.args
        if self.due("evaluate", args.evaluate_every):
            self._evaluate()
        regular = self.due("checkpoint", args.checkpoint_every)
        if args.checkpoint is not None and (regular or self.step >= args.total_steps):
            clock = {
                "updates": self.updates,
                "environments": self.environments.state_dict(),
                "evaluations": {step: list(x) for step, x in self._evaluations.items()},
                "extra": extra,
            }
            save_checkpoint(args.checkpoint, self._agent, args.shaping(), clock, self._parts)
            self._saved_at = self.step

    def result(self, network: nn.Module) -> Result:
        """Return what the training gave."""
        watch, finished = self.watch, time.process_time()
        episodes = self.environments.episodes
        return Result(
            episode_steps=np.array([episode[0] for episode in episodes], dtype=np.int64),
            episode_returns=np.array([episode[1] for episode in episodes], dtype=np.float64),
            evaluations=dict(self._evaluations),
            readings={t: watch.history.series(t) for t in watch.history.tags()} if watch else {},
            network=network,
            updates=self.updates,
            seconds=time.perf_counter() - self._started,
            update_seconds=finished - (self._update_started or finished),
            log_dir=self._log_dir,
        )

    def _resume(self, path: Path) -> None:
        clock = load_checkpoint(path, self._agent, self.args.shaping(), self._parts)
        self.updates = clock["updates"]
        self._evaluations = {step: tuple(x) for step, x in clock["evaluations"].items()}
        if not self.environments.load_state_dict(clock["environments"], self.args.seed):
            logger.warning("%s cannot give its state: new episodes begin", self.args.env_id)
        self.resumed, self._begun = clock["extra"], self.step

    def _evaluate(self) -> None:
        args = self.args
        found = evaluate(
            self._policy,
            args.env_id,
            actions=self._actions,
            episodes=args.evaluate_episodes,
            seed=args.seed + 1_000_000,
            device=args.device,
            video=args.video,
        )
        self._evaluations[self.step] = found.returns
        if self.writer is not None:
            mean = float(np.mean(found.returns))
            self.writer.add_scalar("charts/evaluation_return", mean, self.step)
            show_video(self.writer, "evaluation/episode", found.frames, self.step)


@contextmanager
def processor_settings(threads: int) -> Iterator[None]:
    """Count denormal floats as zero and set torch's threads; put both back afterwards.

    The Adam moments of dormant units decay into denormals, and arithmetic with those makes the
    training of a dormant network about twice as slow.
    """
    threads_before, flushed_before = torch.get_num_threads(), sys.float_info.min * 0.5 == 0.0
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed_before)
        torch.set_num_threads(threads_before)


def flat_gradient(parameters: list[nn.Parameter]) -> Tensor:
    """Make the gradients of parameters views of one row `[1, total]`, and return the row.

    Cleared (`zero_`) and clipped (`renorm_`) as one tensor, which for a small network saves a fifth
    of an update. Do not let the optimizer set the gradients to None: that drops the views.
    """
    row = parameters[0].new_zeros(1, sum(parameter.numel() for parameter in parameters))
    pieces = row[0].split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)
    return row


def fill_in(path: Path | None, agent: str, env_id: str, seed: int) -> Path | None:
    """Fill `{agent}`, `{env_id}`, `{seed}` and `{time}` into a path."""
    if path is None:
        return None
    now = time.strftime("%Y%m%d-%H%M%S")
    name = env_id.replace("/", "-")
    return Path(str(path).format(agent=agent, env_id=name, seed=seed, time=now))


def progress_bar(shown: bool) -> Progress:
    """Return a progress bar with a field `figures`; it is quiet where there is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )


def progress_figures(episodes: list[tuple[int, float]], speed: float, dormant: float | None) -> str:
    """Return one line: mean return of the last 20 episodes, dormant fraction, updates a second."""
    shown = [f"return {np.mean([x for _, x in episodes[-20:]]):.1f}"] if episodes else []
    shown += [f"dormant {dormant:.0%}"] if dormant is not None else []
    return "  ".join([*shown, f"{speed:.0f} updates/s"])


def say_result(result: Result) -> None:
    """Print what a training from the command line gave."""
    if len(result.episode_returns):
        mean = result.episode_returns[-20:].mean()
        print(f"mean return of the last 20 episodes: {mean:.1f}")
    for step, returns in list(result.evaluations.items())[-1:]:
        print(f"mean return without exploration at step {step}: {np.mean(returns):.1f}")
    print(f"{result.updates} updates in {result.seconds:.0f} s")
    if result.log_dir is not None:
        print(f"tensorboard --logdir {result.log_dir}")
