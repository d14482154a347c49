"""Curves the size of a word: as characters and as SVG."""

from __future__ import annotations

from html import escape

import numpy as np

from dynamo_probe.display.text import number, visible

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*#@"

_WIDTH, _HEIGHT, _MARGIN = 120, 20, 2


def heights(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return where finite values lie between two bounds: 0 at `low`, 1 at `high`.

    Where the bounds are equal everything is at 0.5. Nothing overflows, whatever the values.

    Example:
        >>> heights(np.array([-1e308, 0.0, 1e308]), -1e308, 1e308)
        array([0. , 0.5, 1. ])
    """
    if not high > low:
        return np.full(len(values), 0.5)
    biggest = max(abs(low), abs(high))
    return (values / biggest - low / biggest) / (high / biggest - low / biggest)


def blocks(values: np.ndarray, width: int = 20, *, levels: str = BLOCKS) -> str:
    """Draw a series as characters, one for each point or for several that follow each other.

    Args:
        values: float64 `[points]`, in order.
        width: the most characters; more points than that are averaged in groups.
        levels: the characters from the lowest value to the highest; the scale ends at the smallest
            and the largest finite value.

    Returns:
        The characters; a group in which something is not finite is `×` (`x` in ASCII).

    Example:
        >>> blocks(np.arange(8.0))
        '▁▂▃▄▅▆▇█'
        >>> blocks(np.array([0.0, 1.0, np.nan, 0.0]))
        '▁█×▁'
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        low, high = 0.0, 0.0
    else:
        low, high = float(finite.min()), float(finite.max())
    drawn = []
    for group in np.array_split(values, min(width, len(values))) if len(values) else ():
        if not np.isfinite(group).all():
            drawn.append("x" if levels.isascii() else "×")
        else:
            drawn.append(levels[round(float(heights(group, low, high).mean()) * (len(levels) - 1))])
    return "".join(drawn)


def kept(steps: np.ndarray, values: np.ndarray, columns: int) -> np.ndarray:
    """Choose the points that show what all of them show, in that many columns of equal time.

    Of each column the lowest and the highest point stay, and the first that is not finite; the
    first and the newest point of all stay too.

    Returns:
        Their indices, ascending.
    """
    if len(steps) <= columns:
        return np.arange(len(steps))
    since = (steps - steps[0]).astype(np.float64)
    column = np.minimum(since / max(since[-1], 1.0) * columns, columns - 1).astype(np.int64)
    chosen = {0, len(steps) - 1}
    for members in np.split(np.arange(len(steps)), np.flatnonzero(np.diff(column)) + 1):
        finite = np.isfinite(values[members])
        if finite.any():
            inside = members[finite]
            chosen |= {int(inside[values[inside].argmin()]), int(inside[values[inside].argmax()])}
        if not finite.all():
            chosen.add(int(members[~finite][0]))
    return np.array(sorted(chosen))


def svg(tag: str, steps: np.ndarray, values: np.ndarray) -> str:
    """Draw a series as inline SVG in the colour of the text around it.

    What is not finite is a gap, with a mark below it. The title says in words what is drawn.

    Args:
        tag: what it is; any text.
        steps: updates, int64 `[points]`, ascending; at least one.
        values: float64 `[points]`.
    """
    finite = np.isfinite(values)
    title = f"{visible(tag)}: {number(values[0])} at update {steps[0]:,}"
    if len(values) > 1:
        title += f", {number(values[-1])} at update {steps[-1]:,}"
    if finite.any():
        low, high = float(values[finite].min()), float(values[finite].max())
        title += f"; from {number(low)} to {number(high)}"
    else:
        low = high = 0.0
    if not finite.all():
        title += f"; {int((~finite).sum()):,} of {len(values):,} not finite"
    points = kept(steps, values, _WIDTH // 2)
    span = float(steps[-1] - steps[0])
    across = (steps[points] - steps[0]) / span if span else np.full(len(points), 0.5)
    x = _MARGIN + across * (_WIDTH - 2 * _MARGIN)
    level = np.full(len(points), np.nan)
    level[finite[points]] = heights(values[points][finite[points]], low, high)
    y = _HEIGHT - _MARGIN - level * (_HEIGHT - 2 * _MARGIN)
    line, gaps, pen = [], [], "M"
    for left, top in zip(x.tolist(), y.tolist(), strict=True):
        if np.isnan(top):
            gaps.append(f"M{left:.1f} {_HEIGHT - 1}v-3")
            pen = "M"
        else:
            # A point alone has no length; drawn to itself, with round ends, it is a dot.
            line.append(f"{pen}{left:.1f} {top:.1f}" + ("h0" if pen == "M" else ""))
            pen = "L"
    paths = f'<path d="{"".join(line)}" stroke="currentColor"/>' if line else ""
    paths += f'<path d="{"".join(gaps)}" stroke="#d55e00"/>' if gaps else ""
    return (
        f'<svg role="img" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'fill="none" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round">'
        f"<title>{escape(title)}</title>{paths}</svg>"
    )
