"""Which weights a sparse treatment masks, and why others stay whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dynamo_probe.anatomy.weights import Weight, Weights, find_weights
from dynamo_probe.functional.densities import check_total, least_counts
from dynamo_probe.site import Site
from dynamo_probe.treatments.sparse.granularity import Granularity
from dynamo_probe.treatments.sparse.rules import Rules


@dataclass(frozen=True, slots=True)
class Filters:
    """What the user chose; see `SparseTraining`."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    types: tuple[type[nn.Module], ...] | None
    granularity: Granularity


def as_patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return patterns of names as a tuple, also a single one."""
    return (given,) if isinstance(given, str) else tuple(given)


def check_floors(targets: Weights, rules: Rules) -> None:
    """Refuse a density that leaves less than the layers' floors.

    Raises:
        ValueError: the message says what to change.
    """
    if not isinstance(rules.distribution, str) or rules.initial == "zeros":
        return
    shapes = {name: weight.shape for name, weight in targets.found.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    lowest = min(rules.density.at(update) for update in (0, rules.last_update() or 0))
    check_total(round(lowest * sum(sizes.values())), least_counts(shapes, rules.floor), sizes)


def find_targets(site: Site, filters: Filters) -> Weights:
    """Find the weights that may be masked, output layers among them.

    Args:
        site: the run.
        filters: what the user chose.

    Raises:
        ValueError: when there is none, or a weight that was named cannot be masked.
    """
    found = find_weights(
        site.model,
        site.optimizers,
        include=filters.include,
        exclude=filters.exclude,
        types=filters.types,
    )
    left, kept = dict(found.left), dict(found.found)
    for name, weight in found.found.items():
        reason = filters.granularity.unfit(weight)
        if reason is not None:
            left[name] = reason
            del kept[name]
    if filters.include is not None:
        _refuse_named(found, filters.include)
    return _some(Weights(kept, left))


def without_outputs(site: Site, filters: Filters, possible: Weights) -> Weights:
    """Leave out output layers, as far as they are known by now, unless `include` was given.

    The weights are those of `possible`: during a forward pass of a sharded model its modules hold
    gathered ones, which no optimizer knows.

    Raises:
        ValueError: when nothing is left.
    """
    if filters.include is not None:
        return possible
    # Where no forward pass could be looked into, the last layer with connections has to do.
    outputs = site.last or {list(possible.found.values())[-1].layer}
    kept, left = dict(possible.found), dict(possible.left)
    for name, weight in possible.found.items():
        layers = {weight.layer, *(alias.rpartition(".")[0] for alias in weight.aliases)}
        if not layers.isdisjoint(outputs):
            left[name] = "an output layer: it stays whole unless include= names it"
            del kept[name]
    return _some(Weights(kept, left))


def _some(weights: Weights) -> Weights:
    if not weights.found:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(weights.left.items())[:6])
        raise ValueError(f"there is no weight to prune ({reasons}); see include= and exclude=")
    return weights


def _refuse_named(found: Weights, include: Sequence[str]) -> None:
    """Refuse a weight that was named in full and cannot be masked."""
    for pattern in include:
        for name in (pattern, f"{pattern}.weight"):
            if name in found.left:
                raise ValueError(f"{name} cannot be pruned: {found.left[name]}")


def check_fit(weights: Mapping[str, Weight], masks: Mapping[str, object]) -> None:
    """Refuse saved masks that do not belong to the model.

    Args:
        weights: {name: weight} of all that could be masked.
        masks: what `Masks.state_dict` gave.

    Raises:
        ValueError: when a weight is missing, or of another shape.
    """
    for name, saved in masks.items():
        if name not in weights:
            raise ValueError(
                f"the state has a mask of {name}, which is not masked here; give the treatment "
                "the same include=, exclude= and types="
            )
        shape = saved.get("shape") if isinstance(saved, dict) else None
        if shape != list(weights[name].shape):
            raise ValueError(
                f"the mask of {name} has shape {shape}, the weight {list(weights[name].shape)}: it "
                "was saved with another model"
            )
