"""A picture of one figure by layer and time: rows are layers, columns are readings.

Drawn with NumPy and pillow, so that it needs no plotting library in a training run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dynamo_probe.thinning import Thinning

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WIDTH = 512
"""Width of the coloured area in pixels; fixed, so that successive pictures can be compared."""

MISSING = (226, 226, 226)
"""The colour of a layer at an update where it was not read."""

_LABEL_WIDTH = 220
_MARGIN = 10
_FONT_SIZE = 12
_LINE = 15
_INK = (40, 40, 40)
_PAPER = (255, 255, 255)

# Dark indigo over magenta to pale yellow. Each anchor lies where its CIE lightness falls on a
# straight line, so the scale reads the same in grey and to colour-blind people.
_ANCHORS = (
    (0.000, (20, 24, 66)),
    (0.186, (66, 44, 130)),
    (0.351, (142, 56, 140)),
    (0.531, (208, 86, 108)),
    (0.737, (244, 146, 78)),
    (1.000, (253, 228, 132)),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn heatmap.

    Attributes:
        pixels: uint8 `[height, width, 3]`, red, green and blue.
        top: the first row of the coloured area.
        left: the first column of the coloured area.
        row_height: the pixels of the coloured area that a layer takes.
    """

    pixels: np.ndarray
    top: int
    left: int
    row_height: int


def colours(fractions: np.ndarray) -> np.ndarray:
    """Colour fractions: 0 is dark, 1 is light, NaN is grey.

    Args:
        fractions: any shape; what lies outside [0, 1] is shown as the nearer end.

    Returns:
        uint8 of the same shape with a last axis of 3 (red, green, blue).
    """
    fractions = np.asarray(fractions, dtype=np.float64)
    places = [place for place, _ in _ANCHORS]
    known = np.clip(np.nan_to_num(fractions, nan=0.0), 0.0, 1.0)
    channels = [
        np.interp(known, places, [colour[channel] for _, colour in _ANCHORS])
        for channel in range(3)
    ]
    painted = np.stack(channels, axis=-1).round().astype(np.uint8)
    painted[np.isnan(fractions)] = MISSING
    return painted


def draw(
    fractions: np.ndarray, layers: Sequence[str], updates: Sequence[int], title: str
) -> Picture:
    """Draw fractions by layer and reading, with names, a colour bar and the updates.

    Args:
        fractions: `[layers, readings]` in [0, 1]; NaN where a layer was not read.
        layers: the layers' names, from top to bottom.
        updates: the update of each reading.
        title: one line above the picture.

    Raises:
        ValueError: when there is nothing to draw or the lengths do not agree.
    """
    fractions = np.asarray(fractions, dtype=np.float64)
    if fractions.shape != (len(layers), len(updates)) or not fractions.size:
        raise ValueError(
            f"fractions have the shape {fractions.shape}; give one row for each of the "
            f"{len(layers)} layers and one column for each of the {len(updates)} updates, and "
            "at least one of both"
        )
    font = _font()
    row_height = _row_height(len(layers))
    area = _magnified(fractions, row_height)
    named = range(0, len(layers), -(-_LINE // row_height))
    names = {row: _shortened(layers[row], font) for row in named}
    left = _MARGIN + max(round(font.getlength(name)) for name in names.values()) + 6
    top = _MARGIN + _LINE + 8
    bottom = top + area.shape[0]
    gap = bool(np.isnan(fractions).any())
    height = bottom + 5 + 2 * _LINE + (_LINE + 3 if gap else 0) + _MARGIN
    # Wide enough for the bar and its figures, and for the title where there are few layers.
    width = max(left + WIDTH + 14 + 14 + 40, round(_MARGIN + font.getlength(title)) + _MARGIN)

    sheet = Image.new("RGB", (width, height), _PAPER)
    sheet.paste(Image.fromarray(area), (left, top))
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    _label_rows(pen, font, names, left, top, row_height)
    _label_columns(pen, font, updates, left, bottom)
    _colour_bar(sheet, pen, font, left + WIDTH + 14, top, area.shape[0])
    if gap:
        line = bottom + 5 + 2 * _LINE + 3
        pen.rectangle((left, line + 2, left + 10, line + 12), fill=MISSING)
        pen.text((left + 16, line), "not read", fill=_INK, font=font)
    return Picture(np.asarray(sheet), top, left, row_height)


class LayerFractions:
    """The fractions of every layer over a run, thinned to a bounded number of readings.

    Args:
        readings: the most columns that are kept, at least 2; thinned evenly (see `Thinning`).
    """

    def __init__(self, readings: int = 256) -> None:
        """Start empty."""
        self._thinning = Thinning(readings)
        self._updates: list[int] = []
        self._columns: list[Mapping[str, float]] = []
        self._layers: dict[str, None] = {}  # in the order in which they were first read

    def add(self, update: int, fractions: Mapping[str, float]) -> None:
        """Take the fraction of each layer that was read at an update."""
        self._layers.update(dict.fromkeys(fractions))
        self._thinning.append((self._updates, self._columns), (update, dict(fractions)))

    def forget_after(self, update: int) -> None:
        """Drop what was read after an update."""
        kept = sum(known <= update for known in self._updates)
        self._thinning.cut((self._updates, self._columns), kept)
        still = {layer for column in self._columns for layer in column}
        self._layers = {layer: None for layer in self._layers if layer in still}

    def matrix(self) -> tuple[np.ndarray, list[str], list[int]]:
        """Return float64 `[layers, readings]`, the layers and the updates; NaN: not read."""
        layers = list(self._layers)
        cells = [[column.get(layer, np.nan) for column in self._columns] for layer in layers]
        return np.array(cells).reshape(len(layers), len(self._updates)), layers, list(self._updates)

    def __len__(self) -> int:
        """Return the number of readings kept."""
        return len(self._updates)


def _font() -> Font:
    """Return pillow's own font; without FreeType, or before pillow 10.1, its bitmap font."""
    try:
        return ImageFont.load_default(_FONT_SIZE)
    except (ImportError, TypeError):
        return ImageFont.load_default()


def _row_height(layers: int) -> int:
    """Return a height in pixels: readable for few layers, and bounded in sum for many."""
    return max(2, min(28, 480 // layers), -(-84 // layers))


def _magnified(fractions: np.ndarray, row_height: int) -> np.ndarray:
    """Paint fractions and stretch them to the coloured area by nearest neighbour."""
    column = np.arange(WIDTH) * fractions.shape[1] // WIDTH
    return np.repeat(colours(fractions)[:, column], row_height, axis=0)


def _shortened(name: str, font: Font) -> str:
    """Leave out the front of a long name: layers differ at the end. Only ASCII is in the font."""
    name = name.encode("ascii", "replace").decode()
    if font.getlength(name) <= _LABEL_WIDTH:
        return name
    while font.getlength("..." + name) > _LABEL_WIDTH:
        name = name[1:]
    return "..." + name


def _label_rows(
    pen: ImageDraw.ImageDraw,
    font: Font,
    names: Mapping[int, str],
    left: int,
    top: int,
    row_height: int,
) -> None:
    for row, name in names.items():
        x = left - 6 - font.getlength(name)
        y = top + row * row_height + row_height / 2 - _LINE / 2
        pen.text((x, y), name, fill=_INK, font=font)


def _label_columns(
    pen: ImageDraw.ImageDraw,
    font: Font,
    updates: Sequence[int],
    left: int,
    bottom: int,
) -> None:
    """Name the updates of up to five readings, evenly apart, and the axis."""
    marks = sorted({round(part * (len(updates) - 1) / 4) for part in range(5)})
    for column in marks:
        x = left + (column + 0.5) * WIDTH / len(updates)
        text = f"{updates[column]:,}"
        pen.line((x, bottom, x, bottom + 4), fill=_INK)
        start = x - font.getlength(text) / 2
        pen.text((max(left, start), bottom + 5), text, fill=_INK, font=font)
    x = left + WIDTH / 2 - font.getlength("update") / 2
    pen.text((x, bottom + 5 + _LINE), "update", fill=_INK, font=font)


def _colour_bar(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    font: Font,
    left: int,
    top: int,
    height: int,
) -> None:
    scale = colours(np.linspace(1.0, 0.0, height))[:, None]
    sheet.paste(Image.fromarray(np.repeat(scale, 14, axis=1)), (left, top))
    for fraction in (0.0, 0.5, 1.0):
        y = top + (1 - fraction) * (height - 1)
        pen.line((left + 14, y, left + 17, y), fill=_INK)
        pen.text((left + 20, y - _LINE / 2), f"{fraction:g}", fill=_INK, font=font)
