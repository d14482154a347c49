"""The picture of the demonstration: accuracy and return beside the dormant units."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")  # a picture is written, no window is opened
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from agents.runs import Result
    from benchmarks.papers.digits import Run

DIGITS_TAU, CARTPOLE_TAU = 0.025, 0.1
EPISODES = 20
TITLES = {
    "base": "without ReDo",
    "redo": "with ReDo",
    "reference": "ReDo as in the paper",
    "stationary": "labels never change",
}
# Okabe and Ito's colours, which colour-blind people tell apart; the dashes do it in grey, too.
LOOKS: dict[str, dict[str, Any]] = {
    "base": {"color": "#D55E00", "linestyle": "-", "marker": "o"},
    "redo": {"color": "#0072B2", "linestyle": "-", "marker": "s"},
    "reference": {"color": "#009E73", "linestyle": "-.", "marker": "D"},
    "stationary": {"color": "#555555", "linestyle": "--", "marker": "^"},
}
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}


def draw(
    path: Path, runs: Mapping[str, Run], results: Mapping[str, Result], learning_starts: int
) -> Path:
    """Draw both experiments into one PNG.

    Args:
        path: the file.
        runs: of the digits, by arm.
        results: of CartPole, by arm.
        learning_starts: the step of the first update on CartPole; there is one for each step.

    Returns:
        The path.
    """
    with plt.rc_context(STYLE):
        figure, ((accuracy, digits), (returns, cartpole)) = plt.subplots(
            2, 2, figsize=(12, 8.4), layout="constrained"
        )
        _digits_accuracy(accuracy, runs)
        _digits_dormant(digits, runs)
        _returns(returns, results)
        _cartpole_dormant(cartpole, results, learning_starts)
        cartpole.set_xlim(returns.get_xlim())
        figure.get_layout_engine().set(hspace=0.07, wspace=0.04)  # type: ignore[union-attr]
        figure.savefig(path, dpi=130)
        plt.close(figure)
    return path


def _digits_accuracy(axes: Axes, runs: Mapping[str, Run]) -> None:
    for name, run in runs.items():
        tasks = np.arange(1, len(run.online_accuracy) + 1)
        axes.plot(tasks, run.online_accuracy, label=TITLES[name], **LOOKS[name])
    axes.set_title("Digits: accuracy while learning each new task")
    _per_cent(axes, "accuracy")
    _tasks(axes)
    axes.legend(loc="lower left")


def _digits_dormant(axes: Axes, runs: Mapping[str, Run]) -> None:
    for name, run in runs.items():
        fractions = run.dormant[DIGITS_TAU]
        axes.plot(np.arange(len(fractions)), fractions, label=TITLES[name], **LOOKS[name])
    axes.set_title(f"Digits: dormant units (score ≤ {DIGITS_TAU:g}), read before recycling")
    _per_cent(axes, "dormant units")
    _tasks(axes)


def _returns(axes: Axes, results: Mapping[str, Result]) -> None:
    for name, result in results.items():
        looks = {**LOOKS[name], "marker": ""}
        steps, figures = result.episode_steps, result.episode_returns
        axes.plot(steps, figures, ".", color=looks["color"], alpha=0.25, markersize=4)
        if len(figures) >= EPISODES:
            mean = np.convolve(figures, np.full(EPISODES, 1 / EPISODES), mode="valid")
            axes.plot(steps[EPISODES - 1 :], mean, label=TITLES[name], **looks)
    axes.set_title(f"CartPole: return (dots) and its mean over {EPISODES} episodes")
    axes.set_ylabel("return")
    axes.set_xlabel("environment steps")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")


def _cartpole_dormant(axes: Axes, results: Mapping[str, Result], learning_starts: int) -> None:
    for name, result in results.items():
        updates, fractions = result.readings[f"dormancy/tau={CARTPOLE_TAU}"]
        looks = {**LOOKS[name], "marker": ""}
        axes.plot(updates + learning_starts, fractions, label=TITLES[name], **looks)
        for update in result.readings.get("redo/recycled", [()])[0]:
            last = update == result.readings["redo/recycled"][0][-1]
            label = "units are recycled" if last else None
            axes.axvline(update + learning_starts, color="#56B4E9", lw=1, ls=":", label=label)
    axes.set_title(f"CartPole: dormant units (score ≤ {CARTPOLE_TAU:g}) of the Q network")
    _per_cent(axes, "dormant units")
    axes.set_xlabel("environment steps")
    axes.legend(loc="upper left")


def _per_cent(axes: Axes, what: str) -> None:
    axes.set_ylabel(what)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _tasks(axes: Axes) -> None:
    axes.set_xlabel("task")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
