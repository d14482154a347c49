"""A copy of a part of the network that is not trained, and whose units are not counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


class FrozenCopy(nn.Module):
    """Runs a module whose parameters are frozen; gradients pass through to its inputs."""

    def __init__(self, inner: nn.Module) -> None:
        """Freeze a module that nothing else uses."""
        super().__init__()
        self.inner = inner.requires_grad_(False)

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the module."""
        return self.inner(*inputs, **keywords)


def in_frozen_copies(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return those of the names that lie within a frozen copy."""
    inside = [f"{n}." for n, m in model.named_modules() if isinstance(m, FrozenCopy)]
    return [name for name in names if any(name.startswith(start) for start in inside)]
