"""Colours that people with any colour vision tell apart, and how texts get into figures."""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import Colormap
from matplotlib.font_manager import FontProperties, findfont, get_font

from dynamo_probe.report.texts import middle

# Okabe & Ito 2008, "Color Universal Design", without the yellow that is hard to see on white.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UNREAD = {"facecolor": "#D9D9D9", "edgecolor": "#A6A6A6", "hatch": "////", "linewidth": 0.0}
"""How a place looks where nothing was read: grey, and hatched, since cividis has a grey, too."""
MARK = "#333333"

STATES = {"dormant": "#1B3A6B", "live": "#FBE3A1", "pruned": "#D55E00"}
"""The states of a unit. They differ in lightness."""


def scale() -> Colormap:
    """Return the scale of heatmaps; it is transparent where nothing was read."""
    return colormaps["cividis"].with_extremes(bad=(0.0, 0.0, 0.0, 0.0))


def drawable(text: str, most: int = 40) -> str:
    """Return a text for a figure: cut, without formulas or letters that the font lacks."""
    known = _letters(findfont(FontProperties()))
    text = middle(text, most)
    text = "".join("\ufffd" if ord(letter) not in known else letter for letter in text)
    squeezed = ("\ufffd" if gone else "".join(some) for gone, some in groupby(text, _is_gone))
    return "".join(squeezed).replace("$", r"\$")


def _is_gone(letter: str) -> bool:
    return letter == "\ufffd"


@lru_cache(maxsize=8)
def _letters(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())
