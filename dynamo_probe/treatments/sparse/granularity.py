"""In which shapes connections come and go: single ones, N of M, a fixed fan-in, whole units."""

from __future__ import annotations

import math
import re
from typing import Protocol

import torch
from torch import Tensor

from dynamo_probe.anatomy.weights import Weight
from dynamo_probe.functional.selection import refuse_nan, select_exact

_SHARED = "its units come in groups that share their place in the weight (a transposed convolution)"


class Granularity(Protocol):
    """Selects connections so that a pattern holds. Scores and masks have the weight's shape.

    Attributes:
        name: the pattern in words.
        everywhere: a selection over all layers at once is possible.
    """

    name: str
    everywhere: bool

    def unfit(self, where: Weight) -> str | None:
        """Return why a weight cannot have the pattern; None where it can."""
        ...

    def count(self, where: Weight, wanted: int) -> int:
        """Return the possible number of connections that is nearest to the one wanted."""
        ...

    def best(self, where: Weight, scores: Tensor, count: int, among: Tensor | None) -> Tensor:
        """Return a mask of `count` connections, those with the best scores among some."""
        ...

    def drop(self, where: Weight, scores: Tensor, active: Tensor, share: float) -> Tensor:
        """Return the active connections without a share of the worst ones."""
        ...

    def grow(self, where: Weight, scores: Tensor, active: Tensor, count: int) -> Tensor:
        """Return the active connections and the best of the others, `count` in all."""
        ...


class Unstructured:
    """Single connections."""

    name = "unstructured"
    everywhere = True

    def unfit(self, where: Weight) -> str | None:
        """Return None: every weight can."""
        return None

    def count(self, where: Weight, wanted: int) -> int:
        """Return the number itself."""
        return wanted

    def best(self, where: Weight, scores: Tensor, count: int, among: Tensor | None) -> Tensor:
        """Return the best."""
        return select_exact(scores, count, among=among)

    def drop(self, where: Weight, scores: Tensor, active: Tensor, share: float) -> Tensor:
        """Return the active connections without ceil(share x their number) of the worst."""
        there = int(torch.count_nonzero(active))
        return select_exact(scores, there - dropped(there, share), among=active)

    def grow(self, where: Weight, scores: Tensor, active: Tensor, count: int) -> Tensor:
        """Return the active connections and the best of the others."""
        missing = count - int(torch.count_nonzero(active))
        return active | select_exact(scores, missing, among=~active)


class Grouped:
    """The same number of connections in every group: N of M neighbouring inputs, or a fan-in.

    Args:
        size: how many neighbouring inputs a group has; None takes all inputs of a unit.
        keep: how many of them stay in the end, where that is fixed; None leaves it to the density.
    """

    everywhere = False

    def __init__(self, size: int | None, keep: int | None = None) -> None:
        """Set the groups."""
        self.size, self.keep = size, keep
        self.name = "constant fan-in" if size is None else f"{keep or 'N'}:{size}"

    def unfit(self, where: Weight) -> str | None:
        """Refuse inputs that do not come in whole groups."""
        if where.groups > 1:
            return _SHARED
        inputs = where.shape[where.input_dim]
        if self.size is not None and inputs % self.size:
            return f"its {inputs} inputs are not whole groups of {self.size}"
        return None

    def count(self, where: Weight, wanted: int) -> int:
        """Return a whole number for every group, at least one."""
        groups = self._number(where)
        each = min(max(1, round(wanted / groups)), self._length(where))
        return groups * (each if self.keep is None else max(each, self.keep))

    def best(self, where: Weight, scores: Tensor, count: int, among: Tensor | None) -> Tensor:
        """Return the best of each group; of equal ones, those that come first.

        Raises:
            ValueError: when the count is not the same for every group, or a group has fewer
                candidates.
        """
        if among is not None:
            fewest = int(self._groups(where, among).sum(1).min())
            if fewest * self._number(where) < count:
                raise ValueError(self._broken(where, f"has only {fewest} to choose from"))
            scores = finite(scores).masked_fill(~among, -math.inf)
        return self._first(where, scores, count)

    def drop(self, where: Weight, scores: Tensor, active: Tensor, share: float) -> Tensor:
        """Return the active connections without the worst of the whole weight."""
        return Unstructured().drop(where, scores, active, share)

    def grow(self, where: Weight, scores: Tensor, active: Tensor, count: int) -> Tensor:
        """Fill every group up with the best of its others.

        Raises:
            ValueError: when the count is not the same for every group, or a group has more.
        """
        most = int(self._groups(where, active).sum(1).max())
        if most * self._number(where) > count:
            raise ValueError(self._broken(where, f"has {most} already"))
        return self._first(where, finite(scores).masked_fill(active, math.inf), count)

    def _first(self, where: Weight, scores: Tensor, count: int) -> Tensor:
        groups = self._groups(where, scores)
        refuse_nan(groups)
        if count % len(groups):
            raise ValueError(f"{count} connections are not the same for {len(groups)} groups")
        order = groups.argsort(dim=1, descending=True, stable=True)[:, : count // len(groups)]
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True)
        return self._back(where, chosen)

    def _broken(self, where: Weight, reason: str) -> str:
        return f"{where.name} does not have the pattern {self.name} now: a group {reason}"

    def _number(self, where: Weight) -> int:
        return math.prod(where.shape) // self._length(where)

    def _length(self, where: Weight) -> int:
        return self.size or math.prod(where.shape) // where.units

    def _groups(self, where: Weight, tensor: Tensor) -> Tensor:
        """Return [groups, length]; inputs are neighbours, whatever the kernel."""
        return self._ordered(where, tensor).reshape(-1, self._length(where))

    def _ordered(self, where: Weight, tensor: Tensor) -> Tensor:
        return tensor.movedim((where.unit_dim, where.input_dim), (0, -1))

    def _back(self, where: Weight, groups: Tensor) -> Tensor:
        shape = self._ordered(where, torch.empty(where.shape, device="meta")).shape
        return (
            groups.reshape(shape).movedim((0, -1), (where.unit_dim, where.input_dim)).contiguous()
        )


class Channels:
    """Whole units: all connections that lead into one come and go together.

    A unit's score is the mean over its connections.
    """

    name = "channels"
    everywhere = False

    def unfit(self, where: Weight) -> str | None:
        """Refuse a single unit."""
        if where.groups > 1:
            return _SHARED
        return "it leads into a single unit" if where.units < 2 else None

    def count(self, where: Weight, wanted: int) -> int:
        """Return whole units, at least one."""
        each = math.prod(where.shape) // where.units
        return each * min(max(1, round(wanted / each)), where.units)

    def best(self, where: Weight, scores: Tensor, count: int, among: Tensor | None) -> Tensor:
        """Return the best units."""
        units = count * where.units // math.prod(where.shape)
        candidates = None if among is None else self._units(where, among)
        return self._whole(where, select_exact(self._mean(where, scores), units, among=candidates))

    def drop(self, where: Weight, scores: Tensor, active: Tensor, share: float) -> Tensor:
        """Return the active units without a share of the worst."""
        units = self._units(where, active)
        there = int(torch.count_nonzero(units))
        stay = select_exact(self._mean(where, scores), there - dropped(there, share), among=units)
        return self._whole(where, stay)

    def grow(self, where: Weight, scores: Tensor, active: Tensor, count: int) -> Tensor:
        """Return the active units and the best of the others."""
        units = self._units(where, active)
        missing = count * where.units // math.prod(where.shape) - int(torch.count_nonzero(units))
        grown = units | select_exact(self._mean(where, scores), missing, among=~units)
        return self._whole(where, grown)

    def _mean(self, where: Weight, scores: Tensor) -> Tensor:
        return scores.movedim(where.unit_dim, 0).flatten(1).mean(1)

    def _units(self, where: Weight, mask: Tensor) -> Tensor:
        flags = mask.movedim(where.unit_dim, 0).flatten(1)
        units = flags.any(1)
        if not torch.equal(units, flags.all(1)):
            raise ValueError(
                f"{where.name} does not have the pattern {self.name} now: a unit has only a part "
                "of its connections"
            )
        return units

    def _whole(self, where: Weight, units: Tensor) -> Tensor:
        shape = [1] * len(where.shape)
        shape[where.unit_dim] = -1
        return units.view(shape).expand(where.shape).contiguous()


def finite(scores: Tensor) -> Tensor:
    """Return scores with the largest and smallest numbers in place of infinities."""
    return scores.nan_to_num(nan=math.nan)


def dropped(there: int, share: float) -> int:
    """Return how many of so many go: the share, rounded up as in GraNet's reference."""
    return min(there, math.ceil(share * there - 1e-9))


def as_granularity(given: str | Granularity) -> Granularity:
    """Return the granularity of a name: `unstructured`, `2:4` (or any `N:M`), `fan-in`, `channels`.

    Raises:
        TypeError: when it is neither a name nor a granularity.
        ValueError: when there is none of that name.
    """
    if not isinstance(given, str):
        if isinstance(given, type) or not hasattr(given, "unfit"):
            raise TypeError(f"granularity is {given!r}; give a name such as '2:4', or an object")
        return given
    if given == "unstructured":
        return Unstructured()
    if given == "fan-in":
        return Grouped(None)
    if given == "channels":
        return Channels()
    match = re.fullmatch(r"(\d+):(\d+)", given)
    if match and 0 < int(match[1]) < int(match[2]):
        return Grouped(int(match[2]), int(match[1]))
    raise ValueError(
        f"granularity is {given!r}; give 'unstructured', 'N:M' such as '2:4', 'fan-in' or "
        "'channels'"
    )
