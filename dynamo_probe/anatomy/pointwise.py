"""Activation functions, however they are spelled: pointwise regions of a recorded forward pass.

A region is everything that is computed from one value entry by entry. SiLU written as `x *
sigmoid(x)`, the tanh form of GELU in six operations and a plain `relu` are all found as the first
value that is nonlinear and through which everything else in the region has to pass.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamo_probe.anatomy.dataflow import Dataflow, Operation, Value

NONLINEAR = frozenset(
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh tanh "
    "sigmoid softplus softsign tanhshrink softshrink hardshrink log_sigmoid logsigmoid threshold "
    "clamp clamp_min clamp_max clip abs absolute exp expm1 erf square sqrt rsqrt pow sin cos log1p "
    "maximum minimum max min where gt lt ge le eq ne heaviside sign".split()
)
LINEAR = frozenset(
    "add sub rsub mul div true_divide rdiv neg negative positive clone contiguous float half "
    "bfloat16 double to type type_as identity zeros_like ones_like full_like".split()
)
OPAQUE = frozenset(("prelu", "rrelu"))
"""Activation functions that cannot be computed again from their input: learned or random."""
RESHAPES = frozenset(
    "view reshape flatten unflatten permute transpose movedim swapaxes squeeze unsqueeze "
    "contiguous view_as reshape_as".split()
)
NORMS = frozenset(
    "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm".split()
)
POOLS = frozenset(
    f"{kind}_pool{n}d{suffix}"
    for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max")
    for n in (1, 2, 3)
    for suffix in ("", "_with_indices")
) | {"boolean_dispatch", "fn"}
DROPOUTS = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split()
)
PRODUCTS = frozenset(("mul", "div", "true_divide"))


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A recorded pointwise function, to be computed again from its input.

    Attributes:
        name: how it reads in a report, such as `relu` or `sigmoid*mul`.
        steps: the operations, in order; values of the region are looked up, the rest is constant.
        start, end: the number of the value that goes in and of the one that comes out.
    """

    name: str
    steps: tuple[Operation, ...]
    start: int
    end: int

    @property
    def repeatable(self) -> bool:
        """Whether it can be computed again from its input alone."""
        return all(step.name not in OPAQUE for step in self.steps)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the function entry by entry, never in place: [any shape] -> [same shape]."""
        values = {self.start: x}
        for step in self.steps:
            arguments = [_filled(a, values) for a in step.arguments]
            keywords = {k: _filled(a, values) for k, a in step.keywords.items() if k != "inplace"}
            if _writes_input(step):
                arguments[0] = arguments[0].clone()
            values[step.outputs[0]] = step.function(*arguments, **keywords)
        return values[self.end]

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and highest value of a single-step function; infinite if unbounded.

        Functions of several steps are taken as unbounded: a grid could miss where they dip.
        """
        if len(self.steps) != 1 or not self.repeatable:
            return float("-inf"), float("inf")
        near = torch.linspace(-40, 40, 8001, dtype=torch.float64)
        far = torch.tensor([-1e6, -1e3, 1e3, 1e6], dtype=torch.float64)
        values = self(torch.cat([near, far]))
        low_far, low, high, high_far = values[-4:].tolist()
        return (
            values.min().item() if low == low_far else float("-inf"),
            values.max().item() if high == high_far else float("inf"),
        )


def _filled(argument: Any, values: Mapping[int, Tensor]) -> Any:
    if isinstance(argument, Value):
        return values[argument.number]
    if isinstance(argument, tuple):
        return tuple(_filled(item, values) for item in argument)
    return argument


def _writes_input(operation: Operation) -> bool:
    name = getattr(operation.function, "__name__", "")
    return name.endswith("_") and not name.endswith("__") or name.startswith("__i")


@dataclass(frozen=True, slots=True)
class Region:
    """What is computed from one value entry by entry.

    Attributes:
        activation: the activation function, None where nothing nonlinear is passed by all.
        exits: the values of the region that are used outside it.
        values: all values of the region, the start first.
    """

    activation: Pointwise | None
    exits: tuple[int, ...]
    values: tuple[int, ...]


def region_from(flow: Dataflow, start: int) -> Region:
    """Find the pointwise region that begins at a value.

    Args:
        flow: a live flow (`Dataflow.live`).
        start: the number of the value.
    """
    shape = flow.shapes[start]
    members: dict[int, None] = {start: None}
    nonlinear: set[int] = set()
    steps: list[Operation] = []
    last_use: dict[int, int] = {}
    exits: dict[int, None] = {}
    for position, operation in enumerate(flow.operations):
        read = members.keys() & set(operation.inputs)
        if not read:
            continue
        last_use.update(dict.fromkeys(read, position))
        if _is_pointwise(flow, operation, members, shape):
            steps.append(operation)
            output = operation.outputs[0]
            members[output] = None
            bends = operation.name in NONLINEAR | OPAQUE or (
                operation.name in PRODUCTS and len(read) > 1
            )
            if bends or nonlinear & read:
                nonlinear.add(output)
        else:
            exits.update(dict.fromkeys(read))
    exits.update(dict.fromkeys(flow.returned & members.keys()))
    return Region(
        _first_cut(flow, start, list(members), nonlinear, steps, last_use),
        tuple(exits),
        tuple(members),
    )


def _is_pointwise(
    flow: Dataflow, operation: Operation, members: Container[int], shape: torch.Size
) -> bool:
    if operation.name in OPAQUE:
        return operation.inputs[0] in members
    if operation.name not in NONLINEAR and operation.name not in LINEAR:
        return False
    # A tensor from outside (a mask, a residual branch) makes the result more than a function of x.
    return (
        len(operation.outputs) == 1
        and flow.shapes[operation.outputs[0]] == shape
        and all(number in members for number in operation.inputs)
    )


def _first_cut(
    flow: Dataflow,
    start: int,
    members: list[int],
    nonlinear: set[int],
    steps: list[Operation],
    last_use: dict[int, int],
) -> Pointwise | None:
    """Find the first nonlinear value that everything later in the region is computed from."""
    position_of = {op.outputs[0]: i for i, op in enumerate(flow.operations) if op.outputs}
    for index, number in enumerate(members):
        if number not in nonlinear:
            continue
        made = position_of[number]
        earlier = members[:index]
        if any(last_use.get(other, -1) > made or other in flow.returned for other in earlier):
            continue
        needed = _needed(steps, number)
        name = "*".join(dict.fromkeys(s.name for s in needed if s.name not in LINEAR)) or "mul"
        return Pointwise(name, needed, start, number)
    return None


def _needed(steps: list[Operation], end: int) -> tuple[Operation, ...]:
    wanted, kept = {end}, []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            kept.append(step)
            wanted.update(step.inputs)
    return tuple(reversed(kept))
