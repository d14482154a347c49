"""Which values a recycling sets: fresh weights in, identity norms, zero weights out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Generator, Tensor, nn

from dynamo_probe.anatomy.wiring import Entries, Wiring
from dynamo_probe.functional.initial import (
    Initial,
    default_initial_of,
    draw,
    xavier_uniform_initial,
)

Init = Literal["own", "xavier"] | Mapping[str, Initial]


@dataclass(frozen=True, slots=True)
class Change:
    """New values for the slices of a tensor that belong to some units."""

    layer: str
    entries: Entries
    recycled: Tensor
    live: Tensor
    values: Tensor | float

    @classmethod
    def of(cls, layer: str, entries: Entries, mask: Tensor, values: float) -> Change:
        """Set the slices of the units in the mask to one number."""
        return cls(layer, entries, entries.index[mask], entries.index[~mask], values)

    @property
    def target(self) -> tuple[Tensor, int, Tensor]:
        """Return the tensor, the dimension and the positions along it."""
        return self.entries.tensor, self.entries.dim, self.recycled.flatten()

    @property
    def size(self) -> int:
        """Return how many values are set."""
        shape = self.entries.tensor.shape
        return self.recycled.numel() * shape.numel() // shape[self.entries.dim]


def fresh(
    layer: str,
    wiring: Wiring,
    mask: Tensor,
    initials: Init,
    generator_for: Callable[[str], Generator | None],
) -> Iterator[Change]:
    """Give initial values to what leads into the units, and to their norm entries.

    Raises:
        ValueError: when a weight has no initial distribution.
    """
    generator = generator_for(layer)
    for entries in wiring.incoming:
        change = Change.of(layer, entries, mask, 0.0)
        shape = list(entries.tensor.shape)
        shape[entries.dim] = change.recycled.numel()
        initial = _initial(entries, initials)
        values = draw(initial, shape, generator, entries.tensor.dtype, entries.tensor.device)
        yield replace(change, values=values)
    for parts, value in (
        (wiring.bias, 0.0),
        (wiring.norm_scale, 1.0),
        (wiring.norm_shift, 0.0),
        (wiring.running_mean, 0.0),
        (wiring.running_var, 1.0),
    ):
        for entries in parts:
            yield Change.of(layer, entries, mask, value)


def closed(layer: str, wiring: Wiring, mask: Tensor) -> Iterator[Change]:
    """Set what leads out of a unit to zero."""
    for entries in wiring.outgoing:
        yield Change.of(layer, entries, mask, 0.0)


def _initial(entries: Entries, initials: Init) -> Initial:
    if initials == "own":
        return default_initial_of(entries.tensor)
    if initials == "xavier":
        return xavier_uniform_initial(entries.tensor)
    if isinstance(initials, str):
        raise ValueError(f"init is {initials!r}; give own, xavier or a mapping of Initial")
    layer = entries.name.rpartition(".")[0]
    for name in (entries.name, layer):
        if name in initials:
            return initials[name]
    raise ValueError(
        f"no initial distribution was given for `{entries.name}`; add it under this name, or under "
        f"`{layer}`"
    )


def counterparts(mirror: nn.Module, changes: Iterable[Change]) -> list[Tensor]:
    """Return the mirror's tensor for each change.

    Raises:
        ValueError: when the mirror has no such tensor, or one of another shape.
    """
    own = {**dict(mirror.named_buffers()), **dict(mirror.named_parameters())}
    tensors: list[Tensor] = []
    for change in changes:
        name, shape = change.entries.name, change.entries.tensor.shape
        if name not in own or own[name].shape != shape:
            there = f"is {tuple(own[name].shape)}" if name in own else "does not exist"
            raise ValueError(
                f"`{name}` {there} in the mirror ({type(mirror).__name__}) and is {tuple(shape)} "
                "in the model; give networks of the same architecture, such as target networks"
            )
        tensors.append(own[name])
    return tensors
