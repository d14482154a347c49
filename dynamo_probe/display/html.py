"""A history and a watch as a fragment of HTML, for notebooks.

Names of tags and layers are data: they are escaped, and control characters in them are written out.
Colours are those of the page around, so that it reads well on light and on dark ones. There is no
script, no style sheet and no reference to anything outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from dynamo_probe.display import contents, sparkline
from dynamo_probe.display.text import number, visible
from dynamo_probe.display.wording import due, last, more, remarks, units

if TYPE_CHECKING:
    from dynamo_probe.display.contents import HistoryContents
    from dynamo_probe.sinks.memory import History
    from dynamo_probe.watch import Watch

_LINE = "1px solid rgba(128,128,128,.4)"
# The classes keep a notebook from setting dollar signs in names as mathematics.
_OPEN = '<div class="tex2jax_ignore mathjax_ignore" style="overflow-x:auto;line-height:1.35">'
_TABLE = (
    "border-collapse:collapse;margin:.4em 0;font-size:.92em;color:inherit;"
    "font-variant-numeric:tabular-nums"
)
_CAPTION = "caption-side:top;text-align:left;font-weight:bold;color:inherit;padding:.2em 0"


def of_history(history: History) -> str:
    """Return a table of the newest figures as HTML.

    Example:
        >>> from dynamo_probe.instrument import Reading
        >>> from dynamo_probe.sinks import History
        >>> history = History()
        >>> history.add(Reading(step, "<b>", step / 100) for step in (10, 20))
        >>> "&lt;b&gt;" in of_history(history), "<b>" in of_history(history)
        (True, False)
    """
    return f"{_OPEN}{_history(contents.of_history(history))}</div>"


def of_watch(watch: Watch) -> str:
    """Return what a watch does and has read as HTML."""
    what = contents.of_watch(watch)
    parts = [f"<p><b>{_text(what.title, 300)}</b> on {_text(what.model)}</p>"]
    instruments, others = what.instruments
    parts.append(
        _table(
            "Instruments",
            ["instrument", "schedule", "#fired", "#last at", "#next at", "remarks"],
            [
                [
                    _text(one.name),
                    f"{_text(one.schedule)}; {_text(one.observes, 160)}",
                    f"{one.fired:,}",
                    last(one),
                    _text(due(one, closed=what.closed)),
                    _lines(remarks(one)),
                ]
                for one in instruments
            ],
            others,
        )
    )
    (tapped, others), (skipped, left) = what.tapped, what.skipped
    if tapped:
        read = [[_text(one.name), f"{one.units:,}", _text(one.measured, 160)] for one in tapped]
        counted = f"Layers that are read: {len(tapped) + others:,}"
        parts.append(_folded(counted, _table("", ["layer", "#units", "at the"], read, others)))
    if skipped:
        reasons = [[_text(one.name), _text(one.measured, 300)] for one in skipped]
        counted = f"Layers that are not: {len(skipped) + left:,}"
        parts.append(_folded(counted, _table("", ["layer", "why"], reasons, left)))
    for title, (texts, hidden), where in (
        ("Warnings", what.warnings, "more"),
        ("Last events", what.events, "before these"),
    ):
        if texts:
            items = "".join(f"<li>{_text(text, 200)}</li>" for text in texts)
            hint = f"<p>{hidden:,} {where}</p>" if hidden else ""
            parts.append(f'<p><b>{title}</b></p><ul style="margin:0">{items}</ul>{hint}')
    parts.append(_history(what.history))
    return f"{_OPEN}{''.join(parts)}</div>"


def _history(what: HistoryContents) -> str:
    parts = [f"<p>{_text(what.title)}</p>"]
    if what.figures:
        rows = [
            [
                _text(one.tag),
                f"{one.steps[-1]:,}",
                number(one.values[-1]),
                number(one.low),
                number(one.high),
                sparkline.svg(one.tag, one.steps, one.values),
            ]
            for one in what.figures
        ]
        heads = ["tag", "#update", "#newest", "#min", "#max", "over updates"]
        parts.append(_table("Newest figures", heads, rows))
    if what.per_unit:
        rows = [
            [
                _text(one.tag),
                f"{one.step:,}",
                units(one),
                number(one.low),
                number(one.median),
                number(one.high),
            ]
            for one in what.per_unit
        ]
        heads = ["tag", "#update", "#units", "#min", "#median", "#max"]
        parts.append(_table("One figure per unit", heads, rows))
    if what.more:
        parts.append(f"<p>{more(what)}</p>")
    return "".join(parts)


def _text(text: object, most: int = 80) -> str:
    return escape(visible(text, most))


def _lines(texts: Iterable[str]) -> str:
    return "<br>".join(_text(text, 200) for text in texts)


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[list[str]], others: int = 0) -> str:
    """Write a table of cells that are HTML already; `#` marks a column of numbers."""
    sides = ["right" if head.startswith("#") else "left" for head in heads]
    top = "".join(
        f'<th scope="col" style="text-align:{side};border-bottom:{_LINE};padding:.1em .6em">'
        f"{escape(head.removeprefix('#'))}</th>"
        for head, side in zip(heads, sides, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:{side};padding:.1em .6em">{cell}</td>'
            for cell, side in zip(row, sides, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    above = f'<caption style="{_CAPTION}">{escape(caption)}</caption>' if caption else ""
    below = f"<p>and {others:,} more: print(watch.doctor())</p>" if others else ""
    return (
        f'<table style="{_TABLE}">{above}<thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table>{below}"
    )
