"""Write a log directory as one self-contained page, and its figures as PNG files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamo_probe.logs.panels import Map, Panel, View
from dynamo_probe.report.clock import axes_of
from dynamo_probe.report.texts import counted, cut, number

if TYPE_CHECKING:
    from dynamo_probe.logs.runlog import RunLog

_RASTERS = 3
"""Layers whose units are shown one by one: those with the most dormant ones."""


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """What was written.

    Attributes:
        html: the page.
        figures: its figures, PNG files.
        runs: the names of the runs that it shows.
        warnings: what its reader should know, also said in the page.
    """

    html: Path
    figures: list[Path]
    runs: list[str]
    warnings: list[str]


def write_report(
    log_dir: str | os.PathLike[str],
    output: str | os.PathLike[str] = Path("report.html"),
    *,
    tau: float = 0.1,
    axis: str = "updates",
    figures: str | os.PathLike[str] | None = None,
    runs: Sequence[str] | None = None,
    most: int = 20,
    progress: Callable[[int, int, str], Any] | None = None,
) -> ReportFiles:
    """Write what the runs of a log directory recorded as one page of HTML, and PNG files.

    The page holds everything it shows: it opens from the file system, without a network and
    without scripts. The logs may be those of runs that still go on, or that were killed. A file
    that is there is replaced, at once and only when the new one is complete.

    Args:
        log_dir: the directory that `log_dir=` named, or one above several of them.
        output: the page.
        tau: the threshold of dormancy; where a run did not record it, the nearest that it did.
        axis: what figures are drawn over: `updates`, `wall`, or a clock such as
            `environment steps`.
        figures: the directory for PNG files; None for one beside the page, `<its stem>_figures`.
        runs: the names of the runs to show, in this order; None for all.
        most: how many runs are shown, where `runs` names none: those that were written to last.
        progress: called with how many runs are done, how many there are, and the next one's name.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: when there is no such directory.
        IsADirectoryError: when `output` is a directory.
        ModuleNotFoundError: when matplotlib is not installed.
        ValueError: when there is nothing to show: no log, no such run, no run with such an axis.
    """
    from dynamo_probe.logs.reading import read_all
    from dynamo_probe.report.page import report_html

    page_at = Path(output)
    if page_at.is_dir():
        raise IsADirectoryError(f"{str(page_at)!r} is a directory; name a file in it")
    if most < 1:
        raise ValueError(f"most={most}; give at least 1")
    logs, troubles = read_all(log_dir)
    warnings = [f"{cut(one.run)}: {one.text}" for one in troubles]
    logs = _chosen(logs, runs, most, warnings)
    views = {run: _views(run, log, tau, warnings) for run, log in logs.items()}
    _check_axis(views, axis, warnings)
    page = report_html(views, axis=axis, tau=tau, warnings=warnings, progress=progress)
    folder = page_at.parent / f"{page_at.stem}_figures" if figures is None else Path(figures)
    written = []
    if page.figures:
        folder.mkdir(parents=True, exist_ok=True)
    for name, picture in page.figures.items():
        written.append(folder / name)
        _replaced(folder / name, picture)
    page_at.parent.mkdir(parents=True, exist_ok=True)
    _replaced(page_at, page.html.encode("utf-8"))
    return ReportFiles(page_at, written, list(logs), list(page.warnings))


def _chosen(
    logs: dict[str, RunLog], runs: Sequence[str] | None, most: int, warnings: list[str]
) -> dict[str, RunLog]:
    if runs is not None:
        unknown = [run for run in runs if run not in logs]
        if unknown or not runs:
            there = ", ".join(repr(cut(run, 60)) for run in list(logs)[:20])
            what = f"no run {cut(unknown[0], 60)!r}" if unknown else "no run was named"
            raise ValueError(f"{what}; there are {there}{' ...' if len(logs) > 20 else ''}")
        return {run: logs[run] for run in runs}
    if len(logs) <= most:
        return logs
    newest = sorted(logs, key=lambda run: logs[run].wall)[-most:]
    warnings.append(
        f"There are {counted(len(logs), 'run')}; the {most} that were written to last are shown. "
        "Give runs= for others, most= for more."
    )
    return {run: log for run, log in logs.items() if run in newest}


def _views(run: str, log: RunLog, tau: float, warnings: list[str]) -> list[View]:
    from dynamo_probe.logs.views import VIEWS, raster, view

    chosen = tau if tau in log.taus else min(log.taus, key=lambda one: abs(one - tau), default=None)
    if chosen is not None and chosen != tau and log.units:
        said = f"tau {number(tau)} was not recorded; {number(chosen)} is shown"
        warnings.append(f"{cut(run)}: {said}")
    made = []
    for name in VIEWS:
        try:
            one = view(log, name, chosen)
            layers = most_dormant(one.panels)
            one = replace(one, panels=(*one.panels, *(raster(log, layer) for layer in layers)))
        except Exception as error:  # a log with a hole still shows its other views
            text = f"this view could not be made ({type(error).__name__}: {cut(str(error), 200)})"
            warnings.append(f"{cut(run)}, {name}: {text}")
            one = View(name, empty=f"From this log {text}.")
        made.append(one)
    return made


def most_dormant(panels: Sequence[Panel], most: int = _RASTERS) -> list[str]:
    """Return the rows of a view's maps that open as rasters and have the highest newest values."""
    newest: dict[str, float] = {}
    for panel in panels:
        if isinstance(panel, Map) and panel.opens == "raster":
            for row, own in zip(panel.rows, np.asarray(panel.values), strict=True):
                there = own[np.isfinite(own)]
                newest[row] = float(there[-1]) if len(there) else -1.0
    return sorted(newest, key=lambda row: -newest[row])[:most]


def _check_axis(views: dict[str, list[View]], axis: str, warnings: list[str]) -> None:
    known: dict[str, set[str]] = {
        run: {
            name for one in made for panel in one.panels for axes in axes_of(panel) for name in axes
        }
        for run, made in views.items()
    }
    every = {name for names in known.values() for name in names}
    if every and axis not in every:
        there = ", ".join(sorted(cut(name, 60) for name in every))
        raise ValueError(f"no run has the axis {axis!r}; there are {there}")
    without = [run for run, names in known.items() if names and axis not in names]
    if without:
        named = ", ".join(cut(run, 60) for run in without[:10])
        warnings.append(f"These runs are drawn over updates, as they have no {axis}: {named}.")


def _replaced(path: Path, content: bytes) -> None:
    """Write a file so that there is never half of one."""
    part = path.with_name(f".{path.name[:100]}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
