"""A twin of a model to try things on: same weights in the same storage, everything else its own."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import plain_class, whole, without_sharding

_WRAPPERS = ("module", "_orig_mod")
_OWN_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Hooks that a twin is made without."""


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside `DataParallel`, `DistributedDataParallel` and `torch.compile`."""
    while isinstance(model, nn.Module):
        compiled = type(model).__name__ == "OptimizedModule"
        parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        if not (compiled or parallel):
            return model
        model = getattr(model, _WRAPPERS[compiled])
    return model


def devices_of(model: nn.Module) -> list[torch.device]:
    """Return the devices other than the CPU that hold parameters or buffers of the model."""
    found = {t.device for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)}
    return sorted((d for d in found if d.type not in ("cpu", "meta")), key=str)


@contextmanager
def untouched_randomness(model: nn.Module) -> Generator[None, None, None]:
    """Put back the random states of torch (CPU and the model's devices), NumPy and Python."""
    states = np.random.get_state(), random.getstate()
    with ExitStack() as stack:
        by_type: dict[str, list[torch.device]] = {}
        for device in devices_of(model):
            by_type.setdefault(device.type, []).append(device)
        stack.enter_context(torch.random.fork_rng(devices=()))
        for device_type, devices in by_type.items():
            stack.enter_context(torch.random.fork_rng(devices, device_type=device_type))
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])


def eager() -> AbstractContextManager[object]:
    """Bypass compiled code where any can exist."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def twin(model: nn.Module, *, requires_grad: bool | None = None) -> nn.Module:
    """Copy a model without copying its weights.

    The twin's parameters are new `nn.Parameter` objects on the same storage, so that gradients and
    `requires_grad` of the original stay as they are, whatever is done with the twin; buffers and
    all other state are copies. Tied parameters stay tied. The user's forward and backward hooks are
    left out, because they belong to the original; forward pre-hooks stay, because spectral
    norm and pruning compute weights in them.

    The twin of a model under `fully_shard` is not sharded: its weights are gathered, which every
    rank has to do at the same time, and which takes the memory of the whole model.

    Args:
        model: the model to copy.
        requires_grad: set on every parameter of the twin; None keeps each parameter's own.

    Raises:
        RuntimeError: when a part of the model cannot be copied.
    """
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        if is_lazy(parameter):
            continue
        wanted = parameter.requires_grad if requires_grad is None else requires_grad
        wanted = wanted and (parameter.is_floating_point() or parameter.is_complex())
        memo[id(parameter)] = nn.Parameter(whole(parameter.detach()), requires_grad=wanted)
    for module in model.modules():
        for name in _OWN_HOOKS:
            memo[id(getattr(module, name))] = OrderedDict()
        for value in vars(module).values():
            if isinstance(value, Optimizer):
                memo[id(value)] = value  # as large as the weights, and no part of a forward pass
            # Old-style weight norm keeps a computed weight as an attribute: it cannot be copied.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        plain = _without_sharding(model, memo)
        for copied, attributes in plain:
            vars(copied).update(copy.deepcopy(attributes, memo))
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise RuntimeError(
            f"the model cannot be copied to look at its wiring ({type(error).__name__}: {error})"
        ) from error
    for module in copied.modules():
        vars(module).pop("_compiled_call_impl", None)
    return copied


def _without_sharding(
    model: nn.Module, memo: dict[int, object]
) -> list[tuple[nn.Module, dict[str, object]]]:
    """Begin a plain copy of each sharded module; return them with the attributes to copy."""
    begun = []
    for module in model.modules():
        plain = plain_class(module)
        if plain is not None:
            copied, attributes = without_sharding(module, plain)
            memo[id(module)] = copied
            begun.append((copied, attributes))
    return begun
