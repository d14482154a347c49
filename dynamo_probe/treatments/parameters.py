"""What treatments of whole parameters share: which ones, the optimizer's state, the copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.shards import is_sharded
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.functional.ledger import Ledger
from dynamo_probe.functional.moments import (
    COPIES,
    MOMENTS,
    Moments,
    States,
    fresh_value,
    per_weight,
    restart,
)
from dynamo_probe.site import Site


def check_moments(moments: str) -> Moments:
    """Return the choice, if it has a meaning for whole parameters.

    Raises:
        ValueError: when it has none.
    """
    for choice in MOMENTS:
        if choice == moments and choice != "live-mean":
            return choice
    raise ValueError(
        f"moments is {moments!r}; give zero, zero+step or keep (no unit of a parameter stays, "
        "so that there is no live mean)"
    )


def learned(site: Site, patterns: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer of the watch learns, each once, by name.

    Args:
        site: the run.
        patterns: shell patterns of parameter names or of modules; None takes all.
    """
    states = States(site.optimizers)
    return {
        name: parameter
        for name, parameter in site.parameters()
        if parameter.requires_grad
        and parameter.is_floating_point()
        and states.holds(parameter)
        and _wanted(name, patterns)
    }


def refuse_sharded(what: str, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse parameters that `fully_shard` spreads over ranks.

    Raises:
        ValueError: names the first one.
    """
    for name, parameter in parameters.items():
        if is_sharded(parameter):
            raise ValueError(f"{what} does not work on sharded parameters, such as `{name}`")


def replace_values(
    site: Site,
    parameters: Mapping[str, nn.Parameter],
    values: Mapping[str, Tensor],
    moments: Moments,
    mirror: Sequence[nn.Module],
) -> None:
    """Give whole parameters new values; all of it, or on an exception nothing.

    Args:
        site: the run.
        parameters: by name.
        values: for each, of its shape.
        moments: what becomes of the optimizers' state of them: `zero`, `zero+step` or `keep`.
        mirror: networks that get the same values.
    """
    states = States(site.optimizers)
    copies = [dict(unwrap(network).named_parameters()) for network in mirror]
    with torch.no_grad(), Ledger() as ledger:
        for name, parameter in parameters.items():
            overwrite(ledger, parameter, values[name])
            for own in copies:
                overwrite(ledger, own[name], values[name])
        if moments != "keep":
            clear_state(ledger, states, parameters.values(), restarts=moments == "zero+step")


def overwrite(ledger: Ledger, tensor: Tensor, values: Tensor) -> None:
    """Write all of a tensor."""
    flat = tensor.detach().view(-1) if tensor.dim() == 0 else tensor.detach()
    values = values.view(-1) if values.dim() == 0 else values
    ledger.write(flat, 0, torch.arange(len(flat)), values)


def relative_change(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> float:
    """Return |new - old| / |old| of tensors taken as one vector, in float64."""
    moved = size = 0.0
    for old, new in zip(parameters, values, strict=True):
        old = old.detach().double()
        moved += float((new.double() - old).square().sum())
        size += float(old.square().sum())
    return (moved / size) ** 0.5 if size else float("nan")


def clear_state(
    ledger: Ledger, states: States, parameters: Iterable[nn.Parameter], *, restarts: bool
) -> None:
    """Make optimizers forget whole parameters, whose new values are there already.

    Args:
        ledger: makes the changes.
        states: the optimizers' states.
        parameters: which.
        restarts: also set their step counts to 0.
    """
    parameters = list(parameters)
    for parameter in parameters:
        for state, group in states.of(parameter):
            for key, value in state.items():
                if key in COPIES and per_weight(value, parameter):
                    overwrite(ledger, value, parameter)
                elif per_weight(value, parameter):
                    ledger.fill(value, fresh_value(key, group))
    if restarts:
        restart(ledger, states, parameters)


def _wanted(name: str, patterns: Sequence[str] | None) -> bool:
    if patterns is None:
        return True
    module = name.rpartition(".")[0]
    return any(fnmatchcase(name, p) or fnmatchcase(module, p) for p in patterns)


def check_patterns(site: Site, patterns: Sequence[str] | None) -> None:
    """Refuse a pattern that matches no parameter and no module.

    Raises:
        ValueError: names it, and the modules that there are.
    """
    names = [name for name, _ in site.parameters()]
    for pattern in patterns or ():
        if not any(_wanted(name, [pattern]) for name in names):
            modules = sorted({name.rpartition(".")[0] for name in names})
            raise ValueError(f"nothing is called {pattern!r}; the layers are {', '.join(modules)}")
