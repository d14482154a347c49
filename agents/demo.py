"""The demonstration: `python -m agents.demo`, or `make demo`. Under 3 minutes on two cores.

Two experiments, each with and without ReDo. In the first, ten classes of digits trade places again
and again, and the units that go dormant are missing when the next task has to be learned. In the
second, a DQN agent learns CartPole while its units go dormant.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from agents import dqn
from agents.demo_picture import CARTPOLE_TAU, DIGITS_TAU, EPISODES, TITLES, draw
from agents.runs import Result, progress_bar
from benchmarks.papers import digits
from benchmarks.papers.arms import DEFAULT_REDO


@dataclass(frozen=True)
class Args:
    """Watch units go dormant in two experiments, with and without ReDo."""

    seed: int = 1
    """Seed of both experiments."""
    fast: bool = False
    """Take seconds: shows that everything runs, and nothing else."""
    out: Path = Path("runs/demo")
    """Directory of the TensorBoard logs and the picture; each call makes one of its own in it."""


def digits_setting(args: Args) -> digits.Setting:
    """Return what shapes the training on the digits."""
    setting = digits.SETTING
    return replace(setting, tasks=4, updates=20, redo_every=20) if args.fast else setting


def cartpole_settings(args: Args) -> dqn.Args:
    """Return what shapes the training on CartPole."""
    settings = dqn.Args(learning_rate=1e-2, probe=True, seed=args.seed)
    short = {"total_steps": 700, "learning_starts": 400, "probe_every": 50, "redo_every": 100}
    return replace(settings, **short) if args.fast else settings


def run_digits(args: Args, out: Path, console: Console) -> dict[str, digits.Run]:
    """Run the digits without ReDo, with ReDo, and with labels that never change.

    ReDo comes twice: with its default for the optimizer's state, and with the paper's, which keeps
    more accuracy here and leaves more units dormant.

    Returns:
        {"base" | "redo" | "reference" | "stationary": what the run gave}.
    """
    setting = digits_setting(args)
    arms = {
        "base": "base",
        "redo": DEFAULT_REDO,
        "reference": "redo zero",
        "stationary": "stationary",
    }
    runs: dict[str, digits.Run] = {}
    with progress_bar(shown=True) as bar:
        for name, arm in arms.items():
            row = bar.add_task(TITLES[name], total=setting.tasks, figures="")

            def report(task: int, accuracy: float, dormant: float, row: TaskID = row) -> None:
                line = f"accuracy {accuracy:.0%}  dormant {dormant:.0%}"
                bar.update(row, completed=task, figures=line)

            with SummaryWriter(out / f"digits-{name}") as writer:
                runs[name] = digits.run(
                    arm, args.seed, setting=setting, writer=writer, report=report
                )
            if bar.disable:
                console.print(f"   {TITLES[name]}: {setting.tasks} tasks done")
    return runs


def run_cartpole(args: Args, out: Path, console: Console) -> dict[str, Result]:
    """Run DQN on CartPole without and with ReDo.

    Returns:
        {"base" | "redo": what the training gave}.
    """
    results: dict[str, Result] = {}
    for name in ("base", "redo"):
        log_dir = out / f"cartpole-{name}"
        console.print(f"   {TITLES[name]}:")
        results[name] = dqn.train(
            replace(cartpole_settings(args), redo=name == "redo", log_dir=log_dir)
        )
    return results


def digits_table(runs: dict[str, digits.Run]) -> Table:
    """Put the digits into a table, an arm a column."""
    tasks = len(runs["base"].online_accuracy)
    early, late = range(max(tasks // 4, 1)), range(tasks // 2, tasks)
    dormant = {name: run.dormant[DIGITS_TAU] for name, run in runs.items()}
    table = _table(f"Digits: {tasks} tasks, each with the ten classes in new places", list(runs))
    for part in (early, late):
        what = f"accuracy, tasks {part.start + 1} to {part.stop}"
        table.add_row(what, *(_accuracy(run, part) for run in runs.values()))
    table.add_row("dormant units before training", *(f"{d[0]:.0%}" for d in dormant.values()))
    table.add_row("dormant units at the end", *(f"{d[-1]:.0%}" for d in dormant.values()))
    table.add_row("units recycled", *(_count(run.recycled) for run in runs.values()))
    return table


def cartpole_table(results: dict[str, Result], steps: int) -> Table:
    """Put CartPole into a table, an arm a column."""
    dormant = {name: dormancy(result)[1] for name, result in results.items()}
    returns = [result.episode_returns[-EPISODES:].mean() for result in results.values()]
    table = _table(f"CartPole: a DQN agent, {steps:,} steps", list(results))
    table.add_row("dormant units at the first update", *(f"{d[0]:.0%}" for d in dormant.values()))
    table.add_row("dormant units at the end", *(f"{d[-1]:.0%}" for d in dormant.values()))
    table.add_row("units recycled", *(_count(recycled(result)) for result in results.values()))
    table.add_row(f"mean return, last {EPISODES} episodes", *(f"{mean:.0f}" for mean in returns))
    return table


def in_words(runs: dict[str, digits.Run], results: dict[str, Result]) -> str:
    """Say what the tables say."""
    tasks = len(runs["base"].online_accuracy)
    late = {name: _accuracy(run, range(tasks // 2, tasks)) for name, run in runs.items()}
    end = {name: f"{dormancy(result)[1][-1]:.0%}" for name, result in results.items()}
    return (
        f"A unit is dormant when its mean activity is at most {DIGITS_TAU:g} (digits) or "
        f"{CARTPOLE_TAU:g} (CartPole) of its layer's mean.\n"
        "Digits: every task is as hard as the first, so a lower accuracy later on is a lost "
        f"ability to learn. Late accuracy was {late['base']} without ReDo, {late['redo']} with it, "
        f"{late['reference']} with the paper's reset of the optimizer, and {late['stationary']} "
        "where nothing new has to be learned.\n"
        f"CartPole: {end['base']} of the units were dormant at the end without ReDo, "
        f"{end['redo']} with it. The returns are one run each and differ by chance: training this "
        "short shows no gain in return from ReDo, and none is claimed."
    )


def dormancy(result: Result) -> tuple[list[int], list[float]]:
    """Return updates and dormant fractions of a CartPole run."""
    updates, fractions = result.readings[f"dormancy/tau={CARTPOLE_TAU}"]
    return updates.tolist(), fractions.tolist()


def recycled(result: Result) -> int:
    """Return how many units were recycled in a CartPole run."""
    total = result.readings.get("redo/recycled_total")
    return 0 if total is None else int(total[1][-1])


def _accuracy(run: digits.Run, tasks: range) -> str:
    return f"{sum(run.online_accuracy[task] for task in tasks) / len(tasks):.0%}"


def _count(units: int) -> str:
    return f"{units:,}" if units else "none"


def _table(title: str, arms: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for arm in arms:
        table.add_column(TITLES[arm], justify="right")
    return table


def main(args: Args) -> None:
    """Run both experiments, show what came of them, and say where it is."""
    started = time.perf_counter()
    console = Console(highlight=False)
    out = args.out / time.strftime("%Y%m%d-%H%M%S")
    out.mkdir(parents=True)
    console.print("1. Digits whose classes trade places: does the network go on learning?")
    runs = run_digits(args, out, console)
    console.print("2. CartPole, learned by a DQN agent: how much of its network is in use?")
    results = run_cartpole(args, out, console)
    settings = cartpole_settings(args)
    picture = draw(out / "demo.png", runs, results, settings.learning_starts)
    console.print(digits_table(runs), cartpole_table(results, settings.total_steps))
    console.print(f"{in_words(runs, results)}\n")
    tensorboard = os.path.relpath(Path(sys.executable).parent / "tensorboard")
    # Not through rich, which would break a long path in two.
    print(f"Picture:     {picture}")
    print(f"TensorBoard: {tensorboard} --logdir {args.out}")
    print(f"This took {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main(tyro.cli(Args))
