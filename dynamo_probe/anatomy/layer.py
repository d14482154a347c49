"""What a hidden layer is: which modules produce units, how many, and on which axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dynamo_probe.anatomy.taps import Tap

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True, slots=True)
class Layer:
    """A hidden layer whose units can be read exactly.

    Attributes:
        name: qualified name of the module that produces the units.
        units: how many.
        tap: where they are read.
        activation: the activation function, `silu*product` for a gated unit.
        partner: for gated units, the layer that produces the other factor.
        bounds: limits of the activation function; infinite where it is not bounded.
        value: the number of the unit's value in the recorded forward pass.
        replicas: how many independent networks are stacked in it; `units` are those of one.
        replica_axis: the dimension of the replicas, counted from the end (negative).
    """

    name: str
    units: int
    tap: Tap
    activation: str
    partner: str | None
    bounds: tuple[float, float]
    value: int
    replicas: int = 1
    replica_axis: int | None = None


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The hidden layers of a model and, for every other parametric layer, why it is left out.

    Attributes:
        layers: {name: hidden layer that can be read}.
        skipped: {name: why another one cannot}.
        last: names of the layers whose units nothing that is learned reads in this pass.
    """

    layers: Mapping[str, Layer]
    skipped: Mapping[str, str]
    last: frozenset[str] = frozenset()


def units_of(module: nn.Module) -> tuple[int, int] | None:
    """Return a producing layer's number of units and their (negative) axis; None for others."""
    if isinstance(module, nn.Linear):
        return module.out_features, -1
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels, -(len(module.kernel_size) + 1)
    weight, width = getattr(module, "weight", None), getattr(module, "nf", None)
    if type(module).__name__ == "Conv1D" and isinstance(width, int) and isinstance(weight, Tensor):
        return width, -1  # the transposed linear layer of GPT-2 in transformers
    return None
