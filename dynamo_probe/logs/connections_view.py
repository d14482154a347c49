"""The view of connections: density, turnover, and what pruning costs at each time."""

from __future__ import annotations

from dynamo_probe.logs.choosing import line, lines_of, marks_of, matching, table_of
from dynamo_probe.logs.panels import Line, Lines, Map, Panel, View
from dynamo_probe.logs.runlog import RunLog

_NOTHING = (
    "No connections were recorded: add dp.Topology() beside a sparse treatment such as dp.GraNet, "
    "or dp.PruningPlasticity, to the instruments of dp.watch."
)

_TURNOVER = {
    "turnover": "turnover: grown / kept",
    "survival": "survival of those grown",
    "regrown_alive": "regrown that are still there",
    "overparameterisation": "ever kept (in-time overparameterisation)",
}
_CUT_OFF = {
    "units_without_input": "no connection enters",
    "units_without_output": "no connection leaves",
}


def connections(log: RunLog) -> View:
    """Return the view of connections."""
    panels = [*_density(log), *_by_layer(log), *_changes(log), *_plasticity(log)]
    return View("connections", tuple(panels), empty="" if panels else _NOTHING)


def _density(log: RunLog) -> list[Panel]:
    lines: list[Line] = []
    for tag, match in matching(log, r"([^/]+)/density"):
        lines.append(line(log, f"{match[1]}: actual", log.series[tag]))
        if (target := f"{match[1]}/target") in log.series:
            lines.append(line(log, f"{match[1]}: target", log.series[target], "dashed"))
    if not lines:
        return []
    help = "The share of connections that is kept. Dashed: what the schedule asks for."
    title = "Density, target against actual"
    return [Lines("density", title, "density", tuple(lines), help)]


def _by_layer(log: RunLog) -> list[Panel]:
    found = matching(log, r"[^/]+/layer/(.+)/density")
    if not found:
        return []
    axis, values = table_of(log, [log.series[tag] for tag, _ in found])
    return [
        Map(
            key="layer-density",
            title="Density by layer",
            rows=tuple(match[1] for _, match in found),
            row="layer",
            axis=axis,
            values=values,
            z="density",
            range=(0.0, 1.0),
            help="A layer that loses nearly all of its connections is a bottleneck.",
        )
    ]


def _changes(log: RunLog) -> list[Panel]:
    panels: list[Panel] = []
    if lines := lines_of(log, _named(log, _TURNOVER)):
        help = "Turnover without survival is noise: what grows is pruned again."
        panels.append(Lines("turnover", "Turnover and survival", "fraction", lines, help))
    numbers = [
        (tag, f"{match[1]}: {match[2]}")
        for tag, match in matching(log, r"([^/]+)/(pruned|regrown|dropped|grown)")
    ]
    if lines := lines_of(log, numbers):
        panels.append(
            Lines("exchanged", "Connections pruned and regrown", "connections an update", lines)
        )
    if lines := lines_of(log, _named(log, _CUT_OFF)):
        panels.append(Lines("cut-off", "Units that are cut off", "fraction of units", lines))
    return panels


def _named(log: RunLog, figures: dict[str, str]) -> list[tuple[str, str]]:
    """Return the tags of figures whatever the probe is called, with what they mean."""
    return [
        (tag, name)
        for figure, name in figures.items()
        for tag, _ in matching(log, f"[^/]+/{figure}")
    ]


def _plasticity(log: RunLog) -> list[Panel]:
    panels: list[Panel] = []
    for what, title, help in (
        (
            "plasticity",
            "Pruning plasticity",
            "What the score gains by training on after pruning, against the score before it (Liu "
            "et al. 2021). Below 0 the damage is lasting.",
        ),
        (
            "plasticity_vs_control",
            "Pruning plasticity against a control that was not pruned",
            "The same, against a copy that trains as long without pruning: what pruning alone "
            "costs.",
        ),
    ):
        found = matching(log, rf"([^/]*plasticity[^/]*)/(.+)/{what}")
        if lines := lines_of(log, [(tag, match[2]) for tag, match in found]):
            panels.append(Lines(what.replace("_", "-"), title, "change of score", lines, help))
    scores = []
    for tag, match in matching(log, r"([^/]*plasticity[^/]*)/(?:(.+)/)?(before|control|after)"):
        name = match[3] if match[2] is None else f"{match[2]}: {match[3]}"
        style = "dashed" if match[3] == "control" else "solid"
        scores.append(line(log, name, log.series[tag], style))
    if scores:
        title = "Scores: before pruning, after training on, and the control"
        panels.append(Lines("plasticity-scores", title, "score", tuple(scores)))
    rates = [
        (tag, match[1] or "learning rate")
        for tag, match in matching(log, r"[^/]*plasticity[^/]*/lr(?:/(group=\d+))?")
    ]
    if lines := lines_of(log, rates):
        marks = marks_of(log, ["alert"])
        panels.append(
            Lines("lr", "Learning rate", "learning rate", lines, marks=marks, logarithmic=True)
        )
    return panels
