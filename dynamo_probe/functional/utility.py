"""What units contribute to their readers: contribution utility (Dohare et al. 2024).

The paper, *Loss of plasticity in deep continual learning*, takes |h_i| times the *sum* of the
unit's outgoing |w| (eq. 1); the authors' public code takes the *mean*. Within a layer whose units
all have as many outgoing weights the two differ by one factor, so that they rank units alike; their
sizes cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.shards import whole
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.anatomy.wiring import Entries, Wiring, wire
from dynamo_probe.functional.dormancy import find_hidden
from dynamo_probe.observation.batch import Batch
from dynamo_probe.observation.parameters import to_host
from dynamo_probe.observation.recorder import measure
from dynamo_probe.observation.statistics import MAGNITUDE

Reduce = Literal["sum", "mean"]


def contribution_utility(model: nn.Module, *inputs: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Return each hidden unit's contribution on one batch: E|h_i| sum_k |w_ik| (eq. 1, one time).

    For a convolution E is over samples and positions, and k runs over all weights that read the
    feature map. The running average of eq. 1 is the probe `ContinualBackpropUtility`.

    Args:
        model: any module; wrappers of `torch.compile` and data parallelism are looked through.
        *inputs: positional arguments of its forward pass, of two or more different samples.
        **kwargs: keyword arguments of its forward pass.

    Returns:
        {layer: float64 Tensor[units]}, not negative, for the layers whose outgoing weights are
        their own.

    Raises:
        ValueError: when there is no such layer, with the reason for each.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.eye(2))
        ...     _ = net[2].weight.copy_(torch.tensor([[1.0, 0.5], [-2.0, 0.5]]))
        >>> contribution_utility(net, torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        {'0': tensor([6., 1.], dtype=torch.float64)}
    """
    batch, inner = Batch(inputs, kwargs), unwrap(model)
    sums = measure(inner, batch, find_hidden(inner, batch), (MAGNITUDE,))
    wirings = wire(inner, batch.args, batch.kwargs, sums)
    found = {
        name: sums[name].mean_magnitude() * outgoing_magnitude(wiring).cpu()
        for name, wiring in wirings.items()
        if isinstance(wiring, Wiring)
    }
    if not found:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in wirings.items())
        raise ValueError(f"no layer has outgoing weights of its own:{reasons}")
    return found


def outgoing_magnitude(wiring: Wiring, reduce: Reduce = "sum") -> Tensor:
    """Return the sum (or mean) of |w| over the weights that read each unit: float64 Tensor[units].

    Args:
        wiring: of the layer; all its readers count, every head included.
        reduce: `sum` as in the paper's eq. 1, `mean` as in the authors' public code.
    """
    lines = [line_magnitudes(entries).cpu() for entries in wiring.outgoing]
    return from_lines(wiring.outgoing, lines, reduce)


def outgoing_magnitudes(wirings: Mapping[str, Wiring], reduce: Reduce = "sum") -> dict[str, Tensor]:
    """Return `outgoing_magnitude` of several layers, brought to the CPU in one copy.

    Args:
        wirings: of the layers, by name.
        reduce: as there.
    """
    lines = to_host(
        {
            (name, place): line_magnitudes(entries)
            for name, wiring in wirings.items()
            for place, entries in enumerate(wiring.outgoing)
        }
    )
    return {
        name: from_lines(
            wiring.outgoing,
            [lines[name, place] for place in range(len(wiring.outgoing))],
            reduce,
        )
        for name, wiring in wirings.items()
    }


def line_magnitudes(entries: Entries) -> Tensor:
    """Return the sum of |w| of each slice of a weight along the dimension of its entries."""
    weight = whole(entries.tensor.detach())
    others = [dim for dim in range(weight.dim()) if dim != entries.dim]
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return weight.abs().sum(others, dtype=torch.float32 if half else None)


def from_lines(outgoing: Iterable[Entries], lines: Iterable[Tensor], reduce: Reduce) -> Tensor:
    """Gather the slices that belong to each unit: float64 Tensor[units].

    Args:
        outgoing: which slices are whose.
        lines: `line_magnitudes` of each, on the CPU.
        reduce: `sum` or `mean` over all weights of a unit.
    """
    total, weights = torch.zeros((), dtype=torch.float64), 0
    for entries, line in zip(outgoing, lines, strict=True):
        total = total + line.double()[entries.index].sum(1)
        slice_size = entries.tensor.numel() // max(1, entries.tensor.shape[entries.dim])
        weights += entries.index.shape[1] * slice_size
    return total / weights if reduce == "mean" else total
