"""Tell a LightningModule's own forward pass from a step that a strategy sends through it."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynamo_probe.discovery import _Called
from dynamo_probe.watch import Watch


class _Genuine(_Called):
    __slots__ = ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.forward.__qualname__.startswith("_ForwardRedirection"):
            super().__call__(module, args, kwargs)


def ignore_redirected_steps(watch: Watch) -> None:
    """Keep a watch of a LightningModule from taking `training_step` for its `forward`.

    Data parallelism works inside `forward`, so Lightning's strategies put `training_step` in its
    place for a call. Its arguments are a batch and an index, and no inputs of the network.
    """
    discovery = watch._discovery
    if discovery is not None and "" in discovery._handles:
        discovery._handles.pop("").remove()
        discovery._handles[""] = watch.model.register_forward_pre_hook(
            _Genuine(discovery, ""), with_kwargs=True
        )
