"""Everything that training changes: copied once, and put back to the bit as often as it takes."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.optim import Optimizer

from dynamo_probe.anatomy.twin import untouched_randomness

Restore = Callable[[], Any]
"""Puts a value back, in place where it can be, and returns it."""

_OF_SCALER = ("grad_scale", "found_inf")
"""What a `GradScaler` hangs on a fused optimizer while that steps."""


class Snapshot:
    """A training as it is at one moment.

    It holds the parameters and buffers of a model, gradients, the modes and other attributes of its
    modules (those by reference), the state, groups and attributes of optimizers, and further
    objects. Tensors are put back in place, so that whoever refers to one, a compiled function or a
    recorded graph, finds it as it was, its version counter included.

    Memory: all of that once more, where the tensors are.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], also: Iterable[Any] = ()
    ) -> None:
        """Copy.

        Args:
            model: the model inside any wrapper.
            optimizers: the optimizers that train it; what they hold beside the model is kept, too.
            also: modules, gradient scalers, random generators (torch, NumPy, Python), tensors,
                dicts, lists, and objects with `state_dict` and `load_state_dict`.

        Raises:
            TypeError: when one of the further objects is something else.
        """
        self._model = model
        self._optimizers = tuple(optimizers)
        self._keeper = Keeper()
        self._scalers: list[torch.amp.GradScaler] = []
        self._back: list[Restore] = [self._keeper.modules(model)]
        self._back += [self._keeper.optimizer(optimizer) for optimizer in optimizers]
        self._back += [self._further(thing) for thing in also]

    @contextmanager
    def trial(self) -> Generator[None, None, None]:
        """Lend the training: on leaving, also by an exception, it is put back.

        There are no gradients at the beginning, and scalers stand between two updates, whatever
        the moment of the snapshot was.
        """
        with untouched_randomness(self._model):
            try:
                for leaf in self._keeper.leaves:
                    leaf.grad = None
                for optimizer in self._optimizers:
                    for name in _OF_SCALER:
                        vars(optimizer).pop(name, None)
                for scaler in self._scalers:
                    states: Any = scaler._per_optimizer_states
                    scaler._per_optimizer_states = defaultdict(states.default_factory)
                yield
            finally:
                with torch.no_grad():
                    for back in self._back:
                        back()
                self._keeper.rewind()

    def _further(self, thing: Any) -> Restore:
        keeper = self._keeper
        if isinstance(thing, nn.Module):
            return keeper.modules(thing)
        if isinstance(thing, Optimizer):
            self._optimizers += (thing,)
            return keeper.optimizer(thing)
        if isinstance(thing, torch.amp.GradScaler):
            self._scalers.append(thing)
            attributes = vars(thing)
            tensors = [keeper.keep(v) for v in attributes.values() if isinstance(v, Tensor)]
            return _all([keeper.attributes(attributes), *tensors])
        if isinstance(thing, (Tensor, dict, list)):
            return keeper.keep(thing)
        if isinstance(thing, torch.Generator):
            state = thing.get_state()
            return lambda: thing.set_state(state)
        if isinstance(thing, np.random.Generator):
            bits = copy.deepcopy(thing.bit_generator.state)
            return lambda: setattr(thing.bit_generator, "state", bits)
        if isinstance(thing, random.Random):
            numbers = thing.getstate()
            return lambda: thing.setstate(numbers)
        if callable(getattr(thing, "state_dict", None)) and hasattr(thing, "load_state_dict"):
            saved = copy.deepcopy(thing.state_dict())
            return lambda: thing.load_state_dict(copy.deepcopy(saved))
        raise TypeError(
            f"also= has a {type(thing).__name__}, which cannot be put back; give modules, "
            "gradient scalers, random generators, tensors, dicts, lists, or objects with "
            "state_dict and load_state_dict"
        )


@contextmanager
def settled(model: nn.Module) -> Generator[None, None, None]:
    """Put back random states, buffers, modes and other attributes of modules; not parameters."""
    keeper = Keeper()
    back = keeper.modules(model, parameters=False)
    with untouched_randomness(model):
        try:
            yield
        finally:
            with torch.no_grad():
                back()
            keeper.rewind()


class Keeper:
    """Copies values so that they can be put back; each tensor is copied once.

    Attributes:
        leaves: the tensors that were seen that can have gradients.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.leaves: list[Tensor] = []
        self._tensors: dict[int, Restore] = {}
        self._versions: list[_unsafe_preserve_version_counter] = []

    def keep(self, value: Any) -> Restore:
        """Copy a tensor, an array or a container of them; anything else is kept by reference."""
        if isinstance(value, Tensor):
            if id(value) not in self._tensors:
                self._tensors[id(value)] = self._tensor(value)
            return self._tensors[id(value)]
        if isinstance(value, np.ndarray):
            array = value.copy()
            return lambda: (np.copyto(value, array), value)[1]
        if isinstance(value, MutableMapping):
            return self._mapping(value)
        if isinstance(value, (list, tuple)):
            return self._sequence(value)
        return lambda: value

    def modules(self, model: nn.Module, *, parameters: bool = True) -> Restore:
        """Keep a module and all inside it."""
        parts: list[Restore] = []
        for module in model.modules():
            parts.append(self.attributes(vars(module)))
            parts.append(self._mapping(module._buffers))
            if parameters:
                parts.append(self._mapping(module._parameters))
        return _all(parts)

    def optimizer(self, optimizer: Optimizer) -> Restore:
        """Keep an optimizer, and the parameters that it holds."""
        return _all(
            [
                self.attributes(vars(optimizer)),
                self.keep(optimizer.param_groups),
                self.keep(optimizer.state),
            ]
        )

    def attributes(self, attributes: dict[str, Any]) -> Restore:
        """Keep which value each attribute has; the values themselves are not copied."""
        kept = list(attributes.items())
        return lambda: _refill(attributes, kept)

    def rewind(self) -> None:
        """Set version counters back, after everything was put back.

        A graph that was recorded before finds the very values that it has saved.
        """
        for version in self._versions:
            version.__exit__(None, None, None)

    def _tensor(self, value: Tensor) -> Restore:
        home, inference = value.detach(), value.is_inference()
        # With its strides: a compiled function may rely on them.
        copied = home.clone()
        if not inference:
            self._versions.append(_unsafe_preserve_version_counter(value))

        def back() -> Tensor:
            with ExitStack() as stack:
                if inference:
                    stack.enter_context(torch.inference_mode())
                home.copy_(copied)
                if home.layout == torch.strided and value.data_ptr() != home.data_ptr():
                    value.data = home
            return value

        if not value.is_leaf or inference:
            return back
        gradient, wanted = value.grad, value.requires_grad
        fill = None if gradient is None else self.keep(gradient)
        if wanted or gradient is not None:
            self.leaves.append(value)

        def back_with_gradient() -> Tensor:
            back()
            if value.requires_grad is not wanted:
                value.requires_grad_(wanted)
            value.grad = None if fill is None else fill()
            return value

        return back_with_gradient

    def _mapping(self, value: MutableMapping[Any, Any]) -> Restore:
        parts = [(key, self.keep(item)) for key, item in value.items()]

        def back() -> Any:
            _refill(value, [(key, part()) for key, part in parts])
            return value

        return back

    def _sequence(self, value: list[Any] | tuple[Any, ...]) -> Restore:
        parts = [self.keep(item) for item in value]

        def back() -> Any:
            items = [part() for part in parts]
            if isinstance(value, list) and not _same(value, items):
                value[:] = items
            return value

        return back


def _all(parts: Sequence[Restore]) -> Restore:
    def back() -> None:
        for part in parts:
            part()

    return back


def _refill(home: MutableMapping[Any, Any], items: list[tuple[Any, Any]]) -> None:
    """Give a mapping its items and their order back; one that has them is not written to."""
    keys, values = zip(*items, strict=True) if items else ((), ())
    if not (_same(list(home.keys()), keys) and _same(list(home.values()), values)):
        home.clear()
        home.update(items)


def _same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))
