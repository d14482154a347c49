"""Where a layer's units arrive: mark units with NaN, and see which inputs of other layers are NaN.

NaN passes through activation functions, pooling, reshaping, concatenation and permutation alike, so
that nothing has to be known about them. Each unit of each layer has a number; one forward pass for
each binary digit, and one for its complement, marks the units whose digit is set. An input position
is a unit's own when the digits it saw are exactly those of one number. Layers that read units take
the marks off, and norms carry them over, so marks spread no further than the question goes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy import kinds

Run = Callable[[], list[Tensor]]
Places = Mapping[str, Tensor]
"""{layer or norm: int64 [units, k], the k positions along its input axis that hold each unit}"""


def arrivals(model: nn.Module, run: Run, layers: Sequence[str]) -> dict[str, Places | str]:
    """Find where the units of each layer arrive.

    Args:
        model: a copy of the user's model that nobody else sees.
        run: run the model and return the tensors of its output.
        layers: linear and convolutional layers, each called once in a pass.

    Returns:
        For each layer its places, or the reason why its units cannot be told apart.
    """
    if not layers:
        return {}
    found: dict[str, Places | str]
    try:
        found = _decoded(model, run, layers)
    except Exception as error:
        reason = f"following its units through the model failed ({type(error).__name__}: {error})"
        found = {layer: reason for layer in layers}
    if len(layers) == 1 or not any(isinstance(places, str) for places in found.values()):
        return found
    # Somewhere marks have run together. Layers are asked in halves until the odd ones stand alone.
    half = len(layers) // 2
    return {**arrivals(model, run, layers[:half]), **arrivals(model, run, layers[half:])}


def meets_others(
    model: nn.Module, run: Run, run_changed: Run, layers: Sequence[str], places: Places
) -> str | None:
    """Return a reader that finds more than the units in their places; None if there is none.

    The units are held constant, everything else is changed, and the places are compared. Norms are
    passed by: what else goes into their statistics does not share a place with a unit.

    Args:
        model: a copy of the user's model that nobody else sees.
        run: run the model and return the tensors of its output.
        run_changed: the same on other inputs.
        layers: the layers that make the units.
        places: where the units arrive.
    """

    def hold(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return torch.full_like(output, 0.5)

    def change(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + 1

    def pass_by(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> Any:
        return inputs[0]

    def found(run: Run, *, changing: bool) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def look(name: str, module: nn.Module, x: Tensor) -> Tensor:
            axis = kinds.input_axis(module, x.dim())
            seen[name] = x.detach().index_select(axis, places[name].flatten().to(x.device))
            return x

        with ExitStack() as stack:
            for name, module in model.named_modules():
                action = None
                if name in layers:
                    action = hold
                elif changing and isinstance(module, (*kinds.WEIGHTED, nn.Embedding)):
                    action = change
                if name in places:
                    stack.enter_context(_reading(name, module, look))
                    action = pass_by if isinstance(module, kinds.NORMS) else action
                if action is not None:
                    stack.enter_context(_removed(module.register_forward_hook(action)))
            run()
        return seen

    still, moved = found(run, changing=False), found(run_changed, changing=True)
    return next((name for name in places if not torch.equal(still[name], moved[name])), None)


def _decoded(model: nn.Module, run: Run, layers: Sequence[str]) -> dict[str, Places | str]:
    modules = dict(model.named_modules())
    sizes = [_unit_count(modules[layer]) for layer in layers]
    digits = max(1, sum(sizes).bit_length())
    # Number 0 would never be marked in its own right: it has no digits.
    numbers = torch.arange(1, sum(sizes) + 1)
    rounds: list[tuple[dict[str, Tensor], Tensor]] = []
    for digit in range(digits):
        with_digit = (numbers >> digit) % 2 == 1
        for marked in (with_digit, ~with_digit):
            marks = dict(zip(layers, marked.split(sizes), strict=True))
            rounds.append(_marked_pass(model, run, marks))
    unmarked, leaked = _marked_pass(model, run, {})
    if bool(leaked) or any(bool(seen.any()) for seen in unmarked.values()):
        reason = "the forward pass on the example input gives NaN"
        return {layer: reason for layer in layers}
    reaches_output = bool(torch.stack([leak for _, leak in rounds]).any())
    owner: dict[str, Tensor] = {}
    mixed: list[str] = []
    for reader in unmarked:
        seen = torch.stack([round_[reader] for round_, _ in rounds]).cpu()
        ones, zeros = seen[0::2], seen[1::2]
        single = (ones ^ zeros).all(0)
        if bool(((ones | zeros).any(0) & ~single).any()):
            mixed.append(reader)
        weights = 1 << torch.arange(digits).unsqueeze(1)
        owner[reader] = torch.where(single, (ones * weights).sum(0), 0)
    found: dict[str, Places | str] = {}
    first = 1
    for layer, size in zip(layers, sizes, strict=True):
        if reaches_output:
            found[layer] = (
                "its units reach the model's output past every layer that could read them"
            )
        elif mixed:
            found[layer] = f"several of its units are mixed before `{mixed[0]}` reads them"
        else:
            found[layer] = _places(owner, first, size)
        first += size
    return found


def _places(owner: Mapping[str, Tensor], first: int, size: int) -> Places | str:
    places: dict[str, Tensor] = {}
    for reader, numbers in owner.items():
        positions = ((numbers >= first) & (numbers < first + size)).nonzero().flatten()
        if not len(positions):
            continue
        units = numbers[positions] - first
        counts = torch.bincount(units, minlength=size)
        if int(counts.min()) != int(counts.max()):
            return f"`{reader}` does not read all of its units alike"
        places[reader] = positions[units.argsort(stable=True)].view(size, -1)
    return places


def _marked_pass(
    model: nn.Module, run: Run, marks: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Run with some units marked; return which inputs saw marks, and whether the output did."""
    seen: dict[str, Tensor] = {}
    carried: dict[str, Tensor] = {}

    def look(name: str, module: nn.Module, x: Tensor) -> Tensor:
        nan = x.detach().isnan()
        axis = kinds.input_axis(module, x.dim())
        marked = nan.movedim(axis, 0).flatten(1).any(1)
        seen[name] = marked | seen[name] if name in seen else marked
        if isinstance(module, kinds.NORMS):
            carried[name] = nan
        return x.masked_fill(nan, 0.0)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, (*kinds.WEIGHTED, *kinds.NORMS)):
                stack.enter_context(_reading(name, module, look))
            if isinstance(module, kinds.NORMS):
                carry = _Carry(carried, name)
                stack.enter_context(_removed(module.register_forward_hook(carry)))
            if name in marks:
                mark = _Mark(marks[name], kinds.output_axis(module))
                stack.enter_context(_removed(module.register_forward_hook(mark)))
        outputs = run()
    leaks = [tensor.detach().isnan().any().cpu() for tensor in outputs]
    return seen, torch.stack(leaks).any() if leaks else torch.tensor(False)


class _Mark:
    """Sets the marked units of a layer's output to NaN."""

    def __init__(self, units: Tensor, axis: int) -> None:
        self.units, self.axis = units, axis

    def __call__(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[self.axis] = -1
        return output.masked_fill(self.units.to(output.device).view(shape), float("nan"))


class _Carry:
    """Marks a norm's output where its input was marked."""

    def __init__(self, carried: dict[str, Tensor], name: str) -> None:
        self.carried, self.name = carried, name

    def __call__(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.masked_fill(self.carried.pop(self.name), float("nan"))


@contextmanager
def _reading(
    name: str, module: nn.Module, look: Callable[[str, nn.Module, Tensor], Tensor]
) -> Generator[None, None, None]:
    """Pass what a module gets through `look`."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (look(name, module, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": look(name, module, kwargs["input"])}

    with _removed(module.register_forward_pre_hook(hook, with_kwargs=True)):
        yield


@contextmanager
def _removed(handle: Any) -> Generator[None, None, None]:
    try:
        yield
    finally:
        handle.remove()


def _unit_count(module: nn.Module) -> int:
    return module.get_parameter("weight").shape[kinds.unit_dim(module)]
