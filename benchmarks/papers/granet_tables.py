"""Tables of the sparse runs: accuracy by method and sparsity, and how pairs of methods differ."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.papers.granet import METHODS, SPARSITIES
from benchmarks.papers.tables import Row, mean_and_error

PAIRS = (
    ("SET", "static"),
    ("RigL", "SET"),
    ("GraNet(0.5)", "RigL"),
    ("GMP(0.5)", "RigL"),
    ("GraNet(0.5)", "GMP(0.5)"),
    ("GraNet(0)", "GraNet(0.5)"),
    ("GraNet(0)", "GMP(0)"),
    ("GraNet(0)", "GraNet(0) random"),
    ("GMP(0.5), ERK", "RigL"),
    ("GraNet(0.5), ERK", "RigL"),
    ("GraNet(0.5), ERK", "GMP(0.5), ERK"),
    ("GraNet(0), ERK", "GraNet(0.5), ERK"),
    ("GraNet(0), ERK", "GMP(0), ERK"),
    ("GraNet(0), ERK", "GraNet(0) random, ERK"),
    ("GMP(0)", "GMP(0), ERK"),
    ("GraNet(0)", "GraNet(0), ERK"),
)

Accuracies = dict[tuple[str, int], float]


def accuracies(rows: Sequence[Row]) -> Accuracies:
    """Return {(arm, seed): test accuracy in per cent}."""
    return {(row["arm"], row["seed"]): 100 * row["accuracy"] for row in rows}


def values(found: Accuracies, arm: str) -> list[float]:
    """Return the accuracies of an arm, seed by seed."""
    return [accuracy for (name, _), accuracy in sorted(found.items()) if name == arm]


def differences(found: Accuracies, first: str, second: str) -> list[float]:
    """Return by how many points an arm is better than another, for each seed that has both."""
    return [
        accuracy - found[second, seed]
        for (name, seed), accuracy in sorted(found.items())
        if name == first and (second, seed) in found
    ]


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table of accuracies and one of paired differences, a line each."""
    found = accuracies(rows)
    columns = [f"{sparsity} %" for sparsity in SPARSITIES]
    seeds = len({row["seed"] for row in rows})
    lines = [_line(f"method ({seeds} seeds)", columns), "|---|" + "---:|" * len(columns)]
    if dense := values(found, "dense"):
        lines.append(_line("dense (0 %)", [mean_and_error(dense), *[""] * (len(columns) - 1)]))
    for method in METHODS:
        cells = [values(found, f"{method} {sparsity}") for sparsity in SPARSITIES]
        if any(cells):
            lines.append(_line(method, [mean_and_error(cell) if cell else "" for cell in cells]))
    lines += ["", _line("paired over seeds", columns), "|---|" + "---:|" * len(columns)]
    for first, second in PAIRS:
        pairs = [differences(found, f"{first} {s}", f"{second} {s}") for s in SPARSITIES]
        if any(pairs):
            cells = [_signed(pair) if pair else "" for pair in pairs]
            lines.append(_line(f"{first} - {second}", cells))
    return "\n".join(lines)


def _line(first: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([first, *cells]) + " |"


def _signed(points: Sequence[float]) -> str:
    text = mean_and_error(points, digits=2)
    return text if text.startswith("-") else f"+{text}"
