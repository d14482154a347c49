"""Draw the sparse runs: `python -m benchmarks.papers.granet_figure FILE --out IMAGE`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from benchmarks.papers.granet import SPARSITIES
from benchmarks.papers.granet_tables import accuracies, values
from benchmarks.papers.tables import Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

# Okabe & Ito's colours, told apart by colour-blind readers too.
STYLES = {
    "static": ("#999999", "s"),
    "SET": ("#E69F00", "v"),
    "RigL": ("#56B4E9", "^"),
    "GraNet(0.5)": ("#009E73", "D"),
    "GMP(0)": ("#0072B2", "x"),
    "GraNet(0)": ("#D55E00", "o"),
}
RATES = {"0.5": "#999999", "0.9": "#D55E00", "0.95": "#0072B2"}
GREY = "#555555"


def main() -> None:
    """Read the rows, write the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the rows of `python -m benchmarks.papers granet`")
    parser.add_argument("--out", type=Path, default=Path("docs/images/granet.png"))
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    named = {name: [r for r in rows if r["name"] == name] for name in {r["name"] for r in rows}}
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(10, 3.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(4, 1), width_ratios=(1, 1, 1.15))
    digits, mnist1d = (figure.add_subplot(grid[:, column]) for column in (0, 1))
    draw_accuracy(digits, named["granet/digits"], "digits, 64-128-128-10")
    draw_accuracy(mnist1d, named["granet/mnist1d"], "MNIST-1D, 40-200-200-10")
    digits.set_ylabel("test accuracy, %")
    handles, labels = digits.get_legend_handles_labels()
    digits.legend(handles, labels, frameon=False, loc="lower left")
    upper = figure.add_subplot(grid[0, 2])
    draw_plasticity(upper, figure.add_subplot(grid[1, 2], sharex=upper), named["granet/plasticity"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)


def draw_accuracy(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """Draw accuracy against sparsity, a line for each method."""
    found = accuracies(rows)
    places = range(len(SPARSITIES))
    dense = statistics.fmean(values(found, "dense"))
    axes.axhline(dense, color=GREY, linestyle=":", linewidth=1, label="dense")
    for method, (colour, marker) in STYLES.items():
        cells = [values(found, f"{method} {sparsity}") for sparsity in SPARSITIES]
        axes.errorbar(
            places,
            [statistics.fmean(cell) for cell in cells],
            [_error(cell) for cell in cells],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=method,
        )
    axes.set_xticks(places, [f"{sparsity} %" for sparsity in SPARSITIES])
    axes.set_xlabel("sparsity")
    axes.set_title(title, fontsize=9)


def draw_plasticity(upper: Axes, lower: Axes, rows: Sequence[Row]) -> None:
    """Draw pruning plasticity over training, and the learning rate below it."""
    mine = [row for row in rows if row["arm"] == "none"]
    at = mine[0]["at"]
    upper.axhline(0, color=GREY, linewidth=0.8)
    for rate, colour in RATES.items():
        curves = list(zip(*(row["plasticity"][rate] for row in mine), strict=True))
        upper.errorbar(
            at,
            [100 * statistics.fmean(points) for points in curves],
            [100 * _error(points) for points in curves],
            color=colour,
            marker="o",
            markersize=3,
            linewidth=1.2,
            capsize=2,
            label=f"{float(rate):.0%} pruned".replace("%", " %"),
        )
    for axes in (upper, lower):
        for drop in (0.5, 0.75):
            axes.axvline(drop, color=GREY, linestyle="--", linewidth=0.8)
    upper.set_ylabel("plasticity, points of accuracy")
    upper.set_title("MNIST-1D, 40-128-128-10, one-shot pruning", fontsize=9)
    upper.legend(frameon=False, loc="lower left")
    upper.tick_params(labelbottom=False)
    lower.step([0, 0.5, 0.75, 1], [0.1, 0.01, 0.001, 0.001], where="post", color=GREY)
    lower.set_yscale("log")
    lower.set_ylabel("learning\nrate")
    lower.set_xlabel("pruned after this share of training")


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
