"""Kinds of layers: along which dimension of which tensor a unit has its entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

_RMS_NORM: tuple[type[nn.Module], ...] = (nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()

WEIGHTED = (nn.Linear, _ConvNd)
"""Layers that make units with the rows of a weight and read units with its columns."""
CHANNEL_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)
"""Norms whose units lie behind the batch axis."""
TRAILING_NORMS = (nn.LayerNorm, *_RMS_NORM)
"""Norms over the trailing axes of their input."""
NORMS = (*CHANNEL_NORMS, *TRAILING_NORMS)

_KNOWN = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.GroupNorm, *TRAILING_NORMS),
)
_FORWARDS = frozenset(kind.forward for kind in _KNOWN)


class NoSlice(Exception):
    """Says why a unit has no slices of a weight to itself."""


def unlike_its_kind(module: nn.Module) -> str | None:
    """Return why a weighted layer or norm cannot be taken for what its class says; None if it can.

    The rows and columns of `weight` mean what they mean in `nn.Linear` only as long as the module
    computes what `nn.Linear` computes, with a weight that is a parameter of its own.
    """
    if type(module).forward not in _FORWARDS or "forward" in vars(module):
        return f"has a forward of its own ({type(module).__name__})"
    named = {name for name, tensor in module.named_parameters(recurse=False) if tensor is not None}
    computed = isinstance(module, WEIGHTED) and "weight" not in named
    if parametrize.is_parametrized(module) or computed or not named <= {"weight", "bias"}:
        return "computes its weight (parametrization, weight norm, spectral norm or a pruning mask)"
    return None


def output_axis(module: nn.Module) -> int:
    """Return the axis of a weighted layer's output that counts its units, from the end."""
    return -1 if isinstance(module, nn.Linear) else -len(_convolution(module).kernel_size) - 1


def input_axis(module: nn.Module, dims: int) -> int:
    """Return the axis of a layer's input, which has `dims` axes, that holds units, from the end."""
    if isinstance(module, WEIGHTED):
        return output_axis(module)
    if isinstance(module, _InstanceNorm) and dims == module._get_no_batch_dim():
        return -dims
    if isinstance(module, CHANNEL_NORMS):
        return 1 - dims
    shape = getattr(module, "normalized_shape", None)
    return -len(shape) if shape else -1


def unit_dim(module: nn.Module) -> int:
    """Return the dimension of a weighted layer's weight that counts the units it makes.

    Raises:
        NoSlice: where a unit is not one slice of the weight.
    """
    if isinstance(module, nn.Linear) or not _convolution(module).transposed:
        return 0
    if _convolution(module).groups > 1:
        raise NoSlice("is a transposed convolution with groups")
    return 1


def own_unit_dim(module: nn.Module) -> int:
    """Return the dimension of any layer's weight that counts its units.

    Raises:
        NoSlice: when the weight has none, or is not a parameter of its own.
    """
    if not isinstance(module, WEIGHTED):
        return 1  # the transposed linear layer of GPT-2 in transformers
    unlike = unlike_its_kind(module)
    if unlike is not None:
        raise NoSlice(unlike)
    return unit_dim(module)


def reading_entries(module: nn.Module, channels: Tensor) -> tuple[int, Tensor]:
    """Return which entries of a weighted layer's weight read its input channels.

    Args:
        module: the layer.
        channels: int64 [units, k], input channels or features.

    Returns:
        The dimension of the weight, and int64 [units, m] along it.

    Raises:
        NoSlice: where a channel is not read by whole slices of the weight.
    """
    if isinstance(module, nn.Linear):
        return 1, channels
    convolution = _convolution(module)
    if convolution.groups == 1:
        return (0 if convolution.transposed else 1), channels
    if convolution.groups != convolution.in_channels or convolution.transposed:
        raise NoSlice("is a convolution with groups")
    # Depthwise: channel c is read by the rows c * m ... c * m + m - 1, and by nothing else.
    multiplier = convolution.out_channels // convolution.in_channels
    rows = channels.unsqueeze(-1) * multiplier + torch.arange(multiplier)
    return 0, rows.flatten(1)


def _convolution(module: nn.Module) -> _ConvNd:
    if not isinstance(module, _ConvNd):
        raise TypeError(f"{type(module).__name__} is neither linear nor convolutional")
    return module
