"""The settings of sparse training, checked: what, how much, when and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from dynamo_probe.functional.densities import check_density
from dynamo_probe.schedule import Alternating, Constant, Schedule, Value, as_schedule
from dynamo_probe.treatments.sparse.distribution import Distribution, check_distribution
from dynamo_probe.treatments.sparse.granularity import Granularity, as_granularity
from dynamo_probe.treatments.sparse.plan import GrowScope
from dynamo_probe.treatments.sparse.scores import Score, as_score

Scope = Literal["layer", "global"]
MaskGradients = Literal["step", "backward"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What `SparseTraining` was told; its arguments say what each means."""

    density: Value
    distribution: Distribution
    initial: Score | Literal["zeros", "grasp"]
    initial_scope: Scope
    prune: Score
    scope: Scope
    grow: Score | None
    grow_scope: GrowScope
    turnover: Value
    accumulate: int
    granularity: Granularity
    reinit_when_same: bool
    floor: float
    mask_grads: MaskGradients
    loss: Callable[[], Tensor] | None

    @property
    def everywhere(self) -> bool:
        """Whether pruning looks at all layers at once."""
        return self.scope == "global"

    @property
    def scores(self) -> tuple[Score, ...]:
        """The prune score and the grow score."""
        return (self.prune,) if self.grow is None else (self.prune, self.grow)

    def check(self) -> None:
        """Refuse settings that do not go together.

        Raises:
            ValueError: the message says what to change.
        """
        check_distribution(self.distribution)
        for update in _turning_points(self.density):
            check_density(self.density.at(update), f"the density at update {update}")
            share = self.turnover.at(update)
            if not 0 <= share <= 1:
                raise ValueError(f"the turnover is {share}; give a share from 0 to 1")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor is {self.floor}; give the least density of a layer, below 1")
        _check_choice("scope", self.scope, Scope)
        _check_choice("initial_scope", self.initial_scope, Scope)
        _check_choice("grow_scope", self.grow_scope, GrowScope)
        _check_choice("mask_grads", self.mask_grads, MaskGradients)
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}; give 1 or more updates")
        scopes = (self.scope, self.initial_scope, self.grow_scope)
        if not self.granularity.everywhere and scopes != ("layer",) * 3:
            raise ValueError(
                f"{self.granularity.name} is chosen layer by layer; give scope='layer', "
                "initial_scope='layer' and grow_scope='layer'"
            )
        if self.scope == "layer" and self.grow_scope != "layer":
            raise ValueError(
                f"grow_scope='{self.grow_scope}' moves connections between layers, and "
                "scope='layer' puts them back; give scope='global'"
            )
        if self.initial == "zeros" and self.granularity.name != "unstructured":
            raise ValueError(
                f"zeros that are there need not be {self.granularity.name}; give "
                "granularity='unstructured'"
            )
        self._check_pattern()
        if not isinstance(self.distribution, str) and (
            self.everywhere or not isinstance(self.density, Constant)
        ):
            raise ValueError(
                "densities given by layer hold from the beginning to the end: give scope='layer' "
                "and no schedule of the density"
            )
        if self.mask_grads == "backward" and any(score.needs_momentum for score in self.scores):
            raise ValueError(
                "the running mean of gradients needs dense ones at every update; give "
                "mask_grads='step', or grow by 'gradient'"
            )
        if self.initial == "grasp" and self.loss is None:
            raise ValueError(
                "GraSP needs the loss of a batch: give loss=, a function without arguments, such "
                "as lambda: cross_entropy(model(x), y)"
            )

    def _check_pattern(self) -> None:
        """Refuse a density that N of M is not."""
        size, keep = (getattr(self.granularity, name, None) for name in ("size", "keep"))
        final = self.density.at(self.last_update() or 0)
        if size and keep and isinstance(self.distribution, str) and final != keep / size:
            raise ValueError(
                f"the density comes to {final:g}, and {keep}:{size} is {keep / size:g}; give that"
            )

    def last_update(self) -> int | None:
        """Return the update at which the density has come to its end; None where it is constant."""
        return getattr(self.density, "end", None)


def make_rules(
    density: float | Value,
    *,
    distribution: Distribution,
    initial: str | Score,
    initial_scope: Scope,
    prune: str | Score,
    scope: Scope | None,
    grow: str | Score | None,
    grow_scope: GrowScope,
    turnover: float | Value,
    accumulate: int,
    granularity: str | Granularity,
    reinit_when_same: bool,
    floor: float,
    mask_grads: MaskGradients,
    loss: Callable[[], Tensor] | None,
) -> Rules:
    """Return the settings, with names resolved and checked.

    Raises:
        TypeError: when something is of the wrong kind.
        ValueError: when something is out of range.
    """
    pattern = as_granularity(granularity)
    if scope is None:
        free = pattern.everywhere and isinstance(distribution, str)
        scope = "global" if free else "layer"
    if initial in ("zeros", "grasp"):
        first: Score | Literal["zeros", "grasp"] = "zeros" if initial == "zeros" else "grasp"
    else:
        first = as_score(initial, "initial")
    rules = Rules(
        _as_value(density, "density"),
        distribution,
        first,
        initial_scope,
        as_score(prune, "prune"),
        scope,
        None if grow is None else as_score(grow, "grow"),
        grow_scope,
        _as_value(turnover, "turnover"),
        accumulate,
        pattern,
        reinit_when_same,
        floor,
        mask_grads,
        loss,
    )
    rules.check()
    return rules


def mask_times(every: int | Schedule, rules: Rules) -> tuple[Schedule, list[int]]:
    """Return the schedule, and updates at which masks have to change in any case."""
    changes = rules.density.changes() if isinstance(rules.density, Alternating) else []
    last = rules.last_update()
    return as_schedule(every), [*changes, *([] if last is None else [last])]


def _as_value(given: float | Value, what: str) -> Value:
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return Constant(float(given))
    if isinstance(given, Value):
        return given
    raise TypeError(f"{what} is {given!r}; give a number, or a value over updates such as Cubic")


def _turning_points(value: Value) -> list[int]:
    start, end = getattr(value, "start", 0), getattr(value, "end", 0)
    return [0, start, (start + end) // 2, end]


def _check_choice(what: str, value: str, allowed: object) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{what} is {value!r}; give one of {', '.join(get_args(allowed))}")
