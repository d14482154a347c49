"""The overview: the state of a run in plain words, its alerts, its main curves."""

from __future__ import annotations

import numpy as np

from dynamo_probe.logs.choosing import axis_of, lines_of, matching, nearest_tau
from dynamo_probe.logs.panels import Line, Lines, Panel, View
from dynamo_probe.logs.runlog import MOST_EVENTS, RunLog
from dynamo_probe.logs.units_view import dormant_share

_ALERTS = ("alert", "disabled", "skipped")
_MOST_ALERTS, _POINTS = 50, 128


def overview(log: RunLog, tau: float | None = None) -> View:
    """Return the overview of a run."""
    chosen = nearest_tau(log.taus, tau) if log.units else None
    return View(
        "overview",
        panels=tuple(_sparklines(log, chosen)),
        sentences=tuple(_sentences(log, chosen)),
        alerts=tuple(_alerts(log)),
        taus=log.taus if log.units else (),
        tau=chosen,
        facts={"update": log.step, "seconds": max(log.wall - log.started, 0.0)},
    )


def _sentences(log: RunLog, tau: float | None) -> list[str]:
    said = [f"{log.step:,} updates in {_duration(log.wall - log.started)}."]
    if tau is not None:
        said += _of_units(log, tau)
    said += _of_connections(log) + _of_heads(log)
    unwell = sum(event["kind"] in ("alert", "disabled") for event in log.events)
    if unwell:
        least = "At least " if len(log.events) >= MOST_EVENTS else ""
        said.append(f"{least}{unwell} {'alert' if unwell == 1 else 'alerts'}.")
    return said


def _of_units(log: RunLog, tau: float) -> list[str]:
    steps, _, share = dormant_share(log, tau)
    known = np.flatnonzero(np.isfinite(share))
    if not len(known):
        return ["No unit has a finite score."]
    first, last = known[0], known[-1]
    text = f"{_percent(float(share[last]))} of units dormant (tau {tau:g})"
    if first != last:
        text += f", {_percent(float(share[first]))} at update {steps[first]:,}"
    same = log.series.get("dormancy/overlap")
    if same is not None and np.isfinite(same.values[-1]):
        # How long before is not known: the log does not keep every reading of a long run.
        text += f", {_percent(same.values[-1])} of them the same as at the reading before"
    said = [text + "."]
    for tag, match in matching(log, r"([^/]+)/recycled_total"):
        text = f"{match[1]}: {int(log.series[tag].values[-1]):,} recycled"
        again = log.series.get(f"{match[1]}/dormant_again")
        if again is not None and np.isfinite(again.values[-1]):
            text += f", {_percent(again.values[-1])} of the last ones dormant again"
        said.append(text + ".")
    return said


def _of_connections(log: RunLog) -> list[str]:
    said = []
    found = [match[1] for _, match in matching(log, r"([^/]+)/density")]
    for name in found[:1]:  # a treatment and a probe that watches it say the same
        text = f"{_percent(log.series[f'{name}/density'].values[-1])} of the connections are kept"
        target = log.series.get(f"{name}/target")
        if target is not None:
            text += f", target {_percent(target.values[-1])}"
        said.append(text + ".")
    for tag, match in matching(log, r"[^/]*plasticity[^/]*/(.+)/plasticity"):
        said.append(f"Pruning plasticity at {match[1]}: {log.series[tag].values[-1]:+.3f}.")
    return said


def _of_heads(log: RunLog) -> list[str]:
    said = []
    if (top := log.series.get("induction/top")) is not None:
        text = f"Strongest prefix matching {top.values[-1]:.2f}"
        if (chance := log.series.get("induction/chance")) is not None:
            text += f" (chance {chance.values[-1]:.3f})"
        if (number := log.series.get("induction/heads")) is not None:
            text += f", {int(number.values[-1])} induction heads"
        formed = [event["step"] for event in log.events if event["kind"] == "formed"]
        text += f", formed by update {formed[0]:,}" if formed else ""
        said.append(text + ".")
    if (repeated := log.series.get("repetition/fraction")) is not None:
        said.append(f"{_percent(repeated.values[-1])} of the tokens are repeated data.")
    return said


def _alerts(log: RunLog) -> list[dict[str, object]]:
    found = [event for event in log.events if event["kind"] in _ALERTS]
    return [
        {
            "update": event["step"],
            "kind": event["kind"],
            "subject": event["subject"],
            "text": "; ".join(
                str(value) if key == "reason" else f"{key}: {value}"
                for key, value in event["detail"].items()
            ),
        }
        for event in reversed(found[-_MOST_ALERTS:])
    ]


def _sparklines(log: RunLog, tau: float | None) -> list[Panel]:
    panels: list[Panel] = []
    if tau is not None:
        steps, walls, share = dormant_share(log, tau)
        dormant = Line(f"tau = {tau:g}", axis_of(log, steps, walls), share)
        panels.append(Lines("dormant-share", "Dormant units", "fraction", (dormant,)))
    for key, title, y, tags in (
        ("density-now", "Density", "fraction", [t for t, _ in matching(log, r"[^/]+/density")]),
        ("rank-now", "Effective rank", "rank", ["rank/effective"]),
        ("heads-now", "Prefix matching, strongest head", "mass", ["induction/top"]),
        ("repeated-now", "Repeated tokens", "fraction", ["repetition/fraction"]),
    ):
        if lines := lines_of(log, [(tag, tag) for tag in tags]):
            panels.append(Lines(key, title, y, lines))
    return [_thinned(panel) for panel in panels]


def _thinned(panel: Panel) -> Panel:
    """Keep few points of each curve: a card is small."""
    if not isinstance(panel, Lines):
        return panel
    lines = []
    for one in panel.lines:
        keep = np.unique(np.linspace(0, max(len(one.values) - 1, 0), _POINTS).astype(int))
        keep = keep[: len(one.values)]
        axis = {name: values[keep] for name, values in one.axis.items()}
        lines.append(Line(one.name, axis, one.values[keep], one.style))
    return Lines(panel.key, panel.title, panel.y, tuple(lines), panel.help)


def _percent(share: float) -> str:
    """Return a share in words: never 0 % or 100 % where it is not exactly that."""
    if not np.isfinite(share):
        return "an unknown share"
    if 0 < share < 0.01:
        return f"{100 * share:.2g} %"
    if 0.99 < share < 1:
        return f"{100 - float(f'{100 * (1 - share):.1g}'):g} %"
    return f"{100 * share:.0f} %"


def _duration(seconds: float) -> str:
    seconds = max(seconds, 0.0)
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
