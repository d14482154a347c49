"""Names inside a module that the loop calls by itself, and the same names seen from the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from dynamo_probe.anatomy.layer import Layer
from dynamo_probe.anatomy.wiring import Wiring


def joined(prefix: str, name: str) -> str:
    """Return a name inside a module as it reads from outside."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def inside(prefix: str, name: str) -> str:
    """Return a name as it reads inside the module that it begins with."""
    return name[len(prefix) :].lstrip(".") if prefix else name


def bound(wiring: Wiring | str, tensors: Mapping[str, Tensor]) -> Wiring | str:
    """Return the wiring with the tensors of these names."""
    if isinstance(wiring, str):
        return wiring
    changes: dict[str, Any] = {}
    for field in wiring.__dataclass_fields__:
        value = getattr(wiring, field)
        if isinstance(value, tuple):
            changes[field] = tuple(replace(e, tensor=tensors[e.name]) for e in value)
    return replace(wiring, **changes)


def wiring_in(prefix: str, wiring: Wiring | str) -> Wiring | str:
    """Return the wiring with names as seen from outside the module."""
    if isinstance(wiring, str) or not prefix:
        return wiring
    changes: dict[str, Any] = {"layer": joined(prefix, wiring.layer)}
    for field in wiring.__dataclass_fields__:
        value = getattr(wiring, field)
        if isinstance(value, tuple):
            changes[field] = tuple(replace(e, name=joined(prefix, e.name)) for e in value)
    return replace(wiring, **changes)


def layer_in(prefix: str, layer: Layer) -> Layer:
    """Return the layer with names as seen from outside the module."""
    return replace(
        layer,
        name=joined(prefix, layer.name),
        tap=replace(layer.tap, module=joined(prefix, layer.tap.module)),
        partner=layer.partner and joined(prefix, layer.partner),
    )
