"""Accumulators on the device, filled at the taps: what is kept of each unit's activations.

A *riding* recorder stays on the model. Its hooks read one bool, the gate, and write tensors only,
so that `torch.compile` can trace them. A forward pass counts when a backward pass reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynamo_probe.anatomy.layer import Layer
from dynamo_probe.anatomy.taps import install
from dynamo_probe.observation.apart import apart
from dynamo_probe.observation.batch import Batch
from dynamo_probe.observation.learner import Learned, Learner
from dynamo_probe.observation.statistics import Statistic, UnitSums

_REDUCTIONS: tuple[Literal["sum", "max"], ...] = ("sum", "max")


class Gate:
    """The one bool that a riding hook reads."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        """Begin shut."""
        self.on = False


class Slot:
    """The accumulators of one layer: views into the recorder's buffers.

    Attributes:
        sums: [statistics that sum, units].
        peaks: [statistics that take the maximum, units].
        samples: [1], the number of samples.
        learner: says which passes count; it comes with the hooks.
        loose: whether anything was added that no optimizer's step has made use of yet.
    """

    __slots__ = (
        "_kept",
        "_parts",
        "layer",
        "learner",
        "loose",
        "peaks",
        "samples",
        "statistics",
        "sums",
    )

    def __init__(self, layer: Layer, statistics: Sequence[Statistic]) -> None:
        """Make room on the CPU; `Recorder` moves it to where the layer is."""
        self.layer = layer
        self.statistics = tuple(statistics)
        self.sums = self.peaks = self.samples = torch.empty(0)
        self._parts: tuple[Tensor, ...] = ()
        self._kept: tuple[Tensor, ...] = ()
        self.learner = Learner()
        self.loose = False

    def place(self, sums: Tensor, peaks: Tensor) -> None:
        """Take a place in the buffers.

        Args:
            sums: [statistics that sum * units + 1], the number of samples last.
            peaks: [statistics that take the maximum * units].
        """
        width = self.layer.units * self.layer.replicas
        self.sums, self.samples = sums[:-1].view(-1, width), sums[-1:]
        self.peaks = peaks.view(-1, width)
        self._parts = (sums, peaks) if len(peaks) else (sums,)
        self._kept = tuple(part.clone() for part in self._parts)
        self.loose = False

    def keep(self) -> None:
        """Take what has been added for good: an optimizer's step has made use of it."""
        for kept, part in zip(self._kept, self._parts, strict=True):
            kept.copy_(part)
        self.loose = False

    def drop(self) -> None:
        """Take back what was added since `keep`."""
        for kept, part in zip(self._kept, self._parts, strict=True):
            part.copy_(kept)
        self.loose = False

    def takes(self, weight: Tensor) -> bool:
        """Whether a batch is to be added; takes back what was added before, where that is due.

        To be asked in a backward pass, with the weight that `Learner.weight` gave.
        """
        verdict = self.learner.asked(weight)
        if verdict == "ignore":
            return False
        if verdict == "restart" and self.loose:
            self.drop()
        self.loose = True
        return True

    def figures(self, read: Tensor) -> tuple[list[Tensor], list[Tensor], int]:
        """Compute the statistics of what a tap read: sums, peaks, number of samples."""
        h, tap, bounds, axis = read.detach(), self.layer.tap, self.layer.bounds, self.layer.tap.axis
        if tap.function is not None:
            h = tap.function(h)
        if self.layer.replica_axis is not None:  # replica by replica: [..., replicas * units]
            h = h.movedim((self.layer.replica_axis, axis), (-2, -1)).flatten(-2)
            axis = -1
        found: dict[str, list[Tensor]] = {"sum": [], "max": []}
        for statistic in self.statistics:
            found[statistic.reduce].append(statistic.compute(h, axis, bounds))
        width = self.layer.units * self.layer.replicas
        return found["sum"], found["max"], h.numel() // width

    def add(self, sums: list[Tensor], peaks: list[Tensor], samples: int) -> None:
        """Add figures of another batch."""
        for row, figure in zip(self.sums, sums, strict=True):
            row.add_(figure.to(row.device, non_blocking=True))
        for row, figure in zip(self.peaks, peaks, strict=True):
            torch.maximum(row, figure.to(row), out=row)
        self.samples.add_(samples)


class _Riding:
    """Counts a forward pass of a gated update when a backward pass reaches it.

    Unless the layer's weight, which is learned, is frozen in that pass: an actor's loss runs
    through the critic and is none of the critic's.
    """

    __slots__ = ("gate", "slot")

    def __init__(self, gate: Gate, slot: Slot) -> None:
        self.gate = gate
        self.slot = slot

    def __call__(self, read: Tensor) -> None:
        if self.gate.on and read.requires_grad and not self.slot.learner.frozen:
            gate, slot = self.gate, self.slot
            weight = slot.learner.weight()
            with torch.no_grad():
                figures = slot.figures(read)

            def commit(gradient: Tensor) -> None:
                if gate.on and (weight is None or slot.takes(weight)):
                    slot.add(*figures)

            read.register_hook(commit)


class Recorder:
    """Accumulates statistics of units over batches, in one buffer for each device and reduction."""

    def __init__(self, statistics: Sequence[Statistic]) -> None:
        """Name the statistics; the layers come with `prepare`."""
        self.statistics = tuple(statistics)
        self.gate = Gate()
        self.slots: dict[str, Slot] = {}
        self._sums: dict[torch.device, Tensor] = {}
        self._peaks: dict[torch.device, Tensor] = {}
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def prepare(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        """Make the accumulators for (more) layers, sorted by name: ranks agree on the order."""
        kept = {name: _state_of(slot) for name, slot in self.slots.items()}
        names = sorted({*self.slots, *layers})
        known = {name: slot.layer for name, slot in self.slots.items()} | dict(layers)
        self.slots = {
            name: self.slots.get(name) or Slot(known[name], self.statistics) for name in names
        }
        for device, slots in self._by_device(model).items():
            self._allocate(device, slots)
        self.clear()
        for name, state in (self._pending | kept).items():
            if name in self.slots:
                _restore(self.slots[name], state)
                self._pending.pop(name, None)

    def _by_device(self, model: nn.Module) -> dict[torch.device, list[Slot]]:
        groups: dict[torch.device, list[Slot]] = {}
        for name, slot in self.slots.items():
            parameter = next(model.get_submodule(name).parameters())
            groups.setdefault(parameter.device, []).append(slot)
        return groups

    def _allocate(self, device: torch.device, slots: list[Slot]) -> None:
        summed = sum(s.reduce == "sum" for s in self.statistics)
        peaked = len(self.statistics) - summed
        dtype = torch.float32 if device.type == "mps" else torch.float64
        units = sum(slot.layer.units * slot.layer.replicas for slot in slots)
        sums = self._sums[device] = torch.zeros(
            summed * units + len(slots), dtype=dtype, device=device
        )
        peaks = self._peaks[device] = torch.zeros(peaked * units, dtype=dtype, device=device)
        at = top = 0
        for slot in slots:
            n = slot.layer.units * slot.layer.replicas
            slot.place(sums[at : at + summed * n + 1], peaks[top : top + peaked * n])
            at, top = at + summed * n + 1, top + peaked * n

    def ride(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        learned: Mapping[str, Learned],
    ) -> None:
        """Put gated hooks on the model.

        Args:
            model: the model.
            layers: what to read, by name; they must have been prepared.
            learned: see `learned_layers`; what another network's loss sends through these layers
                does not count.
        """
        for name in layers:
            slot = self.slots[name]
            slot.learner = Learner(learned.get(name))
            self._handles.append(install(model, slot.layer.tap, self.rider(slot)))

    def rider(self, slot: Slot) -> Callable[[Tensor], None]:
        """Return the hook of one layer."""
        return _Riding(self.gate, slot)

    def clear(self) -> None:
        """Forget what was accumulated."""
        for sums in self._sums.values():
            sums.zero_()
        for peaks in self._peaks.values():
            peaks.fill_(float("-inf"))
        for slot in self.slots.values():
            slot.keep()

    def settle(self, owner: int) -> None:
        """Take for good what was added to the layers of an optimizer, which has stepped."""
        for slot in self.slots.values():
            if slot.loose and slot.learner.owner == owner:
                slot.keep()

    def read(self, group: Any = None) -> dict[str, UnitSums]:
        """Return what was accumulated; see `collect`."""
        return collect([self], group)[0]

    def buffers(self, reduce: Literal["sum", "max"]) -> dict[torch.device, Tensor]:
        """Return the flat buffer of each device: everything that is reduced in this way."""
        return self._sums if reduce == "sum" else self._peaks

    def unpacked(self, host: Mapping[tuple[str, torch.device], Tensor]) -> dict[str, UnitSums]:
        """Return the statistics by layer from copies of the flat buffers on the host."""
        return {name: self._sums_of(slot, host) for name, slot in self.slots.items()}

    def _sums_of(self, slot: Slot, host: Mapping[tuple[str, torch.device], Tensor]) -> UnitSums:
        values: dict[str, Tensor] = {}
        for kind, rows in (("sum", slot.sums), ("max", slot.peaks)):
            names = [s.name for s in self.statistics if s.reduce == kind]
            flat = host[kind, slot.samples.device]
            start = rows.storage_offset()
            table = flat[start : start + rows.numel()].view(rows.shape)
            values.update({name: table[i] for i, name in enumerate(names)})
        samples = host["sum", slot.samples.device][slot.samples.storage_offset()]
        return UnitSums(values, int(samples), slot.layer.bounds, slot.layer.replicas)

    def state_dict(self) -> dict[str, Any]:
        """Return the accumulators and the gate."""
        slots = {name: _state_of(slot) for name, slot in self.slots.items()}
        return {"on": self.gate.on, "slots": self._pending | slots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the accumulators back, now or when their layers are known."""
        self.gate.on = bool(state["on"])
        self.clear()
        self._pending = dict(state["slots"])
        for name in [name for name in self._pending if name in self.slots]:
            _restore(self.slots[name], self._pending.pop(name))

    def close(self) -> None:
        """Take the hooks off the model; what was accumulated stays for `state_dict`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def collect(recorders: Sequence[Recorder], group: Any = None) -> list[dict[str, UnitSums]]:
    """Read several recorders at once: one SUM and one MAX reduction, one copy to the host each.

    Args:
        recorders: in the same order on every rank, with the same layers.
        group: the process group to reduce over; None reads this rank alone.

    Returns:
        For each recorder the statistics by layer.
    """
    hosts: list[dict[tuple[str, torch.device], Tensor]] = [{} for _ in recorders]
    for reduce in _REDUCTIONS:
        parts = [
            (index, device, buffer)
            for index, recorder in enumerate(recorders)
            for device, buffer in recorder.buffers(reduce).items()
        ]
        if not parts:
            continue
        # A network spread over several devices is gathered on the first of them.
        flat = torch.cat([buffer.to(parts[0][1]) for _, _, buffer in parts])
        if group is not None and flat.numel():
            operation = dist.ReduceOp.SUM if reduce == "sum" else dist.ReduceOp.MAX
            dist.all_reduce(flat, operation, group=group)
        sizes = [buffer.numel() for _, _, buffer in parts]
        copies = flat.to("cpu", torch.float64).split(sizes)
        for (index, device, _), copy in zip(parts, copies, strict=True):
            hosts[index][reduce, device] = copy
    return [r.unpacked(host) for r, host in zip(recorders, hosts, strict=True)]


def measure(
    model: nn.Module,
    batch: Batch,
    layers: Mapping[str, Layer],
    statistics: Sequence[Statistic],
    *,
    entry: str = "",
    group: Any = None,
) -> dict[str, UnitSums]:
    """Measure the units of some layers on a batch in a forward pass apart from training.

    Args:
        model: the model that the layers are named in.
        batch: the inputs.
        layers: {name: layer}.
        statistics: what to measure of each unit.
        entry: name of the module that the batch is for; "" is the model itself.
        group: the process group to reduce over; None measures this rank alone.
    """
    recorder = Recorder(statistics)
    recorder.prepare(model, layers)

    def take(name: str, read: Tensor) -> None:
        slot = recorder.slots[name]
        slot.add(*slot.figures(read))

    _run_tapped(model, batch, layers, entry, take)
    sums = recorder.read(group)
    return {name: sums[name] for name in layers}


def activations(
    model: nn.Module, batch: Batch, layers: Mapping[str, Layer], *, entry: str = ""
) -> dict[str, Tensor]:
    """Return the activations of some layers on a batch, from a forward pass apart from training.

    Args:
        model: the model that the layers are named in.
        batch: the inputs.
        layers: {name: layer}.
        entry: name of the module that the batch is for; "" is the model itself.

    Returns:
        {name: [samples, units]}; for a convolution or a sequence every position is a sample.
    """
    found: dict[str, Tensor] = {}

    def take(name: str, read: Tensor) -> None:
        tap = layers[name].tap
        h = read.detach() if tap.function is None else tap.function(read.detach())
        found[name] = h.movedim(tap.axis, -1).reshape(-1, layers[name].units).clone()

    _run_tapped(model, batch, layers, entry, take)
    return found


def _run_tapped(
    model: nn.Module,
    batch: Batch,
    layers: Mapping[str, Layer],
    entry: str,
    take: Callable[[str, Tensor], None],
) -> None:
    handles = [install(model, layer.tap, partial(take, name)) for name, layer in layers.items()]
    try:
        with apart(model):
            batch.run(model.get_submodule(entry))
    finally:
        for handle in handles:
            handle.remove()


def _state_of(slot: Slot) -> dict[str, Tensor]:
    return {name: getattr(slot, name).to("cpu", copy=True) for name in ("sums", "peaks", "samples")}


def _restore(slot: Slot, state: Mapping[str, Tensor]) -> None:
    for name, values in state.items():
        getattr(slot, name).copy_(values)
    slot.keep()
