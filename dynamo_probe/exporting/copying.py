"""A copy of a model that stands on its own, and whether two models give the same outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dynamo_probe.anatomy.dataflow import tensors_in
from dynamo_probe.anatomy.shards import is_sharded
from dynamo_probe.anatomy.twin import eager, twin, untouched_randomness
from dynamo_probe.observation.batch import Batch, as_batch

_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of an output, relative to its largest entry, that rounding may make."""


class Different(Exception):
    """Says in what the outputs of two models differ."""


def bare(model: nn.Module) -> nn.Module:
    """Copy a model with weights in storage of their own, without hooks.

    Forward pre-hooks of `torch.nn.utils` (spectral norm, pruning) stay: they compute weights.

    Raises:
        ValueError: for parameters that have no values here, or only a part of them.
        RuntimeError: when a part of the model cannot be copied.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _check_values(name, tensor)
    try:
        copied = twin(model)
    except RuntimeError as error:
        cause = error.__cause__ or error
        raise RuntimeError(
            f"the model cannot be copied, so it cannot be exported ({type(cause).__name__}: "
            f"{cause}); copy.deepcopy(model) has to work"
        ) from error
    for parameter in copied.parameters():
        parameter.data = parameter.detach().clone()
    for module in copied.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if not _computes_weights(hook):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    return copied


def hooks_of(model: nn.Module) -> tuple[str, ...]:
    """Return the modules with forward hooks that `bare` leaves out, those of a watch excepted."""
    return tuple(
        name or type(module).__name__
        for name, module in model.named_modules()
        if any(
            not _computes_weights(hook) and not _origin(hook).startswith("dynamo_probe.")
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        )
    )


def as_inputs(inputs: Any) -> Batch | None:
    """Read what a user gives as inputs.

    Raises:
        TypeError: for anything but a tensor, a tuple, a dict or None.
    """
    try:
        batch = None if callable(inputs) else as_batch(inputs)
    except TypeError:
        batch = None
    if isinstance(batch, Batch) or inputs is None:
        return batch if isinstance(batch, Batch) else None
    raise TypeError(
        f"inputs is a {type(inputs).__name__}; give a tensor, a tuple of positional arguments or a "
        "dict of keyword arguments"
    )


def outputs_of(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Run a twin in evaluation mode, on a copy of the inputs, from the present random state.

    Returns:
        Every tensor of the output.
    """
    with ExitStack() as stack:
        stack.enter_context(untouched_randomness(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eager())
        return list(tensors_in(batch.clone().run(twin(model).eval())))


def compare(reference: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of two models' outputs.

    Raises:
        Different: when it is more than rounding can make, or an output has another shape.
    """
    if len(reference) != len(found):
        raise Different(f"there are {len(found)} output tensors in place of {len(reference)}")
    return max((_difference(a, b) for a, b in zip(reference, found, strict=True)), default=0.0)


def _difference(reference: Tensor, found: Tensor) -> float:
    if reference.shape != found.shape or reference.dtype != found.dtype:
        raise Different(
            f"an output is {found.dtype} {list(found.shape)} in place of {reference.dtype} "
            f"{list(reference.shape)}"
        )
    tolerance = _TOLERANCES.get(reference.dtype)
    if tolerance is None or not reference.numel():
        if not torch.equal(reference, found):
            raise Different(f"an output of {reference.dtype} is not the same")
        return 0.0
    a, b = reference.double(), found.double()
    same = (a == b) | (a.isnan() & b.isnan())
    distance = torch.where(same, 0.0, (a - b).abs())
    size = a[a.isfinite()].abs().max() if bool(a.isfinite().any()) else a.new_zeros(())
    largest = float(distance.max())
    if not largest <= tolerance * float(size):
        raise Different(
            f"an output differs by {largest:.3g}, where {tolerance:g} of its largest entry "
            f"({float(size):.3g}) is allowed for rounding"
        )
    return largest


def all_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Give the parameters and buffers; of a tensor subclass, the tensors that it is made of."""
    for tensor in (*model.parameters(), *model.buffers()):
        yield from _inner(tensor)


def _inner(tensor: Any) -> Iterator[Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _inner(getattr(tensor, name))


def _check_values(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise ValueError(f"`{name}` has no shape yet: run the model once before it is exported")
    if is_sharded(tensor):
        raise ValueError(
            f"`{name}` is a DTensor, of which every rank stores a part: gather the weights first "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "StateDictOptions(full_state_dict=True)), load them into an unsharded model and export "
            "that"
        )
    if tensor.is_meta:
        raise ValueError(f"`{name}` is on the meta device: load its values before exporting")


def _origin(hook: Any) -> str:
    return str(getattr(hook, "__module__", ""))


def _computes_weights(hook: Any) -> bool:
    return _origin(hook).startswith("torch.nn.utils")
