"""The picture of the digits' units: `python -m benchmarks.papers.dormancy_figure FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

from agents.demo_picture import STYLE
from benchmarks.papers.agents_figure import LOOKS
from benchmarks.papers.tables import Row
from dynamo_probe.sweeps.records import read_rows

OUT = Path("docs/images/dormancy_claims.png")
USUAL = "digit-units/as usual"
WIDTHS = {
    "digit-units/width 0.5": "64 units a layer",
    USUAL: "128",
    "digit-units/width 2": "256",
    "digit-units/width 4": "512",
}
PRUNED = ("dormant", "as many random", "as many most active")


def draw(rows: Sequence[Row], out: Path) -> Path:
    """Draw three panels into a PNG."""
    with plt.rc_context(STYLE | {"font.size": 9, "axes.titlesize": 10}):
        figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
        widths(panels[0], rows)
        lasting(panels[1], rows)
        pruned(panels[2], rows)
        figure.savefig(out, dpi=110)
        plt.close(figure)
    return out


def widths(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the dormant fraction (tau 0.025) over tasks, by width."""
    for (name, label), look in zip(WIDTHS.items(), LOOKS, strict=False):
        curves = [r["dormant"]["0.025"] for r in rows if (r["name"], r["arm"]) == (name, "base")]
        line(axes, np.arange(len(curves[0])), curves, label, look)
    finish(axes, "Wider is not less dormant", "units with score <= 0.025", "tasks")


def lasting(axes: Any, rows: Sequence[Row]) -> None:
    """Draw how many of the dormant units of a task are dormant after the next, and by chance."""
    arms = {"base": "labels that change", "stationary": "labels that stay"}
    for (arm, label), look in zip(arms.items(), LOOKS, strict=False):
        series = [r["following"]["0.025"] for r in rows if (r["name"], r["arm"]) == (USUAL, arm)]
        colour = look[0]
        tasks = 1 + np.arange(len(series[0]))
        line(axes, tasks, [[pair[0] for pair in one] for one in series], label, (colour, "-"))
        chance = [[pair[1] for pair in one] for one in series]
        line(axes, tasks, chance, "... by chance", (colour, ":"))
    finish(axes, "Dormant units stay dormant", "overlap with the next task's", "tasks")


def pruned(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the accuracy without some units, at tau 0.1."""
    arms = ("base", "stationary")
    for place, (kind, (colour, _)) in enumerate(zip(PRUNED, LOOKS, strict=False)):
        for index, arm in enumerate(arms):
            mine = [r["pruned"] for r in rows if (r["name"], r["arm"]) == (USUAL, arm)]
            left = [one[f"{kind}, tau 0.1"][1] for one in mine]
            axes.bar(
                index + 0.27 * (place - 1),
                np.mean(left),
                0.25,
                yerr=standard_error(np.array(left)),
                color=colour,
                label=kind.removeprefix("as many ") if index == 0 else None,
            )
    for index, arm in enumerate(arms):
        mine = [r["pruned"] for r in rows if (r["name"], r["arm"]) == (USUAL, arm)]
        whole = np.mean([one["nothing"][1] for one in mine])
        axes.hlines(whole, index - 0.42, index + 0.42, color="#555555", lw=1, ls="--")
    finish(axes, "Pruned units, tau 0.1 (dashed: none)", "accuracy", "")
    axes.set_xticks(range(len(arms)), ["labels that change", "labels that stay"])
    axes.set_ylim(0, 1.35)


def line(
    axes: Any, x: np.ndarray, curves: Sequence[Sequence[float]], label: str, look: Any
) -> None:
    """Draw a mean with its standard error over seeds."""
    values = np.array(curves, dtype=float)
    mean, error = values.mean(0), standard_error(values)
    axes.plot(x, mean, color=look[0], linestyle=look[1], label=label)
    axes.fill_between(x, mean - error, mean + error, color=look[0], alpha=0.2, lw=0)


def standard_error(values: np.ndarray) -> Any:
    """Return the standard error of the mean over the first axis; 0 for a single run."""
    return values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * values[0]


def finish(axes: Any, title: str, figure: str, x: str) -> None:
    """Name a panel and its axes."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(figure)
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(fontsize=8)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="rows of digit-units")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    print(draw(read_rows(options.file), options.out))


if __name__ == "__main__":
    main()
