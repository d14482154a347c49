"""What a report of sparsity holds, and how it reads as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

_HEADINGS = ("weight", "shape", "there", "density", "no input", "no output", "unread", "mult-adds")


@dataclass(frozen=True, slots=True)
class WeightSparsity:
    """The connections of one weight.

    Attributes:
        shape: of the weight.
        connections: entries that are there.
        outside: entries that are not 0 though the mask has no connection there: the mask is not put
            on the weight.
        fan_in: int64 [units], connections that lead into each unit.
        without_input: BoolTensor[units], units that no connection leads into. Two weights lead
            into the gates of a recurrent layer.
        without_output: BoolTensor[units], units that no connection reads; None where it is not
            known what reads them.
        unread: BoolTensor[inputs], inputs that no connection of this weight reads.
        multiply_adds, dense_multiply_adds: for one sample; None where they are not known.
        bytes: what all its values take.
        bitmask_bytes: one bit for each entry, and the values of the connections.
        csr_bytes: compressed sparse rows with int32 indices.
    """

    shape: tuple[int, ...]
    connections: int
    outside: int
    fan_in: Tensor
    without_input: Tensor
    without_output: Tensor | None
    unread: Tensor
    multiply_adds: float | None
    dense_multiply_adds: float | None
    bytes: int
    bitmask_bytes: int
    csr_bytes: int

    @property
    def size(self) -> int:
        """Entries, whether or not they are there."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Share of the entries that are there."""
        return self.connections / self.size


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """What `sparsity_report` found; `print` it for a table.

    Attributes:
        weights: {name: connections of the weight}, in the model's order.
        left: {name: why it is left whole}, for every other parameter.
        left_bytes: what those take.
        units: units that the weights lead into; the gates of a recurrent layer count once.
        units_without_input: those that no connection leads into.
        hidden_units: units of which it is known what reads them.
        units_without_output: those that no connection reads; None without inputs.
        unwired: {layer: why it is not known what reads its units}.
        multiply_adds, dense_multiply_adds: for one sample and all parameters, those left whole
            included; None without inputs, or where a product cannot be counted.
        uncounted: {parameter or module: why its multiply-adds cannot be counted}.
    """

    weights: Mapping[str, WeightSparsity]
    left: Mapping[str, str]
    left_bytes: int
    units: int
    units_without_input: int
    hidden_units: int
    units_without_output: int | None
    unwired: Mapping[str, str]
    multiply_adds: float | None
    dense_multiply_adds: float | None
    uncounted: Mapping[str, str]

    @property
    def size(self) -> int:
        """Entries of the weights, whether or not they are there."""
        return sum(weight.size for weight in self.weights.values())

    @property
    def connections(self) -> int:
        """Entries of the weights that are there."""
        return sum(weight.connections for weight in self.weights.values())

    @property
    def density(self) -> float:
        """Share of the weights' entries that are there; NaN without weights."""
        return self.connections / self.size if self.weights else float("nan")

    @property
    def bytes(self) -> int:
        """What all parameters take as they are."""
        return self.left_bytes + sum(weight.bytes for weight in self.weights.values())

    @property
    def bitmask_bytes(self) -> int:
        """What all parameters take, weights as one bit an entry and the values that are there."""
        return self.left_bytes + sum(weight.bitmask_bytes for weight in self.weights.values())

    @property
    def csr_bytes(self) -> int:
        """What all parameters take, weights as compressed sparse rows."""
        return self.left_bytes + sum(weight.csr_bytes for weight in self.weights.values())

    def __str__(self) -> str:
        """Lay it out as a table."""
        rows = [_HEADINGS, *(_row(name, weight) for name, weight in self.weights.items())]
        total = (
            "all of these",
            "",
            f"{self.connections:,}",
            _share(self.density),
            f"{self.units_without_input:,} of {self.units:,}",
            _of(self.units_without_output, self.hidden_units),
            "",
            _number(sum_known(weight.multiply_adds for weight in self.weights.values())),
        )
        lines = _aligned([*rows, total])
        if self.multiply_adds is not None and self.dense_multiply_adds is not None:
            sparse, dense = self.multiply_adds, self.dense_multiply_adds
            lines.append(
                f"multiply-adds for one sample: {sparse:,.0f} of {dense:,.0f}{_part(sparse, dense)}"
            )
        lines.append(
            f"bytes: {self.bytes:,}; as bitmask and values {self.bitmask_bytes:,}"
            f"{_part(self.bitmask_bytes, self.bytes)}; as CSR with int32 {self.csr_bytes:,}"
            f"{_part(self.csr_bytes, self.bytes)}"
        )
        outside = [f"{n} ({w.outside:,})" for n, w in self.weights.items() if w.outside]
        if outside:
            lines.append(f"not 0 where the mask has no connection: {', '.join(outside)}")
        lines += _reasons(f"left whole ({self.left_bytes:,} bytes)", self.left)
        lines += _reasons("readers not known", self.unwired)
        lines += _reasons("multiply-adds not counted", self.uncounted)
        return "\n".join(lines)


def sum_known(figures: Iterable[float | None]) -> float | None:
    """Return a sum; None where one of the figures is not known."""
    total = 0.0
    for figure in figures:
        if figure is None:
            return None
        total += figure
    return total


def _row(name: str, weight: WeightSparsity) -> tuple[str, ...]:
    silent = weight.without_output
    return (
        name,
        "x".join(map(str, weight.shape)),
        f"{weight.connections:,}",
        _share(weight.density),
        _of(int(weight.without_input.sum()), len(weight.without_input)),
        "-" if silent is None else _of(int(silent.sum()), len(silent)),
        _of(int(weight.unread.sum()), len(weight.unread)),
        _number(weight.multiply_adds),
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _reasons(heading: str, reasons: Mapping[str, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    lines = [f"  {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return [f"{heading}:", *lines] if lines else []


def _share(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.4f}"


def _of(part: int | None, whole: int) -> str:
    return "-" if part is None or not whole else f"{part:,} of {whole:,}"


def _number(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.0f}"


def _part(part: float, whole: float) -> str:
    return f" ({part / whole:.2%})" if whole else ""
