"""Series over updates as a matplotlib figure; needs the extra `report`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from dynamo_probe.display.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynamo_probe.sinks.memory import History

MOST_IN_LEGEND = 20

_FEW = 50  # points of a series, each of which gets a dot
_STYLES = ("-", "--", ":", "-.")


def draw(
    history: History, tags: str | Iterable[str] | None, ax: Axes | None, *, logx: bool
) -> Axes:
    """Draw a line for each tag; see `History.plot`."""
    try:
        import matplotlib  # noqa: F401 - said before anything is chosen or drawn
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "plot() needs matplotlib; install the extra report "
            "(pip install 'dynamo-probe[report]'), or use series(tag), which returns NumPy arrays",
            name="matplotlib",
        ) from error
    chosen = choose(history, tags)
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.gca()
    begins = []
    for place, tag in enumerate(chosen):
        steps, values = history.series(tag)
        dots = "." if len(steps) <= _FEW else None
        style = _STYLES[place // 10 % len(_STYLES)]  # matplotlib has ten colours
        ax.plot(steps, values, style, label=_label(tag), marker=dots)
        begins.append(steps[0])
    if logx and min(begins) <= 0:  # a reading before the first update has a place, too
        ax.set_xscale("symlog", linthresh=1)
    elif logx:
        ax.set_xscale("log")
    groups = {tag.partition("/")[0] for tag in chosen}
    ax.set_xlabel("updates")
    if len(chosen) == 1:
        ax.set_ylabel(_label(chosen[0]))
    else:
        ax.set_ylabel(_label(groups.pop()) if len(groups) == 1 else "value")
    handles, labels = ax.get_legend_handles_labels()
    legend = ax.legend(handles[:MOST_IN_LEGEND], labels[:MOST_IN_LEGEND], fontsize="small")
    if len(handles) > MOST_IN_LEGEND:
        legend.set_title(f"the first {MOST_IN_LEGEND} of {len(handles):,}")
    return ax


def choose(history: History, tags: str | Iterable[str] | None) -> list[str]:
    """Return the tags that are drawn, each once; see `History.plot`.

    Example:
        >>> from dynamo_probe.instrument import Reading
        >>> from dynamo_probe.sinks import History
        >>> history = History()
        >>> history.add([Reading(1, "rank/fc1/stable", 3.0), Reading(1, "redo/recycled", 2.0)])
        >>> choose(history, None), choose(history, ["rank/*", "redo/recycled"])
        (['redo/recycled'], ['rank/fc1/stable', 'redo/recycled'])
    """
    if tags is None:
        pooled = [tag for tag in history.tags() if tag.count("/") == 1]
        chosen = [tag for tag in pooled if not _per_unit(history, tag)]
        if not chosen:
            raise ValueError(
                "nothing was read at all so far; plot() when a probe has fired"
                if not len(history)
                else 'no pooled figure (a tag with one slash) was read; give tags=, such as "*"'
            )
        return chosen
    wanted = [tags] if isinstance(tags, str) else list(tags)
    if not wanted:
        raise ValueError("tags is empty; give a tag, several, a pattern, or None")
    return list(dict.fromkeys(tag for one in wanted for tag in _meant(history, one)))


def _meant(history: History, tag: str) -> list[str]:
    """Return what a tag or a pattern stands for; a tag that was read is no pattern."""
    if tag in history or not any(sign in tag for sign in "*?["):
        if _per_unit(history, tag):
            raise ValueError(
                f"{tag!r} has one figure per unit, and only the newest reading is held: give tags "
                f"with one figure, or draw its distribution with ax.hist(history.latest({tag!r}))"
            )
        return [tag]
    found = [one for one in history.tags() if fnmatchcase(one, tag)]
    if not found:
        raise KeyError(f"no tag matches {tag!r}; tags() lists what was read")
    chosen = [one for one in found if not _per_unit(history, one)]
    return chosen or _meant(history, found[0])  # which says what is wrong with it


def _per_unit(history: History, tag: str) -> bool:
    return isinstance(history.latest(tag), np.ndarray)


def _label(tag: str) -> str:
    """Write a tag so that matplotlib neither hides it nor reads mathematics into it."""
    shown = visible(tag).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
