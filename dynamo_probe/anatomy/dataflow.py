"""Record which tensor went where in one forward pass: operations, module calls, and their order.

Tensors are numbered as *values*. An operation in place makes a new value of the same tensor, so a
value never changes. What happens inside fused calls (attention, recurrent cells) stays closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, slots=True)
class Value:
    """Stands for a tensor in the recorded arguments of an operation."""

    number: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a torch function.

    Attributes:
        name: the function's name without a trailing underscore, such as `relu`.
        arguments: the positional arguments, tensors replaced by `Value`.
        inputs, outputs: numbers of the values read and made.
        module: qualified name of the innermost module that was running.
    """

    function: Callable[..., Any]
    name: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str


@dataclass(slots=True)
class ModuleCall:
    """One call of a module: the values that came in, by position or keyword, and went out."""

    module: str
    inputs: dict[int | str, int]
    output: int | None = None


@dataclass(slots=True)
class Dataflow:
    """What one forward pass did."""

    operations: list[Operation] = field(default_factory=list)
    calls: dict[str, list[ModuleCall]] = field(default_factory=dict)
    shapes: list[torch.Size] = field(default_factory=list)
    made_by: dict[int, Operation] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)
    learned: set[int] = field(default_factory=set)
    """Values that are parameters or buffers."""
    storages: list[int] = field(default_factory=list)
    """Where each value's numbers lie: a view lies where its base lies."""
    writes: list[int] = field(default_factory=list)
    """Values that were written to in place."""

    def live(self) -> Dataflow:
        """Return the same flow without operations that lead to nothing that was returned."""
        if not self.returned:
            return self
        wanted = set(self.returned)
        kept: list[Operation] = []
        for operation in reversed(self.operations):
            if wanted.intersection(operation.outputs):
                wanted.update(operation.inputs)
                kept.append(operation)
        kept.reverse()
        made_by = {number: op for op in kept for number in op.outputs}
        return replace(self, operations=kept, made_by=made_by)

    def weights(self) -> set[int]:
        """Return the values that depend on parameters and buffers alone, such as a transpose."""
        found = set(self.learned)
        for operation in self.operations:
            if operation.inputs and found.issuperset(operation.inputs):
                found.update(operation.outputs)
        return found

    def uses(self) -> dict[int, list[Operation]]:
        """Return the operations that read each value, in order."""
        found: dict[int, list[Operation]] = {}
        for operation in self.operations:
            for number in dict.fromkeys(operation.inputs):
                found.setdefault(number, []).append(operation)
        return found


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, mappings and dataclass-like outputs."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors_in(item)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif hasattr(tree, "__dataclass_fields__"):
        for name in tree.__dataclass_fields__:
            yield from tensors_in(getattr(tree, name))


class _Recording(TorchFunctionMode):
    """Writes a `Dataflow` while it is active."""

    def __init__(self, model: nn.Module, on_value: Callable[[int, Tensor], None] | None) -> None:
        super().__init__()
        self.flow = Dataflow()
        self.on_value = on_value
        self.running: list[ModuleCall] = []
        self.alive: list[Tensor] = []  # an id is only unique while its tensor lives
        self.numbers: dict[int, int] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self.flow.learned.add(self.number(tensor))

    def new(self, tensor: Tensor) -> int:
        number = len(self.alive)
        self.alive.append(tensor)
        self.numbers[id(tensor)] = number
        self.flow.shapes.append(tensor.shape)
        self.flow.storages.append(_storage(tensor))
        return number

    def number(self, tensor: Tensor) -> int:
        known = self.numbers.get(id(tensor))
        return self.new(tensor) if known is None else known

    def recorded(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return Value(self.number(tree))
        if isinstance(tree, (tuple, list)):
            return tuple(self.recorded(item) for item in tree)
        return tree

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            arguments, keywords = (
                self.recorded(args),
                {k: self.recorded(v) for k, v in kwargs.items()},
            )
            given = list(tensors_in((args, kwargs)))
            read = tuple(self.number(t) for t in given)
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            made = list(tensors_in(result))
            if result is None and args and isinstance(args[0], Tensor):
                made = [args[0]]  # such as x[mask] = 0
            self.flow.writes += [self.number(t) for t in made if any(t is g for g in given)]
            if made:
                outputs = tuple(self.new(tensor) for tensor in made)
                operation = Operation(
                    func,
                    (getattr(func, "__name__", "") or repr(func)).strip("_"),
                    arguments,
                    keywords,
                    read,
                    outputs,
                    self.running[-1].module if self.running else "",
                )
                self.flow.operations.append(operation)
                self.flow.made_by.update(dict.fromkeys(outputs, operation))
                if self.on_value is not None:
                    for number, tensor in zip(outputs, made, strict=True):
                        self.on_value(number, tensor)
        return result

    def enter(self, name: str) -> Callable[..., None]:
        def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
            with torch._C.DisableTorchFunction():
                given: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
                inputs = {k: self.number(v) for k, v in given.items() if isinstance(v, Tensor)}
            call = ModuleCall(name, inputs)
            self.running.append(call)
            self.flow.calls.setdefault(name, []).append(call)

        return entered

    def leave(self, name: str) -> Callable[..., None]:
        def left(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call = self.running.pop()
            if isinstance(output, Tensor):
                with torch._C.DisableTorchFunction():
                    call.output = self.number(output)

        return left


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors and the like have none
        return 0


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    on_value: Callable[[int, Tensor], None] | None = None,
) -> Dataflow:
    """Run one forward pass and record what it did.

    Args:
        model: the model; give a twin, because the forward pass runs as it is.
        args: positional arguments of the forward pass.
        kwargs: keyword arguments of the forward pass.
        on_value: called with each new value's number and tensor, before anything can change it.

    Returns:
        The recorded flow. Value numbers are the same whenever the same pass is run again.
    """
    recording = _Recording(model, on_value)
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles += [
            module.register_forward_pre_hook(recording.enter(name), with_kwargs=True),
            module.register_forward_hook(recording.leave(name), with_kwargs=True),
        ]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    # The fused inference path of nn.TransformerEncoderLayer would hide its layers.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with recording:
            output = model(*args, **kwargs)
        recording.flow.returned = {recording.number(t) for t in tensors_in(output)}
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for handle in handles:
            handle.remove()
    return recording.flow
