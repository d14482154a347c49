"""Dense gradients, gathered from the optimizers' steps before masks are put on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import is_sharded, own_slice, stored, whole
from dynamo_probe.anatomy.weights import Weight
from dynamo_probe.observation.backward import unscaling
from dynamo_probe.observation.parameters import held_by

DECAY = 0.9
"""Of the running mean of gradients: SNFS takes the optimizer's momentum, which is usually 0.9."""


class Gatherer:
    """Sums of dense gradients since the last update of the masks, and their running mean.

    Attributes:
        gradients: {name: sum of dL/dw}, float32 or better; sharded where the weight is.
        momenta: {name: running mean of dL/dw}.
        gathered: {name: how many steps are in the sum}.
    """

    def __init__(self, weights: Mapping[str, Weight], *, momentum: bool) -> None:
        """Begin empty."""
        self.weights = weights
        self.momentum = momentum
        self.gradients: dict[str, Tensor] = {}
        self.momenta: dict[str, Tensor] = {}
        self.gathered: dict[str, int] = {}
        self._names: dict[int, list[str]] = {}

    @torch.no_grad()
    def take(self, optimizer: Optimizer, *, sums: bool) -> None:
        """Take the gradients that a step is about to use, or has just used.

        Args:
            optimizer: the optimizer.
            sums: add to the sums; the running mean takes every step.
        """
        if not (sums or self.momentum) or _called_off(optimizer):
            return
        scale = unscaling(optimizer)
        for name in self._of(optimizer):
            gradient = self.weights[name].parameter.grad
            if gradient is None:
                continue
            if sums:
                if name in self.gradients:
                    self.gradients[name].add_(gradient / scale)
                else:
                    wide = torch.promote_types(gradient.dtype, torch.float32)
                    self.gradients[name] = gradient.detach().to(wide, copy=True).div_(scale)
                self.gathered[name] = self.gathered.get(name, 0) + 1
            if self.momentum:
                if name not in self.momenta:
                    wide = torch.promote_types(gradient.dtype, torch.float32)
                    self.momenta[name] = torch.zeros_like(gradient, dtype=wide)
                part = gradient.to(self.momenta[name].dtype) / scale
                self.momenta[name].mul_(DECAY).add_(part, alpha=1 - DECAY)

    def trouble(self, names: Iterable[str], *, gradients: bool) -> str | None:
        """Return why what was gathered cannot be used; None where it can.

        Args:
            names: the weights that need something.
            gradients: sums are needed; otherwise running means.
        """
        found = self.gradients if gradients else self.momenta
        for name in names:
            if name not in found:
                return f"{name} had no gradient; if it is never trained, leave it out by exclude="
            if not bool(stored(found[name]).isfinite().all()):
                if not gradients:
                    self.momenta.pop(name)
                return f"the gradient of {name} is not finite"
        return None

    def reset(self) -> None:
        """Begin new sums."""
        self.gradients.clear()
        self.gathered.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return sums and running means; of sharded ones the whole."""
        return {
            "gradients": {name: whole(g).clone() for name, g in self.gradients.items()},
            "momenta": {name: whole(m).clone() for name, m in self.momenta.items()},
            "gathered": dict(self.gathered),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.gathered = dict(state["gathered"])
        for key, home in (("gradients", self.gradients), ("momenta", self.momenta)):
            home.clear()
            for name, value in state[key].items():
                home[name] = _like(self.weights[name].parameter, value)

    def _of(self, optimizer: Optimizer) -> list[str]:
        names = self._names.get(id(optimizer))
        if names is None:
            held = held_by(optimizer)
            names = [n for n, weight in self.weights.items() if id(weight.parameter) in held]
            self._names[id(optimizer)] = names
        return names


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor spread as a parameter is."""
    if not is_sharded(parameter):
        return value.to(parameter.device, copy=True)
    home = torch.zeros_like(parameter.detach(), dtype=value.dtype)
    stored(home).copy_(own_slice(parameter, value))
    return home


def _called_off(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer was told that its gradients are infinite, and will do nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
