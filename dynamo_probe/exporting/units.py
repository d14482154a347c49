"""Which units go together, and what lies between them and the layers that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from dynamo_probe.anatomy import kinds
from dynamo_probe.anatomy.twin import eager, untouched_randomness
from dynamo_probe.anatomy.wiring import Wiring, wire
from dynamo_probe.observation.batch import Batch

_SEPARATE = (_BatchNorm, _InstanceNorm)
"""Norms in which a unit, in evaluation mode, knows nothing of the others."""


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a layer, or of two layers that are multiplied with each other (gate and up).

    Attributes:
        makers: names of the layers that make them.
        count: how many.
        readers: {layer: int64 [units, k]}, the k input channels that hold each unit.
    """

    makers: tuple[str, ...]
    count: int
    readers: Mapping[str, Tensor]


def find_units(model: nn.Module, batch: Batch) -> tuple[list[Units], dict[str, str]]:
    """Find the units that can be taken out by themselves.

    Args:
        model: a copy of the user's model, in evaluation mode, whose parameters all require
            gradients.
        batch: inputs of two or more different samples.

    Returns:
        The units, and for every other linear or convolutional layer the reason.
    """
    layers = [name for name, m in model.named_modules() if isinstance(m, kinds.WEIGHTED)]
    found: dict[tuple[str, ...], Units] = {}
    refused: dict[str, str] = {}
    for layer, wiring in wire(model, batch.args, batch.kwargs, layers).items():
        if isinstance(wiring, str):
            refused[layer] = wiring
            continue
        units = _units(wiring)
        reason = _inseparable(model, batch, units)
        if reason is None:
            found.setdefault(tuple(sorted(units.makers)), units)
        else:
            refused[layer] = reason
    return list(found.values()), refused


def channels_between(
    model: nn.Module, batch: Batch, units: Units, chosen: Tensor
) -> dict[str, Tensor]:
    """Follow some units to their readers; return where they pass modules with a size of their own.

    Args:
        model: a copy of the user's model, in evaluation mode.
        batch: the inputs.
        units: the units.
        chosen: bool [units], those to follow.

    Returns:
        {norm or PReLU with a slope for each channel: bool [channels], those that hold the units}.
    """
    seen: dict[str, Tensor] = {}
    carried: dict[str, Tensor] = {}

    def mark(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[kinds.output_axis(module)] = -1
        return output.masked_fill(chosen.to(output.device).view(shape), float("nan"))

    def read(_: nn.Module, x: Tensor) -> Tensor:
        return x.masked_fill(x.isnan(), 0.0)

    def note(name: str, axis: Callable[[Tensor], int]) -> Callable[[nn.Module, Tensor], Tensor]:
        def noted(_: nn.Module, x: Tensor) -> Tensor:
            nan = x.isnan()
            seen[name] = nan.movedim(axis(x), 0).flatten(1).any(1).cpu()
            carried[name] = nan
            return x

        return noted

    def carry(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _, __, output: output.masked_fill(carried.pop(name), float("nan"))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, kinds.NORMS):
                axis = _norm_axis(module)
                stack.callback(take_input(module, note(name, axis)).remove)
                stack.callback(module.register_forward_hook(carry(name)).remove)
            elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
                stack.callback(take_input(module, note(name, lambda x: min(1, x.dim() - 1))).remove)
            elif isinstance(module, kinds.WEIGHTED):
                stack.callback(take_input(module, read).remove)
            if name in units.makers:
                stack.callback(module.register_forward_hook(mark).remove)
        run(model, batch)
    return {name: channels for name, channels in seen.items() if bool(channels.any())}


def run(model: nn.Module, batch: Batch) -> None:
    """Run a copy of a model on a copy of the inputs, without gradients."""
    with untouched_randomness(model), torch.no_grad(), eager():
        batch.clone().run(model)


def take_input(module: nn.Module, take: Callable[[nn.Module, Tensor], Tensor]) -> Any:
    """Pass what a module gets through a function; return the hook's handle."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (take(module, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": take(module, kwargs["input"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _units(wiring: Wiring) -> Units:
    readers = {entries.name.rpartition(".")[0]: entries.index for entries in wiring.outgoing}
    makers = tuple(entries.name.rpartition(".")[0] for entries in wiring.incoming)
    return Units(makers, wiring.units, readers)


def _inseparable(model: nn.Module, batch: Batch, units: Units) -> str | None:
    """Return why units cannot be taken out one by one; None if they can."""
    modules = dict(model.named_modules())
    for name in (*units.makers, *units.readers):
        module = modules[name]
        if isinstance(module, _ConvNd) and module.groups > 1:
            return f"`{name}` is a convolution with groups, which would no longer be of one size"
    for name in channels_between(model, batch, units, torch.ones(units.count, dtype=torch.bool)):
        if isinstance(modules[name], kinds.NORMS) and not isinstance(modules[name], _SEPARATE):
            return (
                f"its units pass `{name}` ({type(modules[name]).__name__}), whose statistics would "
                "change without them"
            )
    return None


def _norm_axis(module: nn.Module) -> Callable[[Tensor], int]:
    return lambda x: kinds.input_axis(module, x.dim())
