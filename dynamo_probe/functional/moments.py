"""What an optimizer remembers about single weights, and what becomes of it when they are replaced.

State is found by the parameter's identity (`optimizer.state[parameter]`) and by shape: what has the
parameter's shape holds one value per weight. What such a state is follows from its name:

| kind | names | reset to |
|---|---|---|
| second moment | `exp_avg_sq`, `max_exp_avg_sq`, `exp_inf`, `square_avg`, `acc_delta`, `sum`, any `..._sq` | 0 (`sum`: the group's `initial_accumulator_value`), or the live mean |
| step size | `step_size` (Rprop) | the group's `lr` |
| copy of the weights | `ax` (ASGD), `z` (schedule-free) | the new weights |
| anything else | `exp_avg`, `momentum_buffer`, `grad_avg`, `prev`, ... | 0 |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import whole
from dynamo_probe.functional.ledger import Ledger

Moments = Literal["zero", "live-mean", "zero+step", "keep"]
MOMENTS: tuple[Moments, ...] = ("zero", "live-mean", "zero+step", "keep")

_SECOND_MOMENTS = frozenset({"exp_inf", "square_avg", "acc_delta", "sum"})
COPIES = frozenset({"ax", "z"})


class States:
    """The states that some optimizers keep of parameters.

    Args:
        optimizers: they may share parameters, and need not hold all of a model's.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        """Find out which optimizer holds which parameter."""
        self._holders: dict[Tensor, list[tuple[Optimizer, Mapping[str, Any]]]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self._holders.setdefault(parameter, []).append((optimizer, group))

    def holds(self, parameter: Tensor) -> bool:
        """Return whether one of the optimizers updates the parameter."""
        return parameter in self._holders

    def of(self, parameter: Tensor) -> Iterator[tuple[MutableMapping[str, Any], Mapping[str, Any]]]:
        """Yield each state kept of a parameter, and the options of its group."""
        for optimizer, group in self._holders.get(parameter, ()):
            # Not `state[parameter]`: a defaultdict would come to hold a state without a step.
            state = optimizer.state.get(parameter)
            if state is not None:
                yield state, group

    def not_per_weight(self, parameter: Tensor) -> list[str]:
        """Name the states of a parameter that hold several values, but not one per weight."""
        return [
            key
            for state, _ in self.of(parameter)
            for key, value in state.items()
            if _several(value) and not per_weight(value, parameter)
        ]


def reset(
    ledger: Ledger,
    states: States,
    parameter: Tensor,
    dim: int,
    recycled: Tensor,
    live: Tensor,
    moments: Moments,
) -> None:
    """Reset what is remembered of some slices of a parameter, whose weights are already new.

    Args:
        ledger: makes the changes.
        states: the optimizers' states.
        parameter: the parameter.
        dim: the dimension along which the slices lie.
        recycled: int64 [m, k], the k slices of each recycled unit.
        live: int64 [l, k], those of each unit that stays.
        moments: `zero`: every state to its value of a fresh parameter. `live-mean`: second moments
            to their mean over the units that stay, slice by slice and coordinate by coordinate,
            otherwise as `zero`. `zero+step` as `zero`; see `restart`. `keep`: nothing.
    """
    if moments == "keep":
        return
    positions = recycled.flatten()
    for state, group in states.of(parameter):
        for key, value in state.items():
            if not per_weight(value, parameter):
                continue
            fresh: Tensor | float = fresh_value(key, group)
            if key in COPIES:
                fresh = whole(parameter.detach()).index_select(dim, positions.to(parameter.device))
            elif _second_moment(key) and moments == "live-mean" and len(live):
                fresh = _mean_over_units(value, dim, live, len(recycled))
            ledger.write(value, dim, positions, fresh)


def restart(ledger: Ledger, states: States, parameters: Iterable[Tensor]) -> None:
    """Set the step counter of whole parameters to 0, and what counts with it.

    The counter belongs to the tensor, so this also shrinks the steps of every weight that was not
    recycled (Adam: to x0.32 at once, x0.15 after 12 updates, x0.63 after 500).
    """
    for parameter in parameters:
        for state, _ in states.of(parameter):
            # NAdam keeps the product of its momenta, which is 1 at step 0.
            for key, start in (("step", 0), ("mu_product", 1)):
                value = state.get(key)
                if isinstance(value, Tensor):
                    ledger.fill(value, start)  # in place: the update demands the same 0-dim tensor
                elif isinstance(value, (int, float)):
                    ledger.put(state, key, type(value)(start))


def fresh_value(key: str, group: Mapping[str, Any]) -> float:
    """Return what a state is for a weight of 0 that has not been trained yet."""
    if key == "step_size":
        return float(group["lr"])
    return float(group.get("initial_accumulator_value", 0.0)) if key == "sum" else 0.0


def _second_moment(key: str) -> bool:
    return key in _SECOND_MOMENTS or key.endswith("_sq")


def per_weight(value: Any, parameter: Tensor) -> bool:
    """Whether a state holds one value for each weight of a parameter."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _several(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor) and value.numel() > 1


def _mean_over_units(state: Tensor, dim: int, live: Tensor, count: int) -> Tensor:
    """Average the slices of the live units; return the k mean slices, `count` times over."""
    state = whole(state)
    mean = _weighted_mean(state, dim, live) if live.shape[1] == 1 and state.dim() == 2 else None
    if mean is None:
        slices = state.index_select(dim, live.flatten().to(state.device))
        mean = slices.unflatten(dim, tuple(live.shape)).mean(dim, keepdim=True)
    repeats = [1] * mean.dim()
    repeats[dim] = count
    return mean.repeat(repeats).flatten(dim, dim + 1)


def _weighted_mean(state: Tensor, dim: int, live: Tensor) -> Tensor | None:
    """Average slices of a matrix in one read of it, without copying them out.

    Returns:
        The mean with `live`'s two axes in place of `dim`; None where a slice that is left out is
        not finite, which a weight of 0 does not keep out.
    """
    weights = torch.zeros(state.shape[dim], dtype=state.dtype, device=state.device)
    weights[live.flatten().to(state.device)] = 1 / len(live)
    mean = torch.mv(state.T if dim == 0 else state, weights)
    if not bool(mean.isfinite().all()):
        return None
    return mean.unsqueeze(dim).unsqueeze(dim)
