"""The masks, and how they hold: gradients before a step, weights after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.hooks import RemovableHandle

from dynamo_probe.anatomy.shards import is_sharded, own_slice, stored
from dynamo_probe.anatomy.weights import Weight
from dynamo_probe.functional.ledger import Ledger
from dynamo_probe.functional.moments import States, fresh_value, per_weight
from dynamo_probe.observation.packing import pack, packed, unpack, unpacked
from dynamo_probe.observation.parameters import held_by


class Masks:
    """The connections of some weights, kept where they are needed at every step.

    A mask takes one byte a weight, on the weight's device; of a sharded weight each rank has its
    part of it, and a packed copy of the whole on the CPU.

    Args:
        weights: {name: weight}.
        masks: {name: BoolTensor of the weight's whole shape}.
    """

    def __init__(self, weights: Mapping[str, Weight], masks: Mapping[str, Tensor]) -> None:
        """Put the masks into place; the weights are not touched."""
        self.weights = weights
        self._factors: dict[str, Tensor] = {}
        self._packed: dict[str, Tensor] = {}
        for name, weight in weights.items():
            local = stored(weight.parameter.detach())
            factor = torch.empty_like(local, dtype=torch.bool)
            self._factors[name] = factor.copy_(own_slice(weight.parameter, masks[name]))
            if is_sharded(weight.parameter):
                self._packed[name] = pack(masks[name])

    def of(self, name: str) -> Tensor:
        """Return the whole mask of a weight: a BoolTensor on its device."""
        if name not in self._packed:
            return self._factors[name]
        weight = self.weights[name]
        return unpack(self._packed[name], weight.shape).to(weight.parameter.device)

    def factor(self, name: str) -> Tensor:
        """Return the mask of what this rank stores of a weight, as numbers 0 and 1.

        int8 and not bool: a product with bool takes four times as long on a CPU.
        """
        return self._factors[name].view(torch.int8)

    def put(self, name: str, mask: Tensor) -> None:
        """Exchange a mask, in place."""
        self._factors[name].copy_(own_slice(self.weights[name].parameter, mask))
        if name in self._packed:
            self._packed[name] = pack(mask)

    def counts(self) -> dict[str, int]:
        """Return {name: how many connections there are}."""
        names = list(self.weights)
        found = torch.stack([torch.count_nonzero(self.of(name)).cpu() for name in names])
        return dict(zip(names, found.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the masks, packed into bits."""
        return {name: packed(self.of(name)) for name in self.weights}

    @staticmethod
    def from_state(weights: Mapping[str, Weight], state: Mapping[str, Any]) -> Masks:
        """Make masks from what `state_dict` gave."""
        return Masks(weights, {name: unpacked(state[name]) for name in weights})


def clear(
    ledger: Ledger,
    states: States,
    weight: Weight,
    gone: Tensor,
    more: Iterable[Tensor] = (),
) -> None:
    """Set connections to what they are when they are not there: 0, with a fresh state.

    Args:
        ledger: makes the changes.
        states: the optimizers' states.
        weight: the weight.
        gone: BoolTensor of the weight's whole shape.
        more: further tensors of the same shape, such as the weight of a target network.
    """
    for tensor in (weight.parameter, *more):
        ledger.clear(stored(tensor.detach()), own_slice(tensor, gone), 0.0)
    places = own_slice(weight.parameter, gone)
    for state, group in states.of(weight.parameter):
        for key, value in state.items():
            if per_weight(value, weight.parameter):
                ledger.clear(stored(value), places, fresh_value(key, group))


class Enforcer:
    """Keeps what is masked at zero, around every step of the optimizers.

    Gradients are masked before a step and weights after it (plain SGD: weights only). As weight,
    gradient and state of a connection that is not there are then all 0, every optimizer that works
    entry by entry leaves them so, and its state needs no masks.

    Args:
        masks: the masks.
        optimizers: those that hold the weights.
        states: their states.
        dense_now: mask gradients as soon as they are made, unless this says that the current
            update's are to stay dense; None masks them before the step.
    """

    def __init__(
        self,
        masks: Masks,
        optimizers: Sequence[Optimizer],
        states: States,
        dense_now: Callable[[], bool] | None = None,
    ) -> None:
        """Find out which optimizer holds which weight."""
        self.masks = masks
        self.states = states
        self._held = {id(o): held_by(o) for o in optimizers}
        self._cached: dict[int, tuple[list[nn.Parameter], list[Tensor]]] = {}
        self._handles: list[RemovableHandle] = []
        if dense_now is None:
            return
        for name, weight in masks.weights.items():
            hook = self._masked(masks.factor(name), dense_now)
            self._handles.append(weight.parameter.register_post_accumulate_grad_hook(hook))

    def _masked(self, factor: Tensor, dense_now: Callable[[], bool]) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None and not dense_now():
                stored(parameter.grad).mul_(factor)

        return hook

    def close(self) -> None:
        """Take hooks off."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def before(self, optimizer: Optimizer) -> None:
        """Mask the gradients that a step is about to use."""
        if _keeps_nothing(optimizer):
            return  # masking the weights afterwards comes to the same, at half the cost
        parameters, factors = self._of(optimizer)
        gradients = [p.grad for p in parameters]
        if all(gradient is not None for gradient in gradients):
            _multiply([stored(g) for g in gradients if g is not None], factors)
            return
        pairs = [(stored(g), f) for g, f in zip(gradients, factors, strict=True) if g is not None]
        _multiply([g for g, _ in pairs], [f for _, f in pairs])

    @torch.no_grad()
    def after(self, optimizer: Optimizer, *, states: bool) -> None:
        """Mask the weights that a step has written; also their states, where asked for."""
        parameters, factors = self._of(optimizer)
        _multiply([stored(parameter) for parameter in parameters], factors)
        for parameter, factor in zip(parameters, factors, strict=True) if states else ():
            for state, group in self.states.of(parameter):
                for key, value in state.items():
                    if per_weight(value, parameter):
                        stored(value).masked_fill_(factor == 0, fresh_value(key, group))

    def _of(self, optimizer: Optimizer) -> tuple[list[nn.Parameter], list[Tensor]]:
        found = self._cached.get(id(optimizer))
        if found is None:
            held = self._held[id(optimizer)]
            names = [n for n, w in self.masks.weights.items() if id(w.parameter) in held]
            parameters = [self.masks.weights[name].parameter for name in names]
            found = parameters, [self.masks.factor(name) for name in names]
            self._cached[id(optimizer)] = found
        return found


def _keeps_nothing(optimizer: Optimizer) -> bool:
    """Whether an optimizer is known to have no state of single weights: plain SGD."""
    plain = type(optimizer) is SGD
    return plain and all(group["momentum"] == 0 for group in optimizer.param_groups)


def _multiply(tensors: list[Tensor], factors: list[Tensor]) -> None:
    if tensors:
        torch._foreach_mul_(tensors, factors)  # pyright: ignore[reportPrivateImportUsage]
