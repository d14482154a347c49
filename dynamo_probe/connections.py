"""Which connections of a network are there: what sparse training publishes and others read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dynamo_probe.anatomy.weights import Weight


@dataclass(frozen=True, slots=True)
class Change:
    """One update of the masks.

    Attributes:
        step: the optimizer update at which it was made.
        before: {weight: BoolTensor of its whole shape}, the connections that were there.
        after: {weight: BoolTensor}, those that are there now.
    """

    step: int
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


@dataclass(slots=True)
class Connections:
    """The masks of one sparse treatment.

    Attributes:
        owner: the treatment's name.
        weights: {name: weight} of all that is masked; empty before the masks are made.
        left: {name: why it stays whole}, for every other parameter.
        mask_of: returns the connections of a weight by name: a BoolTensor of its whole shape, on
            the weight's device. It is the treatment's own: read it, do not write.
        target: the density that the schedule asks for now; None before the masks are made.
        listeners: called at every update of the masks.
    """

    owner: str
    weights: Mapping[str, Weight] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    mask_of: Callable[[str], Tensor] = lambda name: _no_mask(name)
    target: float | None = None
    listeners: list[Callable[[Change], None]] = field(default_factory=list)


def _no_mask(name: str) -> Tensor:
    raise KeyError(f"there is no mask of {name!r} yet")
