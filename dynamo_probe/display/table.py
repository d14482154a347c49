"""A history and a watch as tables in a terminal. Imports rich, so it is imported late."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dynamo_probe.display import contents
from dynamo_probe.display.contents import HistoryContents, WatchContents
from dynamo_probe.display.sparkline import ASCII, BLOCKS, blocks
from dynamo_probe.display.text import number, visible
from dynamo_probe.display.wording import due, last, more, remarks, units

if TYPE_CHECKING:
    from dynamo_probe.sinks.memory import History
    from dynamo_probe.watch import Watch


class Shown:
    """What rich draws; where the terminal knows ASCII alone, it is ASCII alone.

    Args:
        what: what is shown.
    """

    def __init__(self, what: HistoryContents | WatchContents) -> None:
        """Keep it until the terminal is known."""
        self.what = what

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        """Draw it on this terminal."""
        yield self._group(options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Say how wide it is."""
        return Measurement.get(console, options, self._group(options))

    def _group(self, options: ConsoleOptions) -> Group:
        pen = _Pen(ascii_only=options.ascii_only)
        if isinstance(self.what, HistoryContents):
            return Group(*_history(pen, self.what))
        return Group(*_watch(pen, self.what))


def of_history(history: History) -> Shown:
    """Return a table of the newest figures.

    Example:
        >>> import io
        >>> from dynamo_probe.instrument import Reading
        >>> from dynamo_probe.sinks import History
        >>> history = History()
        >>> history.add(Reading(step, "dormancy/tau=0.1", step / 100) for step in (10, 20))
        >>> page = Console(file=io.StringIO(), width=80)
        >>> page.print(history)
        >>> "▁█" in page.file.getvalue()
        True
    """
    return Shown(contents.of_history(history))


def of_watch(watch: Watch) -> Shown:
    """Return what a watch does and has read, as tables."""
    return Shown(contents.of_watch(watch))


class _Pen:
    """Writes text and tables; nothing in a name is read as markup."""

    def __init__(self, *, ascii_only: bool) -> None:
        self.ascii_only = ascii_only
        self.levels = ASCII if ascii_only else BLOCKS

    def text(self, text: object, most: int = 80, style: str = "") -> Text:
        shown = visible(text, most)
        if self.ascii_only:
            shown = shown.replace("…", "...").encode("ascii", "backslashreplace").decode()
        return Text(shown, style=style)

    def table(self, title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
        table = Table(box=SIMPLE_HEAD, title=Text(title), title_justify="left", title_style="bold")
        for head in heads:
            side = "right" if head.startswith("#") else "left"
            table.add_column(head.removeprefix("#"), justify=side, overflow="fold")
        for row in rows:
            table.add_row(*(self.text(cell, 300) for cell in row))
        return table


def _history(pen: _Pen, what: HistoryContents) -> Iterable[RenderableType]:
    yield pen.text(what.title)
    if what.figures:
        yield pen.table(
            "Newest figures",
            ["tag", "#update", "#newest", "#min", "#max", "over updates"],
            [
                [
                    visible(one.tag),
                    f"{one.steps[-1]:,}",
                    *(number(value) for value in (one.values[-1], one.low, one.high)),
                    blocks(one.values, 16, levels=pen.levels),
                ]
                for one in what.figures
            ],
        )
    if what.per_unit:
        yield pen.table(
            "One figure per unit",
            ["tag", "#update", "#units", "#min", "#median", "#max"],
            [
                [
                    visible(one.tag),
                    f"{one.step:,}",
                    units(one),
                    *(number(value) for value in (one.low, one.median, one.high)),
                ]
                for one in what.per_unit
            ],
        )
    if what.more:
        yield pen.text(more(what))


def _watch(pen: _Pen, what: WatchContents) -> Iterable[RenderableType]:
    yield pen.text(f"{what.title} on {what.model}", 300, "bold")
    instruments, others = what.instruments
    yield pen.table(
        "Instruments",
        ["instrument", "schedule", "#fired", "#last at", "#next at", "remarks"],
        [
            [
                visible(one.name),
                one.schedule,
                f"{one.fired:,}",
                last(one),
                due(one, closed=what.closed),
                "; ".join(remarks(one)),
            ]
            for one in instruments
        ],
    )
    yield from _others(pen, others)
    (tapped, others), (skipped, left) = what.tapped, what.skipped
    if tapped:
        title = f"Layers that are read: {len(tapped) + others:,}"
        read = [[visible(one.name), f"{one.units:,}", one.measured] for one in tapped]
        yield pen.table(title, ["layer", "#units", "at the"], read)
        yield from _others(pen, others)
    if skipped:
        title = f"Layers that are not: {len(skipped) + left:,}"
        reasons = [[visible(one.name), one.measured] for one in skipped]
        yield pen.table(title, ["layer", "why"], reasons)
        yield from _others(pen, left)
    for title, (texts, hidden), where in (
        ("Warnings", what.warnings, "more"),
        ("Last events", what.events, "before these"),
    ):
        if texts:
            yield Text(title, style="bold")
            yield from (pen.text(f"  {text}", 200) for text in texts)
            if hidden:
                yield Text(f"  {hidden:,} {where}")
    yield from _history(pen, what.history)


def _others(pen: _Pen, count: int) -> Iterable[RenderableType]:
    if count:
        yield pen.text(f"and {count:,} more: print(watch.doctor())")
