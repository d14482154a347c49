"""Parameters that `fully_shard` spreads over ranks: all of one, and this rank's part of it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a `DTensor`."""
    # Its module takes a second to import, and where nobody did, there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; of a sharded one every rank has to ask at the same time."""
    full: Any = tensor
    return full.full_tensor() if is_sharded(tensor) else tensor


def stored(tensor: Tensor) -> Tensor:
    """Return what this rank stores of a tensor: all of one that is not sharded, as a view."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def own_slice(like: Tensor, values: Tensor) -> Tensor:
    """Return the part of a whole tensor that belongs to what this rank stores of another.

    Args:
        like: a tensor, sharded or not.
        values: a plain tensor of the whole shape.
    """
    if not is_sharded(like):
        return values
    shape, offset = _own_place(like)
    for axis, (length, start) in enumerate(zip(shape, offset, strict=True)):
        values = values.narrow(axis, min(start, values.shape[axis]), length)
    return values


def _own_place(tensor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    return compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )


def own_part(
    tensor: Tensor, dim: int, index: Tensor, values: Tensor | float
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return what a write to slices of a tensor means for this rank's part of it.

    Args:
        tensor: a tensor, sharded or not.
        dim: the dimension that `index` counts along.
        index: int64 [n], positions in the whole tensor.
        values: one number, or a tensor that is n long along `dim` and otherwise whole.

    Returns:
        The tensor that is stored here, and index and values for it.
    """
    if not is_sharded(tensor):
        return tensor, index, values
    shape, offset = _own_place(tensor)
    local = stored(tensor)
    for axis, (length, start) in enumerate(zip(shape, offset, strict=True)):
        if axis == dim:
            here = (index >= start) & (index < start + length)
            index = index[here] - start
            if isinstance(values, Tensor):
                values = values.index_select(dim, here.nonzero().flatten().to(values.device))
        elif isinstance(values, Tensor):
            values = values.narrow(axis, start, length)
    return local, index, values


def plain_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class that a module had before `fully_shard`; None where it was not sharded."""
    lineage: tuple[type, ...] = type(module).__mro__
    sharded = len(lineage) > 2 and lineage[1].__name__ == "FSDPModule"
    return next(iter(lineage[2:]), None) if sharded else None


def reshard(model: nn.Module) -> None:
    """Let go of the gathered weights that a forward pass of a sharded model leaves behind.

    They would hide what is written into the shards until the next backward pass.
    """
    for module in model.modules():
        if plain_class(module) is not None:
            sharded: Any = module
            sharded.reshard()


def without_sharding(module: nn.Module, plain: type[nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    """Return an empty module of the plain class, and the attributes of the sharded one to copy."""
    kept = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("__composable_api_state_key")
    }
    hooks = {
        key: hook
        for key, hook in module._forward_pre_hooks.items()
        if not str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp")
    }
    kept["_forward_pre_hooks"] = type(module._forward_pre_hooks)(hooks)
    return torch.nn.Module.__new__(plain), kept
