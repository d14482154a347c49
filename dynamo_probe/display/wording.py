"""The words that a notebook and a terminal share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamo_probe.display.contents import HistoryContents, PerUnit
    from dynamo_probe.doctor import InstrumentReport


def last(one: InstrumentReport) -> str:
    """Say when an instrument last fired."""
    return "never" if one.last is None else f"{one.last:,}"


def due(one: InstrumentReport, *, closed: bool) -> str:
    """Say when an instrument fires next."""
    if closed:
        return "closed"
    return one.otherwise.removeprefix("next ") if one.due is None else f"{one.due:,}"


def remarks(one: InstrumentReport, most: int = 4) -> list[str]:
    """Return what an instrument says of itself; why it is disabled comes first."""
    lines = sorted(one.lines, key=lambda line: not line.startswith("disabled: "))
    hidden = len(lines) - most
    return [*lines[:most], *([f"and {hidden:,} more"] if hidden > 0 else [])]


def units(one: PerUnit) -> str:
    """Say how many units there are, and how many figures are not finite."""
    return f"{one.units:,}" + (f" ({one.odd:,} not finite)" if one.odd else "")


def more(what: HistoryContents) -> str:
    """Say how many tags are not shown, and where they are."""
    return f"and {what.more:,} more tags: history.tags() lists them"
