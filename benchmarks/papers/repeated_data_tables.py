"""Tables of the runs on repeated data: the figures, the damage in size, the control subtracted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from benchmarks.papers.repeated_data import Arm, parse
from benchmarks.papers.tables import Row, mean_and_error
from dynamo_probe.functional.effective_size import compute_equivalent_loss, effective_size

Figure = Callable[[Row], float]


def prefix_matching(point: Row) -> float:
    """Return that of the best head."""
    return max(map(max, point["prefix_matching"]))


METRICS: dict[str, Figure] = {
    "test": lambda row: row["last"]["test"],
    "copy": lambda row: row["last"]["copy"],
    "random copy": lambda row: row["last"]["random_copy"],
    "prefix matching": lambda row: prefix_matching(row["last"]),
}


OF_HEADS = (METRICS["random copy"], METRICS["prefix matching"])


def _unrepeated(row: Row) -> bool:
    return parse(row["arm"]).percent == 0


def of_arm(rows: Sequence[Row], arm: str, figure: Figure) -> dict[int, float]:
    """Return {seed: figure} of an arm."""
    return {row["seed"]: figure(row) for row in rows if row["arm"] == arm}


def baseline(rows: Sequence[Row], figure: Figure) -> dict[float, float]:
    """Return {size: mean figure over seeds} of the runs without repeats."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if _unrepeated(row):
            found.setdefault(row["size"], []).append(figure(row))
    return {size: statistics.fmean(figures) for size, figures in sorted(found.items())}


def divisor(table: dict[float, float], size: float, metric: float) -> float:
    """Return how many times smaller an unrepeated model with the same metric is.

    Infinite where all of the baseline's models are better, 0 where none is: neither is a figure,
    but the table has to tell one from the other. NaN where the baseline has no single such size.
    """
    found = effective_size(table, metric)
    if found.reason is None:
        return size / found
    if min(table.values()) <= metric <= max(table.values()):
        return math.nan
    smallest, largest = table[min(table)], table[max(table)]
    worse = metric > smallest if smallest > largest else metric < smallest
    return math.inf if worse else 0.0


def shown(times: float, table: dict[float, float], size: float) -> str:
    """Write a divisor; what is outside the baseline's sizes as a bound."""
    if math.isinf(times):
        return f"> {size / min(table):.1f}"
    if times == 0:
        return f"< {size / max(table):.1f}"
    return "ambiguous" if math.isnan(times) else f"{times:.2f}"


def damage(rows: Sequence[Row], arm: str, figure: Figure) -> str:
    """Return the divisor of an arm's mean figure and, in brackets, the least and most of a seed."""
    if figure in OF_HEADS and not any(row["formed"] for row in rows if _unrepeated(row)):
        # What the baselines have not learned differs between them by chance only.
        return "no head in any baseline"
    table = baseline(rows, figure)
    size = next(row["size"] for row in rows if row["arm"] == arm)
    found = list(of_arm(rows, arm, figure).values())
    middle = shown(divisor(table, size, statistics.fmean(found)), table, size)
    seeds = [divisor(table, size, one) for one in found]
    if len(seeds) < 2 or any(map(math.isnan, seeds)):
        return middle
    ends = [shown(end, table, size) for end in (min(seeds), max(seeds))]
    return f"{middle} ({ends[0]} to {ends[1]})"


def compute_lost(rows: Sequence[Row], arm: str) -> str:
    """Return the share of an arm's updates that its mean test loss was not worth.

    The learning rate stays, so the curve of the baseline is the table of shorter runs.
    """
    fresh, _ = controls(parse(arm))
    curves = [row["curve"] for row in rows if row["arm"] == fresh]
    table = {
        points[0]["update"]: statistics.fmean(point["test"] for point in points)
        for points in zip(*curves, strict=True)
    }
    ends = [row["curve"][-1] for row in rows if row["arm"] == arm]
    loss = statistics.fmean(point["test"] for point in ends)
    lost = compute_equivalent_loss(table, loss, ends[0]["update"])
    if lost.reason is None:
        return f"{100 * lost:.0f} %"
    if loss > max(table.values()):
        return f"> {100 * (1 - min(table) / ends[0]['update']):.0f} %"
    return "< 0 %" if loss < min(table.values()) else "ambiguous"


def differences(rows: Sequence[Row], first: str, second: str, figure: Figure) -> list[float]:
    """Return by how much an arm's figure is above another's, for each seed that has both."""
    other = of_arm(rows, second, figure)
    return [
        value - other[seed] for seed, value in of_arm(rows, first, figure).items() if seed in other
    ]


def controls(arm: Arm) -> tuple[str, str]:
    """Return the names of an arm's baseline and of its control."""
    return f"d={arm.width}", f"d={arm.width} {arm.percent}% unique"


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table of figures, one of divisors and one of paired differences."""
    there = [arm for arm in arms if any(row["arm"] == arm for row in rows)]
    repeated = [arm for arm in there if parse(arm).repeats is not None]
    lines = figures(rows, there)
    if repeated and len(baseline(rows, METRICS["test"])) > 1:
        lines += ["", *damages(rows, repeated)]
    harmed = [arm for arm in repeated if all(one in there for one in controls(parse(arm)))]
    if harmed:
        lines += ["", *harms(rows, harmed)]
    return "\n".join(lines)


def figures(rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    """Return the lines of what was measured."""
    columns = ["arm", "seeds", "size", *METRICS, "loss on repeated", "head formed at", "CPU s"]
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        cells = [arm, str(len(mine)), f"{mine[0]['size']:,}"]
        cells += [mean_and_error([figure(row) for row in mine], 3) for figure in METRICS.values()]
        known = [row["last"]["repeated"] for row in mine if row["last"]["repeated"] is not None]
        cells.append(mean_and_error(known, 3) if known else "")
        cells.append(", ".join(str(row["formed"] or "never") for row in mine))
        cells.append(mean_and_error([row["seconds"] for row in mine], 0))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def damages(rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    """Return the lines of how many times smaller the repeats make a model."""
    lines = [
        "| effective-size divisor | "
        + " | ".join([*METRICS, "test: share of compute lost"])
        + " |",
        "|---|" + "---:|" * (1 + len(METRICS)),
    ]
    for arm in arms:
        cells = [damage(rows, arm, figure) for figure in METRICS.values()]
        cells.append(compute_lost(rows, arm))
        lines.append("| " + " | ".join([arm, *cells]) + " |")
    return lines


def harms(rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    """Return the lines of what the repeats do, less what their place is worth."""
    lines = [
        "| paired over seeds | " + " | ".join(METRICS) + " |",
        "|---|" + "---:|" * len(METRICS),
    ]
    pairs: dict[tuple[str, str], None] = {}
    for arm in arms:
        fresh, unique = controls(parse(arm))
        pairs[unique, fresh] = None
        pairs[arm, unique] = None
    for first, second in pairs:
        cells = [
            mean_and_error(differences(rows, first, second, figure), 3)
            for figure in METRICS.values()
        ]
        lines.append("| " + " | ".join([f"{first} - {second}", *cells]) + " |")
    return lines
