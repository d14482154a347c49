"""Which axes of a layer's output are units, replicas and samples, where a user says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from dynamo_probe.anatomy.layer import units_of


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of an output, counted from the end (negative).

    Attributes:
        unit: the axis of the units.
        replica: the axis of replicas: independent networks that are stacked in one module.
    """

    unit: int
    replica: int | None = None


def parse_axes(text: str) -> Axes:
    """Read axes in einops' manner: names with spaces between, the first axis first.

    Args:
        text: `unit` once, `replica` at most once; any other names, such as `batch` or `time`, are
            samples.

    Raises:
        ValueError: when there is not one `unit`, or a name comes twice.

    Example:
        >>> parse_axes("replica batch unit")
        Axes(unit=-1, replica=-3)
    """
    names = text.split()
    if names.count("unit") != 1 or len(set(names)) < len(names):
        raise ValueError(
            f"the axes are {text!r}; name each axis once, and one of them unit, such as "
            "'replica batch unit'"
        )
    replica = names.index("replica") - len(names) if "replica" in names else None
    return Axes(names.index("unit") - len(names), replica)


def declared_axes(model: nn.Module, given: Mapping[str, str] | None) -> dict[str, Axes]:
    """Return the axes of each module that a pattern matches; the first pattern counts.

    Args:
        model: whose modules they are.
        given: `{shell pattern of module names: axes}`.

    Raises:
        ValueError: when a pattern matches no module, axes cannot be read, or they contradict what
            is known of a layer of torch.
    """
    if not given:
        return {}
    parsed = {pattern: parse_axes(text) for pattern, text in given.items()}
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, Axes] = {}
    for pattern, axes in parsed.items():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"axes for {pattern!r}: no module is called so; there are {names}")
        for name in matching:
            found.setdefault(name, axes)
    for name, axes in found.items():
        own = units_of(model.get_submodule(name))
        if own is not None and own[1] != axes.unit:
            raise ValueError(
                f"axes for {name!r}: the units of a {type(model.get_submodule(name)).__name__} lie "
                f"on axis {own[1]} of its output, not on {axes.unit}"
            )
    return found
