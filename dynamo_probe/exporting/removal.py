"""Take units out of a model: shorter weights, norms and biases, and the sizes modules state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from dynamo_probe.anatomy import kinds
from dynamo_probe.exporting.units import Units, channels_between
from dynamo_probe.observation.batch import Batch


def remove_units(
    model: nn.Module, batch: Batch, groups: Sequence[Units], masks: Sequence[Tensor]
) -> None:
    """Take units out of a model that `find_units` found, in place.

    Args:
        model: a copy of the user's model, in evaluation mode.
        batch: the inputs, to see what the units pass on their way.
        groups: the units of some layers.
        masks: bool [units] for each, those to take out; not all of a layer.
    """
    modules = dict(model.named_modules())
    made: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    passed: dict[str, Tensor] = {}
    for units, mask in zip(groups, masks, strict=True):
        if not bool(mask.any()):
            continue
        for name in units.makers:
            made[name] = mask
        for name, index in units.readers.items():
            gone = read.setdefault(name, torch.zeros(_inputs(modules[name]), dtype=torch.bool))
            gone[index[mask].flatten()] = True
        # Two layers may pass one norm side by side, after a concatenation.
        for name, gone in channels_between(model, batch, units, mask).items():
            passed[name] = passed.get(name, gone) | gone
    for name, gone in made.items():
        _cut(modules[name], "weight", kinds.unit_dim(modules[name]), ~gone)
        _cut(modules[name], "bias", 0, ~gone)
    for name, gone in read.items():
        _cut(modules[name], "weight", 1 - kinds.unit_dim(modules[name]), ~gone)
    for name, gone in passed.items():
        for own in ("weight", "bias", "running_mean", "running_var"):
            _cut(modules[name], own, 0, ~gone)
    for name in (*made, *read):
        _state_sizes(modules[name])
    for name, gone in passed.items():
        module, left = modules[name], int((~gone).sum())
        if isinstance(module, _NormBase):
            module.num_features = left
        elif isinstance(module, nn.PReLU):
            module.num_parameters = left


def _cut(module: nn.Module, own: str, dim: int, kept: Tensor) -> None:
    """Keep some slices of a parameter or buffer, where the module has it."""
    tensor = getattr(module, own, None)
    if not isinstance(tensor, Tensor):
        return
    where = kept.nonzero().flatten().to(tensor.device)
    shorter = tensor.detach().index_select(dim, where)
    if isinstance(tensor, nn.Parameter):
        shorter = nn.Parameter(shorter, requires_grad=tensor.requires_grad)
    setattr(module, own, shorter)


def _inputs(module: nn.Module) -> int:
    return module.get_parameter("weight").shape[1 - kinds.unit_dim(module)]


def _state_sizes(module: nn.Module) -> None:
    """Write a layer's sizes into its attributes."""
    shape = module.get_parameter("weight").shape
    units, inputs = shape[kinds.unit_dim(module)], shape[1 - kinds.unit_dim(module)]
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = units, inputs
    elif isinstance(module, _ConvNd):
        module.out_channels, module.in_channels = units, inputs
