"""Short training runs for tests: the state of everything that training decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Loss = Callable[[nn.Module], Tensor]


def train(model: nn.Module, optimizer: Optimizer, loss: Loss, updates: int) -> None:
    """Take a number of updates in the plainest way."""
    for _ in range(updates):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def everything(models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> list[Any]:
    """Return parameters, buffers, optimizer state and random states, flat and in order."""
    found: list[Any] = []
    for model in models:
        found += [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    for optimizer in optimizers:
        for state in optimizer.state_dict()["state"].values():
            found += [v.clone() if isinstance(v, Tensor) else v for v in state.values()]
    name, keys, *rest = np.random.get_state()
    found += [torch.get_rng_state(), name, torch.from_numpy(np.array(keys)), rest]
    found.append(random.getstate())
    return found


def identical(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two such lists are equal to the bit (NaN equals NaN)."""
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        if isinstance(a, Tensor)
        else a == b
        for a, b in zip(first, second, strict=True)
    )


def seeded(seed: int = 0) -> None:
    """Seed torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
