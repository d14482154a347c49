"""Names inside a module that the loop calls by itself, and the same names seen from the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from dynamo_probe.anatomy.layer import Layer
from dynamo_probe.anatomy.wiring import Entries, Wiring


def joined(prefix: str, name: str) -> str:
    """Return a name inside a module as it reads from outside."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def inside(prefix: str, name: str) -> str:
    """Return a name as it reads inside the module that it begins with."""
    return name[len(prefix) :].lstrip(".") if prefix else name


def bound(wiring: Wiring | str, tensors: Mapping[str, Tensor]) -> Wiring | str:
    """Return the wiring with the tensors of these names."""
    return _changed(wiring, lambda entries: replace(entries, tensor=tensors[entries.name]))


def wiring_in(prefix: str, wiring: Wiring | str) -> Wiring | str:
    """Return the wiring with names as seen from outside the module."""
    found = _changed(wiring, lambda entries: replace(entries, name=joined(prefix, entries.name)))
    return found if isinstance(found, str) else replace(found, layer=joined(prefix, found.layer))


def _changed(wiring: Wiring | str, change: Callable[[Entries], Entries]) -> Wiring | str:
    """Return the wiring with every group of entries changed; a reason stays as it is."""
    if isinstance(wiring, str):
        return wiring
    groups = {f.name: getattr(wiring, f.name) for f in fields(wiring)}
    changes: dict[str, Any] = {
        name: tuple(change(entries) for entries in group)
        for name, group in groups.items()
        if isinstance(group, tuple)
    }
    return replace(wiring, **changes)


def layer_in(prefix: str, layer: Layer) -> Layer:
    """Return the layer with names as seen from outside the module."""
    return replace(
        layer,
        name=joined(prefix, layer.name),
        tap=replace(layer.tap, module=joined(prefix, layer.tap.module)),
        partner=layer.partner and joined(prefix, layer.partner),
    )
