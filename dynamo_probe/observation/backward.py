"""Gradients as the backward pass leaves them: at the outputs of layers, and at parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.layer import Layer, units_of
from dynamo_probe.anatomy.taps import Tap
from dynamo_probe.functional.gradients import norms
from dynamo_probe.observation.learner import Learned
from dynamo_probe.observation.recorder import Gate, Recorder, Slot
from dynamo_probe.observation.statistics import UNBOUNDED, Statistic


class BackwardRecorder(Recorder):
    """Accumulates statistics of dL/dz over gated updates, z being the output of a hidden layer.

    Several backward passes through one forward pass count one by one.

    Attributes:
        norms: {parameter: (updates seen when it was taken, L2 norm of its gradient)}, of the
            parameters that it follows, as the last backward pass left the gradient.
    """

    def __init__(self, statistics: Sequence[Statistic], *, rides: bool = True) -> None:
        """Name the statistics.

        Args:
            statistics: what to compute of the gradients at a layer's units.
            rides: whether hooks on the layers would be called at all.
        """
        super().__init__(statistics)
        self.rides = rides
        self.norms: dict[str, tuple[int, Tensor]] = {}

    def prepare(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        """Make the accumulators for (more) layers."""
        if self.rides:
            super().prepare(model, {n: _at_output(model, layer) for n, layer in layers.items()})

    def ride(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        learned: Mapping[str, Learned],
    ) -> None:
        """Put gated hooks on the layers; as `Recorder.ride`."""
        if self.rides:
            super().ride(model, layers, learned)

    def rider(self, slot: Slot) -> _RidingBack:
        """Return the hook of one layer."""
        return _RidingBack(self.gate, slot)

    def follow(self, parameters: Mapping[str, nn.Parameter], clock: Callable[[], int]) -> None:
        """Take the norm of each parameter's gradient whenever a backward pass has added to it.

        Args:
            parameters: those to follow, by name; frozen ones are left out.
            clock: says how many updates have been seen.
        """
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                hook = _Following(self.gate, self.norms, name, clock)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def clear(self) -> None:
        """Forget what was accumulated."""
        super().clear()
        self.norms.clear()


class _RidingBack:
    """Adds the gradient at a layer's output when a backward pass of a gated update reaches it.

    Not while the layer is frozen for another network's loss.
    """

    __slots__ = ("gate", "slot")

    def __init__(self, gate: Gate, slot: Slot) -> None:
        self.gate = gate
        self.slot = slot

    def __call__(self, output: Tensor) -> None:
        if self.gate.on and output.requires_grad and not self.slot.learner.frozen:
            gate, slot = self.gate, self.slot
            weight = slot.learner.weight()

            def commit(gradient: Tensor) -> None:
                if gate.on and (weight is None or slot.takes(weight)):
                    with torch.no_grad():
                        slot.add(*slot.figures(gradient))

            output.register_hook(commit)


class _Following:
    __slots__ = ("clock", "gate", "name", "norms")

    def __init__(
        self,
        gate: Gate,
        norms: dict[str, tuple[int, Tensor]],
        name: str,
        clock: Callable[[], int],
    ) -> None:
        self.gate = gate
        self.norms = norms
        self.name = name
        self.clock = clock

    def __call__(self, parameter: Tensor) -> None:
        if self.gate.on and parameter.grad is not None:
            with torch.no_grad():
                self.norms[self.name] = self.clock(), norms([parameter.grad])[0]


def _at_output(model: nn.Module, layer: Layer) -> Layer:
    """Return the layer read at its own output, where gradients have either sign."""
    found = units_of(model.get_submodule(layer.name))
    axis = layer.tap.axis if found is None else found[1]
    return replace(layer, tap=Tap(layer.name, None, None, axis), bounds=UNBOUNDED)


def loss_scale() -> float:
    """Return by what the gradient scaler that is stepping now has multiplied the loss; else 1.

    An optimizer is not told of its scaler. To be called from a hook of the optimizer's step, which
    a `torch.amp.GradScaler` calls from a frame of its own.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "step":
            caller = frame.f_locals.get("self")
            if isinstance(caller, torch.amp.GradScaler):
                return float(caller.get_scale())
        frame = frame.f_back
    return 1.0


def unscaling(optimizer: Optimizer) -> float | Tensor:
    """Return by what a fused optimizer is going to divide its gradients in its step; else 1."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale
