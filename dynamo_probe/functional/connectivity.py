"""Masks of connections: fan-in, units that are cut off, and how masks change over training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from einops import rearrange
from torch import Tensor

from dynamo_probe.anatomy.wiring import Entries

Masks: TypeAlias = Tensor | Mapping[str, Tensor]
"""A mask, or {name of the weight: mask}. An entry that is not 0 is a connection."""

_RECURRENT = re.compile(r"(^|\.)weight_(ih|hh)(?=_|$)")


@dataclass(frozen=True, slots=True)
class Turnover:
    """What changed between two masks.

    Attributes:
        dropped: connections that are no longer there.
        grown: connections that were not there before.
        active: connections that are there now.
    """

    dropped: int
    grown: int
    active: int

    @property
    def share(self) -> float:
        """Grown / there now; NaN where none is there."""
        return self.grown / self.active if self.active else float("nan")


def fan_in(mask: Tensor, unit_dim: int = 0, *, groups: int = 1) -> Tensor:
    """Count the connections that lead into each unit.

    Args:
        mask: in the weight's shape, such as [units, inputs, height, width].
        unit_dim: the dimension that counts units: 0 for linear layers and convolutions, 1 for
            transposed convolutions.
        groups: of a convolution.

    Returns:
        int64 [units]. A transposed convolution has `groups` times as many as its weight is wide.

    Example:
        >>> fan_in(torch.tensor([[1, 0, 1], [0, 0, 0]]))
        tensor([2, 0])
    """
    return _slices(mask, unit_dim, groups).sum(1, dtype=torch.int64)


def fan_out(mask: Tensor, input_dim: int = 1, *, groups: int = 1) -> Tensor:
    """Count the connections that read each input.

    Args:
        mask: in the weight's shape, such as [units, inputs, height, width].
        input_dim: the dimension that counts inputs: 1 for linear layers and convolutions, 0 for
            transposed convolutions.
        groups: of a convolution.

    Returns:
        int64 [inputs]. A convolution has `groups` times as many as its weight is wide.

    Example:
        >>> fan_out(torch.tensor([[1, 0, 1], [0, 0, 1]]))
        tensor([1, 0, 2])
    """
    return _slices(mask, input_dim, groups).sum(1, dtype=torch.int64)


def units_without_input(mask: Tensor, unit_dim: int = 0, *, groups: int = 1) -> Tensor:
    """Say which units no connection leads into: BoolTensor[units]. For the rest see `fan_in`.

    Such a unit gives a constant: its activation function at its bias.

    Example:
        >>> units_without_input(torch.tensor([[True, False], [False, False]]))
        tensor([False,  True])
    """
    return fan_in(mask, unit_dim, groups=groups) == 0


def inputs_unread(mask: Tensor, input_dim: int = 1, *, groups: int = 1) -> Tensor:
    """Say which inputs no connection reads: BoolTensor[inputs]. For the rest see `fan_out`.

    Example:
        >>> inputs_unread(torch.tensor([[True, False], [True, False]]))
        tensor([False,  True])
    """
    return fan_out(mask, input_dim, groups=groups) == 0


def units_key(weight: str) -> str:
    """Return a name for the units that a weight leads into.

    It is the weight's own, but both weights that lead into the gates of a recurrent layer have one.

    Example:
        >>> units_key("fc.weight"), units_key("rnn.weight_hh_l0")
        ('fc.weight', 'rnn.weight_ih_l0')
    """
    return _RECURRENT.sub(r"\1weight_ih", weight)


def cut_off(leading_in: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Say which units no connection leads into, from all weights that lead into them.

    Args:
        leading_in: {name of the weight: `fan_in` of its mask, [units]}; where of a recurrent layer
            only one of the two weights is among them, the other is taken to be whole.

    Returns:
        {`units_key` of the weight: BoolTensor[units]}.
    """
    members: dict[str, list[Tensor]] = {}
    for name, counts in leading_in.items():
        members.setdefault(units_key(name), []).append(counts == 0)
    empty = {key: torch.stack(parts).all(0) for key, parts in members.items()}
    for key, parts in members.items():
        if _RECURRENT.search(key) and len(parts) < 2:
            empty[key] = torch.zeros_like(empty[key])
    return empty


def holding(mask: Tensor, dim: int) -> Tensor:
    """Say which slices along a dimension hold a connection: BoolTensor[length of it].

    Args:
        mask: in the weight's shape.
        dim: the dimension.
    """
    return (mask != 0).movedim(dim, 0).flatten(1).any(1)


def severed(entries: Sequence[Entries], held: Mapping[tuple[str, int], Tensor]) -> Tensor:
    """Say which units of a layer have no connection among some entries: BoolTensor[units].

    Args:
        entries: those that lead into a unit, or out of it, of every weight (`Wiring`).
        held: {(weight, dimension): `holding` of its mask, on the CPU}; what is not among them is
            whole.
    """
    connected = torch.zeros(len(entries[0].index), dtype=torch.bool)
    for one in entries:
        slices = held.get((one.name, one.dim))
        connected |= True if slices is None else slices[one.index].any(1)
    return ~connected


def overparameterisation(ever: Masks) -> float:
    """Return the in-time over-parameterisation rate R_s: the share of weights ever active.

    It is the size of the union of all masks so far, relative to the dense network (Liu et al. 2021,
    *Do We Actually Need Dense Over-Parameterization?*), and begins at the density.

    Args:
        ever: True where a connection has been there at any time; for several weights they are
            taken together.

    Example:
        >>> masks = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]).bool()
        >>> overparameterisation(masks.any(0))
        0.5
    """
    masks = list(ever.values()) if isinstance(ever, Mapping) else [ever]
    size = sum(mask.numel() for mask in masks)
    return sum(_count(mask) for mask in masks) / size if size else float("nan")


def turnover(before: Masks, after: Masks) -> Turnover:
    """Count what one update of the masks changed.

    A connection that goes and comes back within the update is neither dropped nor grown.

    Args:
        before: the connections that were there.
        after: those that are there now.

    Raises:
        ValueError: when the two are not of the same weights and shapes.

    Example:
        >>> turnover(torch.tensor([True, True, False]), torch.tensor([True, False, True]))
        Turnover(dropped=1, grown=1, active=2)
    """
    dropped = grown = active = 0
    for then, now in _pairs(before, after):
        dropped += _count(then & ~now)
        grown += _count(now & ~then)
        active += _count(now)
    return Turnover(dropped, grown, active)


def survival(grown: Masks, now: Masks) -> float:
    """Return which share of some connections is there now; NaN where there were none.

    Args:
        grown: the connections that were grown, at one update of the masks.
        now: the connections that are there at a later time, such as after the next update.

    Raises:
        ValueError: when the two are not of the same weights and shapes.

    Example:
        >>> survival(torch.tensor([True, True, False]), torch.tensor([True, False, True]))
        0.5
    """
    pairs = list(_pairs(grown, now))
    born = sum(_count(new) for new, _ in pairs)
    return sum(_count(new & there) for new, there in pairs) / born if born else float("nan")


def bitmask_bytes(size: int, connections: int, item: int) -> int:
    """Return what a weight takes as one bit an entry and the values of its connections.

    Args:
        size: entries.
        connections: how many of them are there.
        item: bytes of one value.
    """
    return -(-size // 8) + connections * item


def csr_bytes(rows: int, columns: int, connections: int, item: int) -> int:
    """Return what a weight takes as a compressed sparse row matrix with int32 indices.

    The indices are int64 where int32 cannot count the connections.

    Args:
        rows: the weight's first dimension.
        columns: the product of the others.
        connections: how many entries are there.
        item: bytes of one value.
    """
    index = 4 if max(connections, columns) < 2**31 else 8
    return connections * (item + index) + (rows + 1) * index


def _slices(mask: Tensor, dim: int, groups: int) -> Tensor:
    """Return a mask as [slices, entries]; groups lie along the first dimension."""
    there = mask if mask.dtype == torch.bool else mask != 0
    if groups == 1 or dim == 0:
        return there.movedim(dim, 0).flatten(1)
    by_group = there.movedim(dim, 1).flatten(2) if there.dim() > 2 else there.unsqueeze(2)
    return rearrange(by_group, "(group other) own k -> (group own) (other k)", group=groups)


def _pairs(first: Masks, second: Masks) -> Iterator[tuple[Tensor, Tensor]]:
    one = first if isinstance(first, Mapping) else {"": first}
    two = second if isinstance(second, Mapping) else {"": second}
    if one.keys() != two.keys():
        raise ValueError(f"the masks are of {sorted(one)} and of {sorted(two)}; give the same ones")
    for name, mask in one.items():
        if mask.shape != two[name].shape:
            raise ValueError(
                f"the masks{name and f' of {name}'} have shapes {list(mask.shape)} and "
                f"{list(two[name].shape)}; give two of the same weight"
            )
        yield mask != 0, two[name] != 0


def _count(mask: Tensor) -> int:
    return int(torch.count_nonzero(mask))
