"""The small curves show the points of the series, and nothing else."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.display.sparkline import ASCII, BLOCKS, blocks, heights, kept, svg

ANY = st.lists(st.floats(), min_size=1, max_size=300)


def paths(picture: str) -> tuple[str, list[tuple[float, float]], list[float], int]:
    """Read a picture: its title, the points of the line, the marks of gaps, the strokes."""
    root = ElementTree.fromstring(picture)
    title = root.findtext("title")
    assert title is not None
    drawn = {path.get("stroke"): path.get("d") or "" for path in root.findall("path")}
    line = drawn.get("currentColor", "")
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", line)]
    gaps = [float(x) for x in re.findall(r"M([\d.]+) 19v-3", drawn.get("#d55e00", ""))]
    return title, points, gaps, line.count("M")


@given(ANY)
def test_each_character_is_the_level_of_its_point(values):
    series = np.array(values)
    finite = [value for value in values if math.isfinite(value)]
    shown = blocks(series, width=300)
    assert len(shown) == len(values)
    for value, character in zip(values, shown, strict=True):
        if not math.isfinite(value):
            assert character == "×"
        elif max(finite) == min(finite):
            assert character == BLOCKS[4]
        elif value == max(finite):
            assert character == "█"
        elif value == min(finite):
            assert character == "▁"


def test_levels_rise_evenly():
    assert blocks(np.linspace(-3, 4, 8)) == BLOCKS
    assert blocks(np.linspace(-3, 4, 8)[::-1], levels=ASCII) == ASCII[::-1]


def test_many_points_are_averaged_in_groups_and_what_is_not_finite_shows():
    series = np.repeat([0.0, 7.0, 3.0, 0.0], 1000)
    assert blocks(series, width=4) == "▁█▄▁"
    series[1234] = math.inf
    assert blocks(series, width=4) == "▁×▄▁"
    assert blocks(series, width=4, levels=ASCII) == "_x+_".replace("+", ASCII[3])
    assert len(blocks(np.zeros(20_000), width=16)) == 16
    assert blocks(np.array([])) == ""


@pytest.mark.parametrize("scale", [1e-320, 1e-9, 1.0, 1e300, 1.7e308])
def test_heights_do_not_depend_on_the_scale(scale):
    values = np.array([-1.0, -0.5, 0.0, 0.25, 1.0]) * scale
    assert heights(values, -scale, scale) == pytest.approx([0, 0.25, 0.5, 0.625, 1], abs=1e-3)


@given(ANY, st.integers(1, 40), st.data())
def test_what_is_kept_has_the_ends_and_the_extremes_of_every_column(values, columns, data):
    gaps = data.draw(st.lists(st.integers(0, 50), min_size=len(values), max_size=len(values)))
    steps, series = np.cumsum(gaps), np.array(values)
    chosen = kept(steps, series, columns).tolist()
    assert chosen == sorted(set(chosen))
    assert {0, len(values) - 1} <= set(chosen)
    assert len(chosen) <= max(columns, 3 * columns + 2)
    if len(values) <= columns:
        assert chosen == list(range(len(values)))
        return
    span = max(int(steps[-1] - steps[0]), 1)
    for column in range(columns):
        within = [
            at
            for at in range(len(values))
            if min(int((steps[at] - steps[0]) / span * columns), columns - 1) == column
        ]
        finite = [values[at] for at in within if math.isfinite(values[at])]
        here = [values[at] for at in within if at in chosen]
        if finite:
            assert min(finite) in here and max(finite) in here
        if len(finite) < len(within):
            assert not all(map(math.isfinite, here))


def test_points_lie_at_their_update_and_their_value():
    steps, values = np.array([10, 20, 60, 110]), np.array([1.0, 3.0, 2.0, 5.0])
    title, points, gaps, strokes = paths(svg("rank/stable", steps, values))
    assert title == "rank/stable: 1 at update 10, 5 at update 110; from 1 to 5"
    expected = [
        (2 + (step - 10) / 100 * 116, 18 - (value - 1) / 4 * 16)
        for step, value in zip(steps, values, strict=True)
    ]
    assert points == [pytest.approx(point, abs=0.051) for point in expected]
    assert (gaps, strokes) == ([], 1)


def test_what_is_not_finite_is_a_gap_with_a_mark_and_is_counted():
    values = np.array([1.0, math.nan, 2.0, math.inf, 3.0])
    title, points, gaps, strokes = paths(svg("a", np.arange(5), values))
    assert title == "a: 1 at update 0, 3 at update 4; from 1 to 3; 2 of 5 not finite"
    assert [y for _, y in points] == [18, 10, 2]
    assert gaps == [31, 89]
    assert strokes == 3


def test_nothing_finite_and_a_single_point():
    title, points, gaps, _ = paths(svg("a", np.array([7]), np.array([math.nan])))
    assert (title, points, gaps) == ("a: nan at update 7; 1 of 1 not finite", [], [60])
    title, points, gaps, _ = paths(svg("a", np.array([7]), np.array([0.5])))
    assert (title, points, gaps) == ("a: 0.5 at update 7; from 0.5 to 0.5", [(60, 10)], [])


@given(ANY, st.text(st.characters()))
def test_any_series_under_any_name_is_well_formed_and_inside_the_picture(values, tag):
    title, points, _, _ = paths(svg(tag, np.arange(len(values)), np.array(values)))
    assert len(title) < 300
    assert all(2 <= x <= 118 and 2 <= y <= 18 for x, y in points)


def test_a_long_series_is_a_small_picture():
    values = np.random.default_rng(0).normal(size=20_000)
    picture = svg("a", np.arange(20_000) * 50, values)
    _, points, _, _ = paths(picture)
    assert min(y for _, y in points) == 2 and max(y for _, y in points) == 18
    assert len(picture) < 2_500
