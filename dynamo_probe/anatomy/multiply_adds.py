"""How often a forward pass applies each weight: what multiply-adds follow from.

Products are found where a recorded pass reads a parameter, by identity: a weight that two layers
share is counted at both, and one that is read outside its layer is counted there. What cannot be
counted exactly is named with the reason and never taken for 0.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dynamo_probe.anatomy.dataflow import Dataflow, Operation, Value, record, tensors_in
from dynamo_probe.anatomy.rehearsal import unnoticed
from dynamo_probe.anatomy.twin import twin
from dynamo_probe.anatomy.weights import find_weights

_CONVOLUTIONS = frozenset(("conv1d", "conv2d", "conv3d"))
_TRANSPOSED = frozenset(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_CELLS = frozenset(f"{kind}_cell" for kind in _RECURRENT)
_ATTENTION = "multi_head_attention_forward"
_PRODUCTS = frozenset(
    "linear bilinear matmul rmatmul mm bmm addmm addbmm baddbmm mv addmv dot vdot inner tensordot "
    "einsum chain_matmul multi_dot convolution".split()
) | (_CONVOLUTIONS | _TRANSPOSED | _RECURRENT | _CELLS | {_ATTENTION})


class Use(NamedTuple):
    """One operation that multiplies with a weight.

    Attributes:
        times: how often it multiplies with each entry.
        start, stop: with these slices of the weight's first dimension.
        entries: how many entries they have.
    """

    times: int
    start: int
    stop: int
    entries: int


@dataclass(frozen=True, slots=True)
class Uses:
    """How often one forward pass multiplies with each parameter.

    Attributes:
        of: {name of the parameter: its uses}; none where the pass does not read it.
        uncounted: {parameter or module: why its multiply-adds cannot be counted}.
        samples: length of the first axis of the first input tensor; None where it has none.
    """

    of: Mapping[str, tuple[Use, ...]]
    uncounted: Mapping[str, str]
    samples: int | None

    def dense(self, name: str) -> float | None:
        """Return the multiply-adds of a parameter for one sample, with all its entries."""
        if name in self.uncounted or not self.samples:
            return None
        return sum(use.times * use.entries for use in self.of.get(name, ())) / self.samples

    def sparse(self, name: str, slices: Tensor) -> float | None:
        """Return the multiply-adds of a parameter for one sample, with the entries that are there.

        Args:
            name: of the parameter.
            slices: int64 [slices along its first dimension], how many are there in each.
        """
        if name in self.uncounted or not self.samples:
            return None
        uses = self.of.get(name, ())
        products = sum(use.times * int(slices[use.start : use.stop].sum()) for use in uses)
        return products / self.samples

    def total(self, slices: Mapping[str, Tensor]) -> tuple[float, float] | tuple[None, None]:
        """Return the multiply-adds of all parameters for one sample: sparse, and dense.

        Args:
            slices: {parameter: as in `sparse`}; the others are whole.

        Returns:
            None and None where something cannot be counted.
        """
        if self.uncounted or not self.samples:
            return None, None
        dense = {name: self.dense(name) or 0.0 for name in self.of}
        sparse = {n: self.sparse(n, slices[n]) or 0.0 for n in self.of if n in slices}
        return sum((dense | sparse).values()), sum(dense.values())

    def renamed(self, names: Mapping[str, str]) -> Uses:
        """Return the same with other names of parameters and modules.

        Args:
            names: {name: new name}; what is not in it keeps its own.
        """
        of = {names.get(name, name): uses for name, uses in self.of.items()}
        reasons = {names.get(name, name): reason for name, reason in self.uncounted.items()}
        return replace(self, of=of, uncounted=reasons)


def find_uses(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Uses:
    """Find how often a forward pass multiplies with each parameter.

    A twin runs in evaluation mode on copies of the inputs; the model and all random states stay as
    they are. Products with zeros of the padding count, as they do in the dense layer's formula;
    products of activations with activations (attention's own) and with buffers do not.

    Args:
        model: the model.
        args: positional arguments of one forward pass.
        kwargs: its keyword arguments.

    Raises:
        RuntimeError: when the model cannot be copied.
    """
    outputs: list[Any] = []
    with unnoticed(model):
        copied = twin(model, requires_grad=True)
        for module in copied.modules():
            module.training = False
        handle = copied.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            flow = record(copied, *tree_map(_copied, (tuple(args), dict(kwargs))))
        finally:
            handle.remove()
    names = [name for name, _ in copied.named_parameters()]
    counter = _Counter(flow, names)
    for operation in flow.operations:
        counter.take(operation)
    hidden = _reached(outputs) | {
        parameter
        for module in copied.modules()
        if isinstance(module, torch.jit.ScriptModule)
        for parameter in module.parameters()
    }
    weights = find_weights(copied).found
    for name, parameter in copied.named_parameters():
        missed = name in weights or name not in counter.read
        if parameter in hidden and parameter.dim() > 1 and missed and name not in counter.of:
            reason = "what multiplies with it is not visible (scripted or custom code)"
            counter.uncounted.setdefault(name, reason)
    first = next((t for t in tensors_in((args, dict(kwargs))) if t.dim()), None)
    samples = None if first is None else len(first)
    if not samples:
        counter.uncounted["the inputs"] = "no tensor among them has an axis that counts samples"
    return Uses({n: tuple(u) for n, u in counter.of.items()}, counter.uncounted, samples)


class _Counter:
    """Takes the operations of a recorded pass one by one."""

    def __init__(self, flow: Dataflow, names: list[str]) -> None:
        self.flow = flow
        self.names = names  # the record numbers parameters first
        self.constant = flow.weights()
        self.of: dict[str, list[Use]] = {}
        self.uncounted: dict[str, str] = {}
        self.read: set[str] = set()
        self.origins: dict[int, frozenset[str]] = {
            number: frozenset((name,)) for number, name in enumerate(names)
        }

    def take(self, operation: Operation) -> None:
        """Count an operation."""
        self.read.update(self.names[n] for n in operation.inputs if n < len(self.names))
        if operation.name not in _PRODUCTS:
            origins = [self.origins[n] for n in operation.inputs if n in self.origins]
            if origins and self.constant.issuperset(operation.inputs):
                made = frozenset().union(*origins)
                self.origins.update(dict.fromkeys(operation.outputs, made))
            return
        try:
            found = list(self.weights_of(operation))
        except (TypeError, AttributeError, IndexError):
            found = []  # called in a way that is not known
        if not found:
            for number in operation.inputs:
                if number in self.origins and len(self.flow.shapes[number]) > 1:
                    self.refuse(operation, number, f"it is read by {operation.name}")
        for number, times, start, stop in found:
            if number < len(self.names):
                shape = self.flow.shapes[number]
                stop = shape[0] if stop is None else stop
                use = Use(times, start, stop, (stop - start) * math.prod(shape[1:]))
                self.of.setdefault(self.names[number], []).append(use)
            elif number in self.constant:
                self.refuse(operation, number, f"{operation.name} reads what is computed from it")

    def refuse(self, operation: Operation, number: int, reason: str) -> None:
        """Say why the product with a value cannot be counted."""
        for name in self.origins.get(number, {operation.module or "(model)"}):
            self.uncounted[name] = f"{reason}, in {operation.module or 'the model itself'}"

    def weights_of(self, operation: Operation) -> Iterable[tuple[int, int, int, int | None]]:
        """Yield the weights of a product: their number, how often, and which of their slices.

        Yields nothing for a product of another kind than those of layers.
        """
        name = operation.name
        if name == "linear":
            x, weight = _argument(operation, 0, "input"), _argument(operation, 1, "weight")
            yield weight, self.rows(x), 0, None
        elif name in _CONVOLUTIONS | _TRANSPOSED:
            # A filter's entry meets each position of the output; of a transposed one, of the input.
            x, weight = _argument(operation, 0, "input"), _argument(operation, 1, "weight")
            over = x if name in _TRANSPOSED else operation.outputs[0]
            positions = math.prod(self.flow.shapes[over]) // self.flow.shapes[weight][0]
            yield weight, positions, 0, None
        elif name in ("matmul", "mm", "addmm"):
            x, weight = (_argument(operation, i + (name == "addmm"), "") for i in (0, 1))
            if weight < len(self.names) and len(self.flow.shapes[weight]) == 2:
                yield weight, self.rows(x), 0, None
        elif name in _RECURRENT:
            x = _argument(operation, 0, "input")
            for value in [part for part in operation.arguments if isinstance(part, tuple)][-1]:
                if len(self.flow.shapes[value.number]) > 1:
                    yield value.number, self.rows(x), 0, None
        elif name in _CELLS:
            for position in (2, 3):
                weight = _argument(operation, position, "")
                yield weight, self.rows(_argument(operation, 0, "")), 0, None
        elif name == _ATTENTION:
            yield from self.attention(operation)

    def attention(self, operation: Operation) -> Iterable[tuple[int, int, int, int | None]]:
        """Yield the projections of an attention layer."""
        bound = inspect.signature(F.multi_head_attention_forward).bind(
            *operation.arguments, **operation.keywords
        )
        given = bound.arguments
        tokens = [self.rows(given[name].number) for name in ("query", "key", "value")]
        yield given["out_proj_weight"].number, tokens[0], 0, None
        if given.get("use_separate_proj_weight", False):
            for part, times in zip("qkv", tokens, strict=True):
                yield given[f"{part}_proj_weight"].number, times, 0, None
            return
        packed = given["in_proj_weight"].number
        third = self.flow.shapes[packed][0] // 3
        for index, times in enumerate(tokens):
            yield packed, times, index * third, (index + 1) * third

    def rows(self, number: int) -> int:
        """Return how many vectors a value holds along its last axis."""
        return math.prod(self.flow.shapes[number][:-1])


def _argument(operation: Operation, position: int, name: str) -> int:
    given = operation.arguments
    value = given[position] if position < len(given) else operation.keywords.get(name)
    if not isinstance(value, Value):
        raise TypeError("it is no tensor")
    return value.number


def _reached(outputs: Any) -> set[Tensor]:
    """Return the parameters that the graph above the outputs leads to."""
    found: set[Tensor] = set()
    stack = [tensor.grad_fn for tensor in tensors_in(outputs)]
    seen = set(stack)
    while stack:
        node = stack.pop()
        for above, _ in node.next_functions if node is not None else ():
            if above is not None and above not in seen:
                seen.add(above)
                stack.append(above)
                variable = getattr(above, "variable", None)
                if variable is not None:
                    found.add(variable)
    return found


def _copied(leaf: Any) -> Any:
    # What is no tensor may be a cache that the model fills.
    return leaf.detach().clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf)
