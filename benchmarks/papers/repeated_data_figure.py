"""Draw the runs on repeated data: `python -m benchmarks.papers.repeated_data_figure FILE`."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

from benchmarks.papers.repeated_data import COPY_ARMS, TEXT_ARMS, parse
from benchmarks.papers.repeated_data_tables import (
    METRICS,
    baseline,
    divisor,
    of_arm,
    prefix_matching,
    shown,
)
from benchmarks.papers.tables import Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

# Okabe & Ito's colours, told apart by colour-blind readers too.
GREY, BLUE, GREEN, ORANGE, RED = "#555555", "#0072B2", "#009E73", "#E69F00", "#D55E00"
PERCENTS = {10: GREEN, 50: BLUE, 90: RED}
SHADES = (BLUE, RED, ORANGE)
TEXTS = {"python": (BLUE, "Python's library"), "docs": (RED, "docstrings")}


def main() -> None:
    """Read the rows, write the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="rows of `python -m benchmarks.papers ...`")
    parser.add_argument("--out", type=Path, default=Path("docs/images/repeated_data.png"))
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    copy = [row for row in rows if row["name"] == "repeated-data/copy"]
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.6), layout="constrained")
    (half, most, size, grid), (heads_half, heads_most, bars, text) = axes
    for percent, panel in ((50, half), (90, most)):
        draw_curves(panel, copy, percent, lambda point: point["test"])
        panel.set_title(f"copy task, {percent} % repeats", fontsize=9)
        panel.set_ylabel("test loss, nats")
    for percent, panel in ((50, heads_half), (90, heads_most)):
        draw_curves(panel, copy, percent, prefix_matching)
        panel.set_ylabel("prefix matching, best head")
        panel.set_ylim(0, 1)
        panel.set_xlabel("update")
        panel.legend(frameon=False, fontsize=7)
    draw_repeats(size, copy)
    draw_grid(grid, copy)
    draw_damage(bars, copy)
    draw_texts(text, rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)


def repeated_arms(percent: int, width: int = 64, arms: Sequence[str] = COPY_ARMS) -> list[str]:
    """Return the arms with a share of repeats, fewest repeats first."""
    parsed = {arm: parse(arm) for arm in arms}
    return [
        arm
        for arm, one in parsed.items()
        if one.percent == percent and one.width == width and one.repeats is not None
    ]


def draw_curves(
    axes: Axes, rows: Sequence[Row], percent: int, figure: Callable[[Row], float]
) -> None:
    """Draw a figure over training, the mean over seeds and each seed thinly."""
    unique = f"d=64 {percent}% unique"
    arms = {"d=64": (GREY, "no repeats"), unique: ("#999999", "unique samples only")}
    for arm, colour in zip(repeated_arms(percent), SHADES, strict=True):
        arms[arm] = (colour, f"{parse(arm).repeats:,} repeats")
    for arm, (colour, label) in arms.items():
        curves = [row["curve"] for row in rows if row["arm"] == arm]
        updates = [point["update"] for point in curves[0]]
        values = [[figure(point) for point in curve] for curve in curves]
        for one in values:
            axes.plot(updates, one, color=colour, linewidth=0.5, alpha=0.4)
        mean = [statistics.fmean(points) for points in zip(*values, strict=True)]
        style = "--" if arm == unique else "-"
        axes.plot(updates, mean, style, color=colour, linewidth=1.5, label=label)


def draw_repeats(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the test loss against the repeats; dashed, that with the unique samples only."""
    for percent, colour in PERCENTS.items():
        arms = repeated_arms(percent)
        repeats = [parse(arm).repeats or 1 for arm in arms]
        _line(axes, rows, arms, repeats, colour, f"{percent} % repeats")
        unique = of_arm(rows, f"d=64 {percent}% unique", METRICS["test"])
        axes.axhline(statistics.fmean(unique.values()), color=colour, linestyle="--", linewidth=0.9)
    fresh = of_arm(rows, "d=64", METRICS["test"])
    axes.axhline(statistics.fmean(fresh.values()), color=GREY, linewidth=0.9, label="no repeats")
    axes.set_xscale("log")
    axes.set_xlabel("repeats")
    axes.set_ylabel("test loss at the end, nats")
    axes.set_title("copy task; dashed: unique only", fontsize=9)
    axes.legend(frameon=False, fontsize=7)


def _line(
    axes: Axes,
    rows: Sequence[Row],
    arms: Sequence[str],
    repeats: Sequence[int],
    colour: str,
    label: str,
) -> None:
    found = [list(of_arm(rows, arm, METRICS["test"]).values()) for arm in arms]
    axes.errorbar(
        repeats,
        [statistics.fmean(values) for values in found],
        [statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in found],
        color=colour,
        marker="o",
        markersize=4,
        linewidth=1.3,
        capsize=2,
        label=label,
    )


def draw_grid(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the effective-size divisor of the test loss over fraction and repeats."""
    table = baseline(rows, METRICS["test"])
    size = max(table)
    cells = []
    for row, percent in enumerate(PERCENTS):
        cells.append([])
        for column, arm in enumerate(repeated_arms(percent)):
            mean = statistics.fmean(of_arm(rows, arm, METRICS["test"]).values())
            times = divisor(table, size, mean)
            cells[-1].append(math.log2(min(max(times, 1.0), size / min(table))))
            label = f"{shown(times, table, size)}\nx{parse(arm).repeats:,}"
            dark = cells[-1][-1] > 2
            axes.text(
                column, row, label, ha="center", va="center", color="white" if dark else "black"
            )
    axes.imshow(cells, cmap="cividis_r", vmin=0, vmax=4, aspect="auto")
    axes.set_xticks(range(3), ["few", "middle", "many"])
    axes.set_yticks(range(3), [f"{percent} %" for percent in PERCENTS])
    axes.set_xlabel("repeats")
    axes.set_ylabel("repeated share")
    axes.set_title("as good as a model ... times smaller", fontsize=9)
    axes.spines[:].set_visible(False)


def draw_damage(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the divisors of each figure for half repeats; what is no figure is written."""
    arms = repeated_arms(50)
    for place, figure in enumerate(METRICS.values()):
        table = baseline(rows, figure)
        size = max(table)
        for offset, (arm, colour) in enumerate(zip(arms, SHADES, strict=True)):
            mean = statistics.fmean(of_arm(rows, arm, figure).values())
            times = divisor(table, size, mean)
            x = place + (offset - 1) * 0.25
            label = f"{parse(arm).repeats:,} repeats" if place == 0 else None
            height = 1.0 if times == 0 or math.isnan(times) else min(times, size / min(table))
            axes.bar(x, height, 0.22, color=colour, label=label)
            if math.isnan(times) or times == 0 or math.isinf(times):
                mark = "?" if math.isnan(times) else shown(times, table, size)
                axes.text(x, height, mark, ha="center", va="bottom", fontsize=6)
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(METRICS)), [name.replace(" ", "\n") for name in METRICS])
    axes.set_ylabel("effective-size divisor")
    axes.set_title("copy task, 50 % repeats", fontsize=9)
    axes.set_ylim(0, 1.4 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=7, loc="upper left")


def draw_texts(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the test loss on text against the repeats."""
    arms = repeated_arms(50, arms=TEXT_ARMS)
    repeats = [parse(arm).repeats or 1 for arm in arms]
    for name, (colour, label) in TEXTS.items():
        mine = [row for row in rows if row["name"] == f"repeated-data/{name}"]
        if not all(of_arm(mine, arm, METRICS["test"]) for arm in (*arms, "d=64 50% unique")):
            continue
        _line(axes, mine, arms, repeats, colour, label)
        for arm, style in (("d=64", "-"), ("d=64 50% unique", "--")):
            mean = statistics.fmean(of_arm(mine, arm, METRICS["test"]).values())
            axes.axhline(mean, color=colour, linestyle=style, linewidth=0.9)
    axes.set_xscale("log")
    axes.set_xlabel("repeats")
    axes.set_ylabel("test loss at the end, nats")
    axes.set_title("text, 50 % repeats; dashed: unique only", fontsize=9)
    axes.legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    main()
