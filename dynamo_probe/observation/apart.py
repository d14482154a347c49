"""A forward pass of the probe's own, after which everything is as it was."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.shards import reshard
from dynamo_probe.anatomy.twin import eager, untouched_randomness


@contextmanager
def apart(model: nn.Module) -> Generator[nn.Module, None, None]:
    """Lend a model for forward passes in evaluation mode, without gradients, run eagerly.

    On leaving, every module's mode, every buffer and the random states of torch, NumPy and Python
    are what they were. Modes are set one by one: a module's own `train()` is not called.

    Args:
        model: the model.

    Yields:
        The same model.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module, _ in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    versions = [buffer._version for _, _, buffer, _ in buffers]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with untouched_randomness(model), torch.no_grad(), eager():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for module, _ in modes:
                module.training = False
            yield model
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
            for module, mode in modes:
                module.training = mode
            for (home, name, buffer, copy), version in zip(buffers, versions, strict=True):
                if buffer._version != version:
                    buffer.copy_(copy)
                if home.get(name) is not buffer:
                    home[name] = buffer
            reshard(model)
