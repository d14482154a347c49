"""The page: views of runs in, one HTML text and its figures out. It reads and writes no file."""

from __future__ import annotations

import base64
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import numpy as np

import dynamo_probe
from dynamo_probe.logs.panels import Panel, View
from dynamo_probe.report.clock import first_wall
from dynamo_probe.report.figures import alternative, draw, png
from dynamo_probe.report.style import CSS
from dynamo_probe.report.tables import Table, final
from dynamo_probe.report.texts import counted, cut, escaped, named, prose, slug

ORDER = ("overview", "units", "connections", "heads")
"""The views of a run, from top to bottom."""
TITLES = {
    "overview": "Overview",
    "units": "Units",
    "connections": "Connections",
    "heads": "Heads",
}
_ALERTS = 100
# Nothing is loaded, whatever a page holds: names are escaped, and this is for the day they are not.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its figures.

    Attributes:
        html: the page, with its figures inside.
        figures: PNG files by the names that they should have.
        warnings: what the reader should know.
    """

    html: str
    figures: dict[str, bytes]
    warnings: tuple[str, ...]


class _Writer:
    """Collects the parts of a page; ids and file names come from counters."""

    def __init__(self, axis: str, tau: float | None) -> None:
        self.axis, self.tau = axis, tau
        self.figures: dict[str, bytes] = {}
        self.before = 0
        self.warnings: list[str] = []

    def run(self, place: int, run: str, views: Sequence[View]) -> Iterator[str]:
        origin = first_wall(panel for view in views for panel in view.panels)
        self.before = len(self.figures)
        yield f'<section id="run-{place}"><h2>Run {named(run)}</h2>'
        if not views:
            yield '<p class="empty">There is nothing to show of this run.</p>'
        for view in views:
            yield f'<section id="{_anchor(place, view)}"><h3>{escaped(_title(view))}</h3>'
            if view.empty:
                yield f'<p class="empty">{prose(view.empty)}</p>'
            elif not (view.panels or view.sentences or view.alerts):
                yield '<p class="empty">The log has nothing for this view.</p>'
            if view.sentences:
                yield "<ul>"
                yield from (f"<li>{prose(text)}</li>" for text in view.sentences)
                yield "</ul>"
            yield from _alerts(view.alerts)
            for panel in view.panels:
                yield from self.panel(place, view, panel, origin)
            yield "</section>"
        yield "</section>"

    def panel(self, place: int, view: View, panel: Panel, origin: float | None) -> Iterator[str]:
        tau = self.tau if view.tau is None else view.tau
        try:
            figure = draw(panel, self.axis, tau=tau, origin=origin)
            width, height = (round(float(inches) * 110) for inches in figure.get_size_inches())
            picture = png(figure)
            text = alternative(panel, self.axis, tau=tau, origin=origin)
            table = final(panel, self.axis, tau=tau, origin=origin)
        except Exception as error:  # one figure that fails takes no other with it
            _log.debug("a figure failed", exc_info=True)
            said = f"run {place}, {view.name}: {cut(panel.title)} could not be drawn"
            self.warnings.append(f"{said} ({type(error).__name__}: {cut(str(error), 200)})")
            yield f'<p class="empty">{escaped(panel.title, 120)} could not be drawn.</p>'
            return
        name = self.file(f"run-{place}-{slug(view.name)}-{slug(panel.key)}")
        self.figures[name] = picture
        data = base64.b64encode(picture).decode("ascii")
        yield f'<div class="panel"><figure><img src="data:image/png;base64,{data}" width="{width}"'
        yield f' height="{height}" alt="{escaped(text, 4000)}">'
        helped = f" {prose(panel.help)}" if panel.help else ""
        which = f"Figure {place}.{len(self.figures) - self.before}"
        yield f"<figcaption><strong>{which}: {named(panel.title)}.</strong>{helped}"
        yield "</figcaption></figure>"
        yield f"<details><summary>Final numbers</summary>{_numbers(table)}</details></div>"

    def file(self, stem: str) -> str:
        name, place = f"{stem}.png", 1
        while name in self.figures:
            place += 1
            name = f"{stem}-{place}.png"
        return name


def report_html(
    runs: Mapping[str, Sequence[View]],
    *,
    axis: str = "updates",
    tau: float | None = None,
    warnings: Sequence[str] = (),
    made: datetime | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> Page:
    """Make the page of some runs.

    Args:
        runs: the views of each run, by its name; any may be missing.
        axis: what figures are drawn over: `updates`, `wall`, or a clock of the runs.
        tau: the threshold for rasters of views that were made for none.
        warnings: what else the page should say, at its top.
        made: when it is made; None for now.
        progress: called with how many runs are done, how many there are, and the next one's name.

    Returns:
        The page. It asks for nothing over the network and runs no script.
    """
    made = made or datetime.now(timezone.utc)
    writer = _Writer(axis, tau)
    body: list[str] = []
    sorted_runs = {run: _in_order(views) for run, views in runs.items()}
    for place, (run, views) in enumerate(sorted_runs.items(), 1):
        if progress is not None:
            progress(place - 1, len(sorted_runs), run)
        body += writer.run(place, run, views)
    told = (*warnings, *writer.warnings)
    only = next(iter(runs)) if len(runs) == 1 else counted(len(runs), "run")
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>dynamo_probe report: {escaped(only, 60)}</title>",
        f"<style>{CSS}</style></head><body><header>",
        "<h1>What happened inside the network</h1>",
        f'<p class="soft">{counted(len(runs), "run")}. {_made(made)}</p></header>',
        *_contents(sorted_runs),
        "<main>",
        *_warned(told),
        *body,
        f"</main><footer><p>{_versions()}</p></footer></body></html>\n",
    ]
    return Page("\n".join(parts), writer.figures, told)


def _in_order(views: Sequence[View]) -> list[View]:
    known = {name: place for place, name in enumerate(ORDER)}
    return sorted(views, key=lambda view: known.get(view.name, len(ORDER)))


def _anchor(place: int, view: View) -> str:
    return f"run-{place}-{slug(view.name)}"


def _title(view: View) -> str:
    return TITLES.get(view.name, view.name)


def _made(made: datetime) -> str:
    when = made.astimezone(timezone.utc)
    stamp = when.strftime("%Y-%m-%dT%H:%M:%SZ")
    return f'Made <time datetime="{stamp}">{when.strftime("%Y-%m-%d %H:%M")} UTC</time>.'


def _versions() -> str:
    return (
        f"dynamo_probe {escaped(dynamo_probe.__version__)}, matplotlib {version('matplotlib')}, "
        f"NumPy {np.__version__}, Python {platform.python_version()}."
    )


def _contents(runs: Mapping[str, Sequence[View]]) -> Iterator[str]:
    if not runs:
        return
    yield '<nav aria-labelledby="contents"><h2 id="contents">Contents</h2><ol>'
    for place, (run, views) in enumerate(runs.items(), 1):
        yield f'<li><a href="#run-{place}">{named(run)}</a>'
        if views:
            links = (
                f'<li><a href="#{_anchor(place, view)}">{escaped(_title(view))}</a></li>'
                for view in views
            )
            yield f"<ul>{''.join(links)}</ul>"
        yield "</li>"
    yield "</ol></nav>"


def _warned(warnings: Sequence[str]) -> Iterator[str]:
    if warnings:
        yield '<div class="warnings" role="note"><ul>'
        yield from (f"<li>{prose(text)}</li>" for text in warnings[:_ALERTS])
        yield "</ul></div>"


def _alerts(alerts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not alerts:
        return
    rows = []
    for alert in alerts[:_ALERTS]:
        update = alert.get("update")
        when = f"{update:,}" if isinstance(update, int) else str(update)
        rows.append(
            f'<tr><td class="number">{escaped(when, 40)}</td>'
            f"<td>{named(str(alert.get('kind', '')))}</td>"
            f"<td>{named(str(alert.get('subject', '')))}</td>"
            f"<td>{prose(str(alert.get('text', '')))}</td></tr>"
        )
    heads = ('<th scope="col" class="number">update</th>',) + tuple(
        f'<th scope="col">{head}</th>' for head in ("kind", "subject", "what")
    )
    more = len(alerts) - _ALERTS
    left = f" The {_ALERTS} newest of {len(alerts):,}." if more > 0 else ""
    yield '<div class="wide" tabindex="0"><table>'
    yield f"<caption>Alerts, the newest first.{left}</caption>"
    yield f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _numbers(table: Table) -> str:
    if not table.rows:
        return "<p>Nothing was read.</p>"
    heads = "".join(
        f'<th scope="col"{_right(place)}>{named(head)}</th>'
        for place, head in enumerate(table.head)
    )
    rows = "".join(
        f'<tr><th scope="row">{named(row[0])}</th>'
        + "".join(f"<td{_right(1)}>{named(one)}</td>" for one in row[1:])
        + "</tr>"
        for row in table.rows
    )
    more = f'<p class="soft">And {table.more:,} more.</p>' if table.more else ""
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{more}"
    )


def _right(place: int) -> str:
    return ' class="number"' if place else ""
