"""The parameters that an optimizer moves, by layer, and the one copy of their figures."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

Key = TypeVar("Key", bound=Hashable)


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the `id` of every parameter that an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def moved_by(optimizer: Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's parameters that an optimizer holds, by name, in the model's order."""
    held = held_by(optimizer)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in held and not is_lazy(parameter)
    }


def layer_of(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to."""
    return parameter.rpartition(".")[0] or "(model)"


def to_host(figures: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Copy figures that lie on devices to the host in float64, in one copy a device.

    Args:
        figures: numbers without dimensions, or rows of them.
    """
    groups: dict[torch.device, list[Key]] = {}
    for key, figure in figures.items():
        groups.setdefault(figure.device, []).append(key)
    found: dict[Key, Tensor] = {}
    for device, keys in groups.items():
        dtype = torch.float32 if device.type == "mps" else torch.float64
        rows = [figures[key].detach().reshape(-1).to(dtype) for key in keys]
        copy = torch.cat(rows).to("cpu", torch.float64)
        found.update(zip(keys, copy.split([len(row) for row in rows]), strict=True))
    return {key: found[key].view(figures[key].shape) for key in figures}
