"""How large a model is, and how much it multiplies: counted, not estimated."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.multiply_adds import find_uses
from dynamo_probe.exporting.copying import all_tensors
from dynamo_probe.exporting.csr import CSRLinear
from dynamo_probe.exporting.report import Size, Work
from dynamo_probe.exporting.two_four import PackedLinear
from dynamo_probe.observation.batch import Batch


def size_of(model: nn.Module) -> Size:
    """Count parameters, non-zero ones, bytes in memory and bytes on disk.

    Example:
        >>> size = size_of(nn.Linear(3, 2))
        >>> size.parameters, size.memory
        (8, 32)
    """
    values = [
        *(_values(parameter) for parameter in model.parameters()),
        *(
            module.values
            for module in model.modules()
            if isinstance(module, (CSRLinear, PackedLinear))
        ),
    ]
    storages = {}
    for tensor in all_tensors(model):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return Size(
        parameters=sum(v.numel() for v in values),
        nonzeros=sum(int(torch.count_nonzero(v)) for v in values),
        memory=sum(storages.values()),
        disk=file.getbuffer().nbytes,
    )


def work_of(model: nn.Module, batch: Batch) -> Work:
    """Count the multiply-adds of one sample in evaluation mode.

    Args:
        model: a model whose weights are dense tensors; a twin of it runs.
        batch: the inputs.
    """
    uses = find_uses(model, batch.args, batch.kwargs)
    slices = {
        name: torch.count_nonzero(parameter.detach().flatten(1), 1).cpu()
        for name, parameter in model.named_parameters()
        if name in uses.of and parameter.dim() > 1
    }
    effective, dense = uses.total(slices)
    return Work(dense, effective, tuple(f"{n}: {why}" for n, why in uses.uncounted.items()))


def weights_of(module: nn.Module) -> tuple[int, int]:
    """Return how many entries the weights of a layer have, and how many of them are not 0."""
    own = [_values(p) for p in module.parameters(recurse=False) if p.dim() >= 2]
    return sum(p.numel() for p in own), sum(int(torch.count_nonzero(p)) for p in own)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the transposed linear layer of GPT-2 in transformers."""
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(getattr(module, "nf", None), int)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
    )


def _values(parameter: Tensor) -> Tensor:
    """Return the numbers that a parameter stores."""
    tensor: Any = parameter.detach()
    # torch's semi-structured tensors call themselves as large as the dense ones.
    return tensor.values() if hasattr(tensor, "__tensor_flatten__") else tensor
