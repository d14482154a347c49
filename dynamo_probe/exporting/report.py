"""What an export did, and what that brought: sizes, multiply-adds, times and reasons."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_probe.exporting.timing import Timing


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What was done with one layer.

    Attributes:
        layer: qualified name of the layer.
        kind: its class.
        changed: whether anything was done.
        what: what was done, or why nothing was.
        weights: entries of its weights in the given model.
        nonzeros: those of them that are not 0.
    """

    layer: str
    kind: str
    changed: bool
    what: str
    weights: int
    nonzeros: int


@dataclass(frozen=True, slots=True)
class Size:
    """How large a model is.

    Attributes:
        parameters: numbers stored as weights and biases; tied ones count once.
        nonzeros: those of them that are not 0.
        memory: bytes of the storages of all parameters and buffers, each storage once.
        disk: bytes of `torch.save(model.state_dict())`.
    """

    parameters: int
    nonzeros: int
    memory: int
    disk: int


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-adds with weights in the forward pass of one sample.

    Attributes:
        dense: with every entry of the weights, as dense kernels do; None where something cannot be
            counted.
        effective: with the entries that are not 0; only a sparse kernel leaves out the others.
        uncounted: what cannot be counted, and why.
    """

    dense: float | None
    effective: float | None
    uncounted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did, layer by layer, and what it brought on this machine.

    Attributes:
        format: `dense`, `csr`, `2:4` or `compact`.
        layers: every layer with weights of two or more dimensions: what was done, or why not.
        before, after: sizes of the given and of the exported model.
        work_before, work_after: multiply-adds of one sample; None without inputs.
        difference: largest absolute difference of an output on the inputs, in evaluation mode;
            None without inputs.
        timing: times of forward passes; None where they were not measured.
        untimed: why they were not.
        torch_version, device, threads: what this was measured with.
        notes: what else to know.
    """

    format: str
    layers: tuple[LayerReport, ...]
    before: Size
    after: Size
    work_before: Work | None
    work_after: Work | None
    difference: float | None
    timing: Timing | None
    untimed: str
    torch_version: str
    device: str
    threads: int
    notes: tuple[str, ...] = ()

    @property
    def smaller(self) -> bool:
        """Whether the exported model takes less memory."""
        return self.after.memory < self.before.memory

    @property
    def faster(self) -> bool | None:
        """Whether it is faster by more than the noise; None where that was not measured."""
        return None if self.timing is None else self.timing.faster

    def __str__(self) -> str:
        """Return the report as a table."""
        return "\n".join((*self._head(), *self._figures(), *self._layers(), *self._notes()))

    def _head(self) -> list[str]:
        before, after = self.before.memory, self.after.memory
        size = f"{_bytes(after)} in memory in place of {_bytes(before)}"
        speed = f"not timed: {self.untimed}" if self.timing is None else self.timing.verdict
        done = sum(layer.changed for layer in self.layers)
        return [
            f"export as {self.format!r}: {done} of {len(self.layers)} layers changed",
            f"  size:  {'smaller' if self.smaller else 'not smaller'}: {size}",
            f"  speed: {speed}",
            f"  on:    torch {self.torch_version}, {self.device}, threads: {self.threads}",
        ]

    def _figures(self) -> list[str]:
        rows = [
            ("parameters", f"{self.before.parameters:,}", f"{self.after.parameters:,}"),
            ("non-zeros", f"{self.before.nonzeros:,}", f"{self.after.nonzeros:,}"),
            ("bytes in memory", f"{self.before.memory:,}", f"{self.after.memory:,}"),
            ("bytes on disk", f"{self.before.disk:,}", f"{self.after.disk:,}"),
        ]
        if self.work_before is not None and self.work_after is not None:
            for kind in ("dense", "effective"):
                old, new = (getattr(w, kind) for w in (self.work_before, self.work_after))
                if old is not None and new is not None:
                    rows.append((f"multiply-adds, {kind}", f"{old:,.10g}", f"{new:,.10g}"))
        if self.timing is not None:
            old, new = (f"{1e3 * t:.3f} ms" for t in (self.timing.before, self.timing.after))
            rows.append(("median forward pass", old, new))
        rows.insert(0, ("", "before", "after"))
        return ["", *_table(rows, right=(1, 2))]

    def _layers(self) -> list[str]:
        rows = [("layer", "kind", "density", "")]
        for layer in self.layers:
            density = f"{layer.nonzeros / layer.weights:.3f}" if layer.weights else "empty"
            rows.append((layer.layer or "(the model)", layer.kind, density, layer.what))
        return ["", *_table(rows, right=(2,))]

    def _notes(self) -> list[str]:
        notes = list(self.notes)
        if self.difference is not None:
            notes.append(f"largest difference of an output on the inputs: {self.difference:.3g}")
        uncounted = () if self.work_before is None else self.work_before.uncounted
        notes += [f"multiply-adds cannot be counted: {why}" for why in uncounted]
        return ["", *(f"- {note}" for note in notes)] if notes else []


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def _table(rows: list[tuple[str, ...]], right: tuple[int, ...]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
