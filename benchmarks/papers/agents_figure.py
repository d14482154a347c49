"""The picture of the claims about agents: `python -m benchmarks.papers.agents_figure FILE`."""

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
from benchmarks.papers.tables import Row
from dynamo_probe.sweeps.records import read_rows

# Okabe and Ito's colours; the dashes tell them apart in grey.
LOOKS = (
    ("#D55E00", "-"),
    ("#0072B2", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#555555", (0, (5, 1))),
)
OUT = Path("docs/images/agents.png")


def draw(rows: Sequence[Row], out: Path) -> Path:
    """Draw four panels into a PNG."""
    with plt.rc_context(STYLE | {"font.size": 9, "axes.titlesize": 10}):
        figure, panels = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
        series(
            panels[0, 0],
            [row for row in rows if row["name"] == "value-agents/asterix"],
            {"base": "moving targets", "frozen target": "frozen targets", "redo": "with ReDo"},
            "DQN on Asterix: dormant units",
            250,
        )
        series(
            panels[0, 1],
            [row for row in rows if row["name"] == "policy-agents/cartpole"],
            {
                "lr 3e-4": "3e-4",
                "lr 1e-3": "1e-3",
                "lr 3e-3": "3e-3",
                "lr 1e-2": "1e-2",
                "lr 3e-3, redo": "3e-3, ReDo",
            },
            "PPO on CartPole, by learning rate",
            400,
        )
        series(
            panels[1, 0],
            [row for row in rows if row["name"] == "value-agents/cartpole"],
            {
                "base": "nothing",
                "redo": "dormant units (ReDo)",
                "redo random": "random units",
                "redo inverted": "the most active units",
            },
            "DQN on CartPole: what is recycled",
            250,
        )
        pruned(panels[1, 1], [r for r in rows if r["name"] == "value-agents/cartpole-width"])
        figure.savefig(out, dpi=90)
        plt.close(figure)
    return out


def series(axes: Any, rows: Sequence[Row], arms: dict[str, str], title: str, every: int) -> None:
    """Draw the dormant fraction (tau 0.025) of some arms over updates: mean and standard error."""
    for (arm, label), (colour, dashes) in zip(arms.items(), LOOKS, strict=False):
        curves = [row["dormant"]["0.025"] for row in rows if row["arm"] == arm]
        shortest = min(map(len, curves))
        values = np.array([curve[:shortest] for curve in curves])
        updates = every * np.arange(shortest)
        mean = values.mean(0)
        error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * mean
        axes.plot(updates, mean, color=colour, linestyle=dashes, label=label)
        axes.fill_between(updates, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    axes.set_title(title)
    axes.set_xlabel("updates")
    axes.set_ylabel("dormant units (tau 0.025)")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(fontsize=8)


def pruned(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the return without some units, against the return with all of them."""
    base = [row for row in rows if row["arm"] == "base"]
    taus = ("0", "0.025", "0.1")
    kinds = ("dormant", "as many random", "as many most active")
    for place, (kind, (colour, _)) in enumerate(zip(kinds, LOOKS, strict=False)):
        for index, tau in enumerate(taus):
            shares = [
                r["pruned"][f"{kind}, tau {tau}"][1] / r["pruned"]["nothing"][1] for r in base
            ]
            error = np.std(shares, ddof=1) / len(shares) ** 0.5
            label = kind.removeprefix("as many ") if index == 0 else None
            axes.bar(
                index + 0.27 * (place - 1),
                np.mean(shares),
                0.25,
                yerr=error,
                color=colour,
                label=label,
            )
    axes.axhline(1.0, color="#555555", lw=1, ls="--")
    axes.set_xticks(range(len(taus)), [f"tau {tau}" for tau in taus])
    axes.set_title("DQN on CartPole: return after pruning units")
    axes.set_ylabel("share of the return with all units")
    axes.set_ylim(0, 1.6)
    axes.legend(fontsize=8, ncol=3)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="rows of value-agents and policy-agents")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    print(draw(read_rows(options.file), options.out))


if __name__ == "__main__":
    main()
