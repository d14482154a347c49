"""Figures show the panel's numbers: they are read back from what was drawn."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import PcolorImage
from PIL import Image

from dynamo_probe.logs.panels import Grid, Line, Lines, Panel
from dynamo_probe.report.figures import draw, png
from tests.report.panels import (
    HOSTILE,
    NAN,
    START,
    all_panels,
    axis,
    bars,
    grid,
    heat,
    lines,
    mark,
    raster,
)


def plots(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def image(axes: Axes) -> PcolorImage:
    [found] = [one for one in axes.images if isinstance(one, PcolorImage)]
    return found


def names(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in plots(figure) for text in axes.texts]


@pytest.mark.parametrize("panel", all_panels(), ids=lambda panel: type(panel).__name__)
def test_every_figure_has_a_title_axes_with_names_and_comes_out_as_png(panel: Panel) -> None:
    figure = draw(panel)
    with Image.open(io.BytesIO(png(figure))) as picture:
        picture.verify()
        assert picture.format == "PNG" and picture.width == 836
    shown = figure.get_suptitle() if isinstance(panel, Grid) else figure.axes[0].get_title("left")
    assert shown == panel.title
    labels = [one.get_xlabel() for one in plots(figure)] + [
        one.get_ylabel() for one in plots(figure)
    ]
    assert sum(map(bool, labels)) >= 2


def test_lines_are_the_numbers_with_their_gaps() -> None:
    figure = draw(lines())
    drawn = figure.axes[0].lines
    np.testing.assert_array_equal(drawn[0].get_xdata(), [0, 10, 20, 30])
    np.testing.assert_array_equal(drawn[0].get_ydata(), [4, NAN, 1, 2])
    np.testing.assert_array_equal(drawn[1].get_ydata(), [3, 3.5])
    assert drawn[0].get_linestyle() == "-" and drawn[1].get_linestyle() == "--"
    assert drawn[0].get_color() != drawn[1].get_color()
    assert names(figure) == ["fc1", "target"]
    assert figure.axes[0].get_ylabel() == "loss (nats)"
    assert figure.axes[0].get_xlabel() == "time (updates)"


def test_a_point_between_gaps_has_a_marker() -> None:
    one = Line("a", axis(*range(400)), np.full(400, NAN))
    one.values[:300] = 1.0
    one.values[357] = 2.0
    [drawn] = draw(Lines("k", "t", "y", (one,))).axes[0].lines
    assert 357 in drawn.get_markevery()
    assert len(drawn.get_markevery()) < 12


def test_a_mark_is_a_line_with_its_label_and_many_are_named_in_the_legend() -> None:
    figure = draw(lines())
    assert list(figure.axes[0].lines[2].get_xdata()) == [20, 20]
    assert texts(figure) == ["recycled"]
    many = tuple(mark(f"recycled: layer {n}", n) for n in range(20)) + (mark("alert: x", 25),)
    figure = draw(replace(lines(), marks=many))
    assert names(figure)[2:] == ["recycled (20)", "alert (1)"]
    assert [one.get_xdata()[0] for one in figure.axes[0].lines[2:]] == [*range(20), 25]


def test_marks_of_five_kinds_are_all_drawn() -> None:
    many = tuple(mark(f"{'abcde'[n % 5]}: {n}", n) for n in range(30))
    figure = draw(replace(lines(), marks=many))
    assert names(figure)[2:] == ["a (6)", "b (6)", "c (6)", "other marks (12)"]
    assert len(figure.axes[0].lines) == 2 + 30


def test_axes_are_those_asked_for_and_say_it_where_they_are_not_known() -> None:
    wall = draw(lines(), "wall").axes[0]
    assert wall.get_xlabel() == "wall time since the first reading (hours)"
    np.testing.assert_allclose(wall.lines[0].get_xdata(), [0, 10, 20, 30])
    late = draw(lines(), "wall", origin=START - 7200).axes[0]
    np.testing.assert_allclose(late.lines[0].get_xdata(), [2, 12, 22, 32])
    steps = draw(lines(), "environment steps").axes[0]
    np.testing.assert_allclose(steps.lines[0].get_xdata(), [0, 40, 80, 120])
    assert "environment steps" in steps.get_xlabel()
    none = draw(lines(), "epochs").axes[0]
    np.testing.assert_allclose(none.lines[0].get_xdata(), [0, 10, 20, 30])
    assert "updates" in none.get_xlabel() and "epochs: not known here" in none.get_xlabel()


def test_a_logarithmic_axis_needs_something_above_zero() -> None:
    panel = replace(lines(), logarithmic=True)
    assert draw(panel).axes[0].get_yscale() == "log"
    below = (Line("a", axis(0, 1), np.array([-1.0, 0.0])),)
    assert draw(replace(panel, lines=below)).axes[0].get_yscale() == "linear"


def test_a_heatmap_is_the_numbers_at_their_times_and_grey_where_there_are_none() -> None:
    figure = draw(heat())
    axes = plots(figure)[0]
    drawn = image(axes)
    np.testing.assert_array_equal(drawn.get_array().filled(NAN), heat().values)
    np.testing.assert_allclose(drawn.get_extent(), [-5, 145, -0.5, 1.5])
    np.testing.assert_allclose(drawn._Ax, [-5, 5, 55, 145])
    assert drawn.get_cmap().name == "cividis" and drawn.get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fc1", "fc2"]
    top, bottom = axes.get_ylim()[1], axes.get_ylim()[0]
    assert top < bottom  # the first row is the top one
    assert to_hex(axes.get_facecolor()) == "#d9d9d9"
    assert "grey: not read" in names(figure)
    full = replace(heat(), values=np.ones((2, 3), np.float32))
    assert names(draw(full)) == []


def test_what_is_seen_of_a_heatmap_are_its_colours() -> None:
    """The pixels themselves: at the middle of each cell."""
    figure = draw(replace(heat(), marks=()))
    picture = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))
    axes, drawn = plots(figure)[0], image(plots(figure)[0])
    for row, column, value in ((0, 0, 0.0), (0, 1, 0.5), (0, 2, 1.0), (1, 1, 0.25), (1, 2, 0.75)):
        x, y = axes.transData.transform([[0.0, 30.0, 100.0][column], row])
        seen = picture[picture.shape[0] - 1 - int(y), int(x)]
        wanted = np.array(drawn.get_cmap()(value)[:3]) * 255
        assert np.abs(seen - wanted).max() < 2, (row, column)
    x, y = axes.transData.transform([0.0, 1])
    around = picture[picture.shape[0] - 1 - int(y) :, int(x) :][:8, :8]
    assert (around.max(-1) - around.min(-1)).max() < 3 and around.mean() > 150  # grey


def test_columns_whose_time_is_unknown_are_left_out_and_others_sorted() -> None:
    panel = heat()
    odd = {**panel.axis, "clock": np.array([7.0, NAN, 3.0])}
    drawn = image(plots(draw(replace(panel, axis=odd, marks=()), "clock"))[0])
    np.testing.assert_array_equal(drawn.get_array().filled(NAN), panel.values[:, [2, 0]])


def test_a_raster_shows_states_at_the_threshold() -> None:
    figure = draw(raster(), tau=0.1)
    axes = plots(figure)[0]
    found = image(axes).get_array().filled(NAN)
    np.testing.assert_array_equal(found, [[0, 0, 1, 1], [1, 2, 2, 2], [NAN, 1, 0, 0]])
    dots = axes.lines[0]
    np.testing.assert_array_equal(dots.get_xdata(), [10, 20])
    np.testing.assert_array_equal(dots.get_ydata(), [0, 2])
    assert dots.get_markeredgecolor() == "black"
    assert names(figure) == [
        "dormant (tau = 0.1)",
        "live",
        "pruned",
        "grey: not read",
        "recycled (2)",
    ]
    assert axes.get_ylabel() == "unit (index, 3 of 9 kept)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "5", "7"]
    zero = image(plots(draw(raster(), tau=0.0))[0]).get_array().filled(NAN)
    np.testing.assert_array_equal(zero, [[0, 1, 1, 1], [1, 2, 2, 2], [NAN, 1, 1, 0]])
    hours = draw(raster(), "wall").axes[0].lines[0].get_xdata()
    np.testing.assert_allclose(hours, [10, 20])


def test_a_grid_shows_six_frames_from_the_first_to_the_last() -> None:
    panel = grid()
    figure = draw(panel)
    shown = plots(figure)
    assert len(shown) == 6
    assert shown[0].get_title() == "update 0" and shown[-1].get_title() == "update 255"
    steps = panel.axis["updates"].tolist()
    for axes in shown:
        place = steps.index(int(axes.get_title().removeprefix("update ")))
        found = image(axes).get_array().filled(NAN)
        np.testing.assert_array_equal(found, panel.frames[place])
    assert names(figure) == ["grey: no such head, or not read"]


def test_frames_lie_evenly_on_a_log_axis() -> None:
    panel = grid(count=6)
    long = replace(panel, axis=axis(*range(1001)), frames=np.zeros((1001, 2, 2), np.float32))
    steps = [int(one.get_title().replace(",", "")[7:]) for one in plots(draw(long))]
    logs = np.log(np.array(steps) + 1.0)
    assert len(steps) == 6 and steps[0] == 0 and steps[-1] == 1000
    np.testing.assert_allclose(np.diff(logs), np.log(1001) / 5, rtol=0.15)


def test_bars_are_the_shares_and_missing_ones_are_said() -> None:
    figure = draw(bars())
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [0.5, 0.3, 0.2]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "4"]
    missing = draw(replace(bars(), values=np.array([0.5, NAN, 0.2])))
    assert names(missing) == ["grey: not read"]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_never_formulas_nor_letters_that_the_font_lacks(name: str) -> None:
    for panel in all_panels(name, name):
        png(draw(panel))  # a warning would fail this test


def empty_panels() -> list[Panel]:
    none = axis()
    return [
        Lines("k", "t", "y", ()),
        Lines("k", "t", "y", (Line("a", none, np.array([])),), logarithmic=True),
        replace(heat(), axis=none, values=np.zeros((2, 0), np.float32)),
        replace(heat(), rows=(), values=np.zeros((0, 3), np.float32)),
        replace(heat(), values=np.full((2, 3), NAN, np.float32), range=(NAN, NAN)),
        replace(heat(), axis=axis(5, 5, 5), range=(1.0, 1.0)),
        replace(raster(), axis=none, codes=np.zeros((3, 0), np.uint8)),
        replace(raster(), recycled=np.zeros((0, 2), np.int64), taus=()),
        replace(grid(), axis=none, frames=np.zeros((0, 2, 2), np.float32)),
        replace(grid(), frames=np.full((9, 2, 2), NAN, np.float32)),
        replace(bars(), categories=(), values=np.array([])),
        replace(bars(), values=np.full(3, NAN)),
    ]


@pytest.mark.parametrize("panel", empty_panels(), ids=lambda panel: type(panel).__name__)
def test_panels_with_nothing_in_them_are_drawn(panel: Panel) -> None:
    for name in ("updates", "wall", "environment steps"):
        png(draw(panel, name))


@pytest.mark.parametrize("value", [1e300, -1e300, np.inf, 1e-320])
def test_numbers_of_any_size_are_drawn(value: float) -> None:
    one = Line("a", axis(0, 1, 2), np.array([1.0, value, 2.0]))
    png(draw(Lines("k", "t", "y", (one,))))
    png(draw(Lines("k", "t", "y", (one,), logarithmic=True)))


def test_many_lines_are_all_drawn_and_the_legend_says_how_many_it_leaves_out() -> None:
    many = tuple(Line(f"layer {n}", axis(0, 1), np.array([n, n + 1.0])) for n in range(200))
    figure = draw(Lines("k", "t", "y", many))
    drawn = figure.axes[0].lines
    assert len(drawn) == 200
    assert len({(one.get_color(), one.get_marker()) for one in drawn[:49]}) == 49
    assert names(figure)[-1] == "and 184 more" and len(names(figure)) == 17


def test_drawing_touches_no_global_state() -> None:
    import sys

    import matplotlib

    before = dict(matplotlib.rcParams)
    for panel in all_panels():
        png(draw(panel))
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_what_is_no_panel_is_refused() -> None:
    with pytest.raises((TypeError, AttributeError)):
        draw("loss")  # type: ignore[arg-type]
