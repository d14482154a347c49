"""Find units that do nothing, and write what a constant one gives into the biases behind it.

The model keeps its shape here: a dead unit ends with zero weights in and out, and the model
computes what it did. Taking such units out is `removal.py`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from dynamo_probe.anatomy import kinds
from dynamo_probe.exporting.units import Units, run, take_input
from dynamo_probe.observation.batch import Batch

Constants = Mapping[tuple[int, str], Tensor]
"""{(number of the group, reader): float64 [units, k]}; NaN where it is no constant."""


@dataclass(slots=True)
class Dead:
    """What was found out about some units.

    Attributes:
        mask: bool [units], those that can be taken out.
        unread: how many of them nothing reads.
        constant: how many of them give a constant.
        biased: layers whose bias took a constant other than 0.
        kept: {why units with zero incoming weights stay: how many}.
    """

    mask: Tensor
    unread: int = 0
    constant: int = 0
    biased: set[str] = field(default_factory=set)
    kept: Counter[str] = field(default_factory=Counter)


def silence_dead(model: nn.Module, batch: Batch, groups: Sequence[Units]) -> list[Dead]:
    """Find dead units and set every weight that leads into or out of them to zero.

    A unit is dead when all its outgoing weights are zero, or when its incoming weights are zero, so
    that it is a constant, and every layer that reads it can take the constant into its bias
    exactly. Setting weights to zero can make other units dead, so this is repeated until nothing
    changes.

    Args:
        model: a copy of the user's model, in evaluation mode. It is changed.
        batch: the inputs.
        groups: the units to look at.

    Returns:
        What was found for each group.
    """
    modules = dict(model.named_modules())
    found = [Dead(torch.zeros(units.count, dtype=torch.bool)) for units in groups]
    while True:
        unread = [_unread(modules, u) & ~d.mask for u, d in zip(groups, found, strict=True)]
        fed = [
            _unfed(modules, u) & ~d.mask & ~n for u, d, n in zip(groups, found, unread, strict=True)
        ]
        constants = _constants(model, batch, groups, fed) if any(bool(m.any()) for m in fed) else {}
        changed = False
        for number, (units, dead) in enumerate(zip(groups, found, strict=True)):
            dead.kept.clear()
            done = unread[number].clone()
            for unit in fed[number].nonzero().flatten().tolist():
                reason = _folded(modules, units, unit, constants, number, dead)
                if reason is None:
                    done[unit] = True
                    dead.constant += 1
                else:
                    dead.kept[reason] += 1
            dead.unread += int(unread[number].sum())
            dead.mask |= done
            if bool(done.any()):
                changed = True
                _close(modules, units, done)
        if not changed:
            return found


def _unread(modules: Mapping[str, nn.Module], units: Units) -> Tensor:
    """Return which units have outgoing weights of zero only: bool [units]."""
    read = torch.zeros(units.count, dtype=torch.bool)
    for name, index in units.readers.items():
        read |= _slices(modules[name], reading=True).flatten(1).any(1).cpu()[index].any(1)
    return ~read


def _unfed(modules: Mapping[str, nn.Module], units: Units) -> Tensor:
    """Return which units have a maker with incoming weights of zero only: bool [units]."""
    masks = [
        ~_slices(modules[name], reading=False).flatten(1).any(1).cpu() for name in units.makers
    ]
    return torch.stack(masks).any(0)


def _slices(module: nn.Module, *, reading: bool) -> Tensor:
    """Return a weight with its inputs (or its units) first; a view."""
    weight = module.get_parameter("weight").detach()
    # Of a convolution without groups and of a linear layer, inputs and units are the first two.
    dim = kinds.unit_dim(module)
    return weight.movedim(1 - dim if reading else dim, 0)


def _folded(
    modules: Mapping[str, nn.Module],
    units: Units,
    unit: int,
    constants: Constants | str,
    number: int,
    dead: Dead,
) -> str | None:
    """Write a constant unit into the biases behind it, or return why that is not exact."""
    if isinstance(constants, str):
        return constants
    takes: dict[str, Tensor] = {}
    for name, index in units.readers.items():
        values = constants[number, name][unit]
        weights = _slices(modules[name], reading=True)[index[unit].to(_device(modules[name]))]
        if not bool(weights.any()):
            continue
        if not bool(values.isfinite().all()):
            return f"what arrives at `{name}` is not one constant"
        if not bool(values.any()):
            continue
        reason = _pads(modules[name])
        if reason is not None:
            return f"`{name}` {reason}, so that a constant other than 0 counts less at the border"
        sums = weights.double().flatten(2).sum(2) if weights.dim() > 2 else weights.double()
        takes[name] = values.to(sums.device) @ sums
    for name, amount in takes.items():
        _add_to_bias(modules[name], amount)
        dead.biased.add(name)
    return None


def _pads(module: nn.Module) -> str | None:
    if not isinstance(module, _ConvNd):
        return None
    if module.transposed:
        return "is a transposed convolution"
    if any(module._reversed_padding_repeated_twice) and module.padding_mode == "zeros":
        return "pads with zeros"
    return None


def _add_to_bias(module: nn.Module, amount: Tensor) -> None:
    weight = module.get_parameter("weight")
    if module.bias is None:
        module.bias = nn.Parameter(amount.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        bias = module.get_parameter("bias").detach()
        bias.copy_(bias.double() + amount)


def _close(modules: Mapping[str, nn.Module], units: Units, chosen: Tensor) -> None:
    """Set the weights that lead into and out of some units to zero, and their biases."""
    for name in units.makers:
        where = chosen.to(_device(modules[name]))
        _slices(modules[name], reading=False)[where] = 0
        if modules[name].bias is not None:
            modules[name].get_parameter("bias").detach()[where] = 0
    for name, index in units.readers.items():
        where = index[chosen].flatten().to(_device(modules[name]))
        _slices(modules[name], reading=True)[where] = 0


def _constants(
    model: nn.Module, batch: Batch, groups: Sequence[Units], chosen: Sequence[Tensor]
) -> Constants | str:
    """Read what units give their readers, or return why that shows nothing.

    The model runs as it is; then twice with other inputs and other outputs of all units that have
    incoming weights; then on inputs of other sizes, as far as it takes any, because what pads
    before a mean makes a constant that depends on the size. What is one number over all of these,
    all samples and all positions is a constant.
    """
    modules = dict(model.named_modules())
    makers = [modules[name] for units in groups for name in units.makers]
    fed = {module: _slices(module, reading=False).flatten(1).any(1) for module in makers}
    generator = torch.Generator().manual_seed(0)
    seen: dict[tuple[int, str], Tensor] = {}

    def look(number: int, name: str, index: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
        def looked(module: nn.Module, x: Tensor) -> Tensor:
            axis = kinds.input_axis(module, x.dim())
            own = x.index_select(axis, index.flatten().to(x.device)).movedim(axis, 0).flatten(1)
            ends = torch.stack((own.amin(1), own.amax(1))).double().cpu()
            # Vectorised code may round differently from one position to the next.
            slack = 32 * torch.finfo(x.dtype).eps * ends.abs().amax(0)
            seen[number, name] = torch.stack((*ends, slack))
            return x

        return looked

    def stir(sign: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def stirred(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            shape = [1] * output.dim()
            shape[kinds.output_axis(module)] = -1
            # Far to both sides: a unit may be silent on these inputs and not on others.
            other = sign * (1 + output.abs().amax()) * (1 + 9 * _noise(output, generator))
            return torch.where(fed[module].view(shape), other, output)

        return stirred

    def passed(inputs: Batch) -> dict[tuple[int, str], Tensor]:
        seen.clear()
        run(model, inputs)
        return dict(seen)

    with ExitStack() as stack:
        for number, units in enumerate(groups):
            for name, index in units.readers.items() if bool(chosen[number].any()) else ():
                stack.callback(take_input(modules[name], look(number, name, index)).remove)
        passes = [passed(batch)]
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about inputs that the user never gave
        try:
            for sign in (1, -1):
                with ExitStack() as inner:
                    for module in makers:
                        inner.callback(module.register_forward_hook(stir(sign)).remove)
                    passes.append(passed(_stirred(batch, generator)))
        except Exception as error:
            return (
                "the model does not run on changed inputs "
                f"({type(error).__name__}: {error}), so nothing shows that a unit is constant"
            )
        for axis in range(1, max((t.dim() for t in _tensors(batch)), default=0)):
            with suppress(Exception):
                passes.append(passed(_longer(batch, axis)))
    found = {}
    for number, name in passes[0]:
        lows, highs, slacks = torch.stack([one[number, name] for one in passes]).unbind(1)
        low, high = lows.amin(0), highs.amax(0)
        middle = torch.where(high - low <= slacks.amax(0), (low + high) / 2, float("nan"))
        found[number, name] = middle.view(groups[number].readers[name].shape)
    return found


def _stirred(batch: Batch, generator: torch.Generator) -> Batch:
    """Add noise to the inputs that are no whole numbers, which may be indices."""

    def stirred(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf + _noise(leaf, generator)
        return leaf

    return _mapped(stirred, batch)


def _longer(batch: Batch, axis: int) -> Batch:
    """Make the inputs half as long again along an axis."""

    def longer(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() <= axis:
            return leaf
        more = leaf.flip(axis).narrow(axis, 0, (leaf.shape[axis] + 1) // 2)
        return torch.cat((leaf, more), axis)

    return _mapped(longer, batch)


def _mapped(change: Callable[[Any], Any], batch: Batch) -> Batch:
    return Batch(*tree_map(change, (batch.args, dict(batch.kwargs))))


def _tensors(batch: Batch) -> list[Tensor]:
    leaves = tree_leaves((batch.args, dict(batch.kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator).to(like)


def _device(module: nn.Module) -> torch.device:
    return module.get_parameter("weight").device
