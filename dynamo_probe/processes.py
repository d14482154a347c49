"""The processes of a distributed run: which of them share statistics, and which one writes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from dynamo_probe.anatomy.shards import is_sharded, plain_class


def group_of(wrapper: nn.Module, model: nn.Module, given: Any) -> Any:
    """Return the process group that statistics are reduced over.

    Args:
        wrapper: what the loop calls.
        model: the model inside any wrapper.
        given: what the user gave; None takes the group of a `DistributedDataParallel` wrapper or of
            a model sharded by `fully_shard`, and this process alone where there is neither.

    Returns:
        A process group, or None for this process alone.

    Raises:
        ValueError: when the parameters are spread by tensor parallelism or over more than one mesh
            dimension.
    """
    meshes: set[Any] = {p.device_mesh for p in _sharded(model)}
    by_fully_shard = any(plain_class(module) is not None for module in model.modules())
    if any(mesh.ndim > 1 for mesh in meshes) or len(meshes) > 1 or (meshes and not by_fully_shard):
        raise ValueError(
            "the parameters are spread over ranks by tensor parallelism or hybrid sharding: a "
            "unit's statistics are not whole on any rank. Watch a run with data parallelism alone "
            "(DistributedDataParallel, or fully_shard over one dimension)"
        )
    if given is not None or not dist.is_available() or not dist.is_initialized():
        return given
    outer: Any = wrapper
    while isinstance(outer, nn.Module):
        if isinstance(outer, nn.parallel.DistributedDataParallel):
            return outer.process_group
        outer = getattr(outer, "_orig_mod", None)
    for mesh in meshes:
        return mesh.get_group()
    return None


def _sharded(model: nn.Module) -> list[Any]:
    return [parameter for parameter in model.parameters() if is_sharded(parameter)]


def writes(group: Any) -> bool:
    """Whether this process writes logs: alone it does, and of a group the first rank does."""
    return group is None or dist.get_rank(group) == 0
