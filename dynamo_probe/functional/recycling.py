"""Recycle units: fresh weights in, zero weights out (ReDo, Sokar et al. 2023, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.kinds import WEIGHTED
from dynamo_probe.anatomy.wiring import Wiring, wire
from dynamo_probe.functional.changes import Init, closed, counterparts, fresh
from dynamo_probe.functional.ledger import Ledger
from dynamo_probe.functional.moments import MOMENTS, Moments, States, reset, restart


@dataclass(frozen=True, slots=True)
class RecycleReport:
    """What was recycled.

    Attributes:
        units: {layer: indices of its recycled units}, for every layer with a wiring.
        skipped: {layer: reason}, layers that cannot be recycled; none of their units was asked for.
        entries: {layer: how many weights, biases and norm values were set}.
        left_alone: optimizer state of touched parameters that is not kept per weight, such as
            `fc1.weight: exp_avg_sq_row`; it is as it was.
    """

    units: Mapping[str, tuple[int, ...]]
    skipped: Mapping[str, str]
    entries: Mapping[str, int]
    left_alone: tuple[str, ...]


def recycle(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None,
    masks: Mapping[str, Tensor],
    *,
    inputs: Any = None,
    generator: torch.Generator | None = None,
    init: Init = "own",
    moments: Moments = "zero",
    mirror: Sequence[nn.Module] = (),
    wiring: Mapping[str, Wiring | str] | None = None,
) -> RecycleReport:
    """Recycle units of a model (ReDo, Sokar et al. 2023, algorithm 1).

    A recycled unit gets incoming weights from its layer's initial distribution, a zero bias, norm
    entries at the identity (scale 1, shift 0, running mean 0, running variance 1) and zero outgoing
    weights. All incoming weights are drawn before any outgoing one is zeroed, so that a weight
    between two recycled units ends at 0. Biases of the layers that follow stay. The output of the
    network changes by what the units gave, which is nothing for dead ones; where a LayerNorm or
    GroupNorm lies behind the layer, its statistics see the fresh units too.

    Either everything is done or, on an exception, nothing.

    Args:
        model: the network.
        optimizer: the optimizer, or several, that update the model; None leaves no state to reset.
        masks: {qualified name of a layer: bool [units], True for the units to recycle}.
        inputs: an example input from which the wiring is traced: a tensor, a tuple of positional
            arguments or a dict of keyword arguments. Not needed when `wiring` is given.
        generator: source of the fresh weights; None for torch's default one.
        init: `own` for what the layer's own `reset_parameters` draws, `xavier` for xavier_uniform
            as in the reference, or {parameter or layer name: Initial}.
        moments: what becomes of the optimizer's state at exactly the weights that were set. `zero`
            is the reference; as Adam's step count stays, the first update of a fresh weight is
            (1 - beta1) / sqrt(1 - beta2) = 3.2 learning rates. `live-mean` sets second moments to
            their mean over the units that stay, which avoids that. `zero+step` also sets the step
            count of the whole tensor to 0; this restarts the optimizer for live units as well, so
            that an effect of recycling and an effect of the restart cannot be told apart. `keep`
            touches no state.
        mirror: networks of the same architecture, such as target networks, that get the same values
            at the same weights.
        wiring: what `dynamo_probe.anatomy.wiring.wire` found earlier for this model.

    Returns:
        The units recycled in each layer, and what was left alone.

    Raises:
        ValueError: for an unknown layer, a mask of the wrong length, a unit that cannot be recycled
            (with the reason), a parameter that no optimizer holds, or a mirror of another shape.
        TypeError: for a mask that is not boolean, or inputs, an optimizer or a mirror of another
            kind than above.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, WEIGHTED)]
    _check_known(masks, layers if wiring is None else wiring)
    if wiring is None:
        args, kwargs = _arguments(inputs)
        wiring = wire(model, args, kwargs, masks)
    skipped: dict[str, str] = {}
    wirings: dict[str, Wiring] = {}
    for layer, mask in masks.items():
        found = wiring[layer]
        if isinstance(found, Wiring):
            wirings[layer] = found
        elif bool(_checked(layer, mask, None).any()):
            raise ValueError(f"units of `{layer}` cannot be recycled: {found}; leave the layer out")
        else:
            skipped[layer] = found
    report = recycle_units(
        wirings,
        {layer: masks[layer] for layer in wirings},
        _optimizers(optimizer),
        initials=init,
        generator_for=lambda layer: generator,
        moments=moments,
        mirror=mirror,
    )
    return RecycleReport(report.units, skipped, report.entries, report.left_alone)


def recycle_units(
    wirings: Mapping[str, Wiring],
    masks: Mapping[str, Tensor],
    optimizers: Sequence[Optimizer],
    *,
    initials: Init = "own",
    generator_for: Callable[[str], torch.Generator | None] = lambda layer: None,
    moments: Moments = "zero",
    mirror: Sequence[nn.Module] = (),
) -> RecycleReport:
    """Recycle units whose wiring is known: `recycle` without the tracing.

    The masks come to the CPU in one transfer; everything else is done where the weights are.

    Args:
        wirings: {layer: its wiring}, at least for the layers of `masks`.
        masks: {layer: bool [units]}.
        optimizers: all that hold a touched parameter; empty leaves no state to reset.
        initials: as `init` of `recycle`.
        generator_for: gives the generator for a layer's fresh weights.
        moments: as in `recycle`.
        mirror: as in `recycle`.

    Returns:
        The units recycled in each layer, and what was left alone.

    Raises:
        ValueError, TypeError: as `recycle`.
    """
    if isinstance(mirror, nn.Module):  # a Sequential would be taken for its layers
        raise TypeError("mirror is one network; give a sequence: mirror=[network]")
    if moments not in MOMENTS:
        raise ValueError(f"moments is {moments!r}; give one of {', '.join(MOMENTS)}")
    _check_known(masks, wirings)
    chosen = _on_cpu({n: _checked(n, mask, wirings[n].units) for n, mask in masks.items()})
    recycled = {name: wirings[name] for name, mask in chosen.items() if bool(mask.any())}
    changes = [
        *(c for n, w in recycled.items() for c in fresh(n, w, chosen[n], initials, generator_for)),
        *(c for n, w in recycled.items() for c in closed(n, w, chosen[n])),
    ]
    states = States(optimizers)
    touched = {
        c.entries.name: c.entries.tensor
        for c in changes
        if isinstance(c.entries.tensor, nn.Parameter)
    }
    for name, parameter in touched.items():
        if optimizers and not states.holds(parameter):
            raise ValueError(
                f"no optimizer that was given holds `{name}`; give all that update the model, or "
                "none where there is no optimizer state to reset"
            )
    mirrored = [counterparts(network, changes) for network in mirror]
    with torch.no_grad(), Ledger() as ledger:
        for change in changes:
            ledger.write(*change.target, change.values)
        for change in changes:
            tensor, dim, _ = change.target
            reset(ledger, states, tensor, dim, change.recycled, change.live, moments)
        if moments == "zero+step":
            restart(ledger, states, touched.values())
        for tensors in mirrored:
            for change, tensor in zip(changes, tensors, strict=True):
                source, dim, index = change.target
                values = source.index_select(dim, index.to(source.device))
                ledger.write(tensor, dim, index, values)
    return RecycleReport(
        units={n: tuple(mask.nonzero().flatten().tolist()) for n, mask in chosen.items()},
        skipped={},
        entries={n: sum(c.size for c in changes if c.layer == n) for n in chosen},
        left_alone=tuple(
            f"{name}: {key}" for name, p in touched.items() for key in states.not_per_weight(p)
        ),
    )


def _check_known(masks: Mapping[str, Tensor], known: Iterable[str]) -> None:
    known = list(known)
    unknown = [name for name in masks if name not in known]
    if unknown:
        raise ValueError(
            f"no layer is called {', '.join(unknown)}; the layers are {', '.join(known)}"
        )


def _checked(layer: str, mask: Tensor, units: int | None) -> Tensor:
    """Return the mask if it is one of so many units."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"the mask of `{layer}` is {kind}; give a bool tensor, such as scores <= tau"
        )
    if units is not None and mask.shape != (units,):
        raise ValueError(
            f"the mask of `{layer}` has the shape {tuple(mask.shape)}; give one value for each of "
            f"its {units} units"
        )
    return mask


def _on_cpu(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the masks to the CPU, in one transfer where they are on one device."""
    if len({mask.device for mask in masks.values()}) > 1:
        return {name: mask.cpu() for name, mask in masks.items()}
    if not masks:
        return {}
    together = torch.cat(list(masks.values())).cpu()
    parts = together.split([len(mask) for mask in masks.values()])
    return dict(zip(masks, parts, strict=True))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        return (), dict(inputs)
    raise TypeError(
        f"inputs is a {type(inputs).__name__}; give an example input of the model: a tensor, a "
        "tuple of positional arguments or a dict of keyword arguments"
    )


def _optimizers(given: Optimizer | Sequence[Optimizer] | None) -> tuple[Optimizer, ...]:
    optimizers = () if given is None else (given,) if isinstance(given, Optimizer) else tuple(given)
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"the optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer, "
                "several of them, or None"
            )
    return optimizers
