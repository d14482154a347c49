"""What a notebook shows: the history's figures, in HTML that is valid whatever the names are."""

import math
import re
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_probe.instrument import Reading
from dynamo_probe.sinks import History
from tests.display.pages import HOSTILE, figure, filled, parsed, skeleton, tables, text

HEADS = ["tag", "update", "newest", "min", "max", "over updates"]


def test_the_figures_are_those_that_were_read():
    shown = tables(filled()._repr_html_())
    assert list(shown) == ["Newest figures", "One figure per unit"]
    heads, *rows = shown["Newest figures"]
    assert heads == HEADS
    read = {
        "dormancy/tau=0.1": [step / 1000 for step in range(10, 210, 10)],
        "rank/stable": [12_345.678 - step for step in range(10, 210, 10)],
        "redo/recycled_total": [1000 * step for step in range(10, 210, 10)],
        "dormancy/layer/fc1/tau=0.1": [1 / step for step in range(10, 210, 10)],
    }
    assert [row[0] for row in rows] == list(read)  # pooled figures before those of layers
    for tag, update, newest, low, high, title in rows:
        values = read[tag]
        assert update == "200"
        for cell, value in ((newest, values[-1]), (low, min(values)), (high, max(values))):
            assert figure(cell) == pytest.approx(value, rel=5e-5)
        assert title.startswith(f"{tag}: ") and "at update 10, " in title


def test_a_figure_per_unit_is_summarised():
    heads, row = tables(filled()._repr_html_())["One figure per unit"]
    assert heads == ["tag", "update", "units", "min", "median", "max"]
    middle = statistics.median([0.25, 3.0, 1.5, 0.5])
    assert row == ["dormancy/scores/fc1", "200", "6 (2 not finite)", "0.25", f"{middle:g}", "3"]


# Above that, five digits may round up to infinity.
NUMBERS = st.floats(-1.797e308, 1.797e308) | st.sampled_from([math.nan, math.inf, -math.inf])


@given(st.lists(NUMBERS, max_size=30))
def test_any_figures_per_unit_are_summarised(values):
    history = History()
    history.add([Reading(3, "scores", np.array(values, dtype=np.float64))])
    _, (_, _, units, *rest) = tables(history._repr_html_())["One figure per unit"]
    finite = [value for value in values if math.isfinite(value)]
    assert int(units.split()[0]) == len(values)
    if not finite:
        assert rest == ["nan"] * 3
        return
    ordered = sorted(finite)
    left, right = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    middle = left if left == right else left / 2 + right / 2
    wanted = [ordered[0], middle, ordered[-1]]
    assert [figure(cell) for cell in rest] == pytest.approx(wanted, rel=6e-5, abs=1e-320)


def test_what_is_not_finite_is_said():
    history = History()
    values = (1.0, math.nan, 3.0, -math.inf)
    history.add(Reading(step, "loss", value) for step, value in enumerate(values))
    history.add([Reading(1, "never", math.nan)])
    _, loss, never = tables(history._repr_html_())["Newest figures"]
    assert loss[:5] == ["loss", "3", "-inf", "1", "3"]
    assert loss[5].endswith("2 of 4 not finite")
    assert never[:5] == ["never", "1", "nan", "nan", "nan"]


def test_an_empty_history_says_so():
    page = History()._repr_html_()
    assert tables(page) == {}
    assert text(parsed(page)) == "History(empty)"


@pytest.mark.parametrize("tag", HOSTILE)
def test_a_hostile_tag_is_text(tag):
    def page(name: str) -> str:
        history = History()
        history.add([Reading(1, name, 0.5), Reading(1, f"{name}/units", np.ones(2))])
        return history._repr_html_()

    shown = page(tag)
    assert skeleton(shown) == skeleton(page("a"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", shown)
    assert len(shown) < 8_000


@settings(max_examples=60)
@given(st.lists(st.text(st.characters()), min_size=1, max_size=5, unique=True), st.floats())
def test_any_tags_make_valid_html_with_a_row_each(tags, value):
    history = History()
    history.add(Reading(1, tag, value) for tag in tags)
    _, *rows = tables(history._repr_html_())["Newest figures"]
    assert len(rows) == len(tags)


def test_thousands_of_tags_stay_a_small_page_and_are_counted():
    history = History()
    curve = np.random.default_rng(0).normal(size=2_000)
    for layer in range(3_000):
        history.add([Reading(1, f"dormancy/layer/blocks.{layer}.mlp.up/tau=0.1", 0.1)])
        history.add([Reading(1, f"dormancy/scores/blocks.{layer}.mlp.up", np.ones(64))])
    for number in range(70):
        history.add(Reading(at, f"pooled/{number}", x) for at, x in enumerate(curve.tolist()))
    page = history._repr_html_()
    assert len(page) < 200_000
    _, *rows = tables(page)["Newest figures"]
    assert len(rows) == 60
    assert all(row[0].startswith("pooled/") for row in rows)
    assert text(parsed(page)).endswith("and 6,010 more tags: history.tags() lists them")


def test_nothing_comes_from_outside_and_colours_are_those_of_the_page():
    page = filled()._repr_html_()
    assert not re.search(r"https?:|url\(|@import|\bid=|\bon\w+=", page)
    assert {str(one.tag) for one in parsed(page).iter()}.isdisjoint({"script", "style", "link"})
    styles = " ".join(one.get("style", "") for one in parsed(page).iter())
    assert "currentColor" in page and "color:inherit" in styles
    assert not re.search(r"background|color:(?!inherit)", styles)


def test_every_picture_has_a_title_and_every_column_a_head():
    page = parsed(filled()._repr_html_())
    pictures = [one for one in page.iter() if str(one.tag).endswith("svg")]
    assert len(pictures) == 4
    for picture in pictures:
        assert picture.get("role") == "img"
        assert [str(part.tag) for part in picture][0].endswith("title")
    for table in page.iter("table"):
        assert all(head.get("scope") == "col" for head in table.iter("th"))
