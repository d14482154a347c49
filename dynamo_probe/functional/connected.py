"""What follows from masks and wiring: counted on the device, and one copy to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.shards import whole
from dynamo_probe.anatomy.weights import Weight
from dynamo_probe.anatomy.wiring import Wiring
from dynamo_probe.functional.connectivity import cut_off, fan_in, holding, severed
from dynamo_probe.observation.parameters import to_host

Masked: TypeAlias = Mapping[str, tuple[Weight, Tensor]]
"""{name: the weight, and its connections: a BoolTensor of its whole shape}."""


@dataclass(frozen=True, slots=True)
class Connected:
    """How units are connected. All tensors are on the CPU.

    Attributes:
        fan_in: {weight: int64 [units]}, connections that lead into each unit.
        slices: {weight: int64 [slices along the first dimension]}, connections in each.
        outside: {weight: entries that are not 0 where there is no connection}.
        without_input: {`units_key` of a weight: BoolTensor[units]}, units that nothing leads into.
        hidden_without_input: {wired layer: BoolTensor[units]}, the same; of gated units neither
            factor has a connection.
        hidden_without_output: {wired layer: BoolTensor[units]}, units that nothing reads.
    """

    fan_in: Mapping[str, Tensor]
    slices: Mapping[str, Tensor]
    outside: Mapping[str, int]
    without_input: Mapping[str, Tensor]
    hidden_without_input: Mapping[str, Tensor]
    hidden_without_output: Mapping[str, Tensor]

    def connections(self, name: str) -> int:
        """Return how many connections a weight has."""
        return int(self.fan_in[name].sum())

    @property
    def total(self) -> int:
        """How many connections there are."""
        return sum(map(self.connections, self.fan_in))


@torch.no_grad()
def connect(
    model: nn.Module, masked: Masked, wirings: Mapping[str, Wiring | str], *, outside: bool
) -> Connected:
    """Measure how the units of a model are connected.

    Args:
        model: the model that the weights are named in.
        masked: weights and masks.
        wirings: {layer: its wiring, or why there is none}.
        outside: whether to look for entries that are not 0 where there is no connection.
    """
    wired = {name: wiring for name, wiring in wirings.items() if isinstance(wiring, Wiring)}
    entries = [one for w in wired.values() for one in (*w.incoming, *w.outgoing)]
    figures: dict[tuple[str, str, int], Tensor] = {}
    for name, (weight, mask) in masked.items():
        groups = groups_of(model, weight)
        figures["fan_in", name, 0] = fan_in(mask, weight.unit_dim, groups=groups)
        if weight.unit_dim:
            figures["slices", name, 0] = mask.flatten(1).sum(1)
        for dim in {one.dim for one in entries if one.name == name}:
            figures["held", name, dim] = holding(mask, dim)
        if outside:
            stray = (whole(weight.parameter.detach()) != 0) & ~mask
            figures["outside", name, 0] = torch.count_nonzero(stray)
    host = to_host(figures)
    leading_in = {name: host["fan_in", name, 0].long() for name in masked}
    held = {(name, dim): flags > 0 for (kind, name, dim), flags in host.items() if kind == "held"}
    by_slice = {n: host.get(("slices", n, 0), counts).long() for n, counts in leading_in.items()}
    return Connected(
        leading_in,
        by_slice,
        {name: int(host["outside", name, 0]) for name in masked} if outside else {},
        cut_off(leading_in),
        {name: severed(wiring.incoming, held) for name, wiring in wired.items()},
        {name: severed(wiring.outgoing, held) for name, wiring in wired.items()},
    )


def groups_of(model: nn.Module, weight: Weight) -> int:
    """Return the number of groups of the convolution that a weight belongs to; else 1."""
    groups = getattr(model.get_submodule(weight.layer), "groups", 1)
    return groups if isinstance(groups, int) else 1
