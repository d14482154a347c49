"""The tab as people see it: in Chromium, on the logs of the demos."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_probe.demos.registry import DEMOS
from dynamo_probe.logs.reading import read_logs
from dynamo_probe.logs.runlog import RunLog
from dynamo_probe.logs.views import VIEWS, view
from tests.tensorboard_plugin.browser import Tab, browser, chromium, context_of
from tests.tensorboard_plugin.servers import Server, tensorboard

RUNS = ["dormancy/plain", "dormancy/redo", "heads/fresh", "heads/repeated", "sparsity/granet"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, RunLog]]:
    chromium()
    top = tmp_path_factory.mktemp("demos")
    with warnings.catch_warnings():  # the demos raise alerts: that is what they show
        warnings.simplefilter("ignore")
        for name, demo in DEMOS.items():
            demo.run(top / name, updates=demo.updates // 4)
    return top, read_logs(top)


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest,
    logs: tuple[Path, dict[str, RunLog]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    output = tmp_path_factory.mktemp("output") / "tensorboard.txt"
    fast = getattr(request, "param", True)
    with tensorboard(logs[0], fast=fast, output=output) as running:
        running.wait_for(len(RUNS))
        yield running


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def context(started: Any) -> Iterator[Any]:
    found = context_of(started)
    yield found
    found.close()


@pytest.fixture
def tab(context: Any, server: Server) -> Iterator[Tab]:
    found = Tab(context.new_page())
    yield found.open(server.address)
    found.page.close()
    assert found.complaints == []


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("server", [True, False], ids=["rust", "python"], indirect=True)
def test_every_view_shows_every_panel_of_every_demo(
    tab: Tab, logs: tuple[Path, dict[str, RunLog]], run: str
) -> None:
    tab.choose(run)
    for name in VIEWS:
        tab.show(name)
        tab.settle()
        wanted = view(logs[1][run], name)
        for panel in wanted.panels:
            shown = tab.by(f"panel-{panel.key}")
            shown.scroll_into_view_if_needed()
            shown.locator(".chart[data-drawn]").wait_for()
            assert panel.title in shown.inner_text()
            assert tab.canvas_of(shown) > 3, f"nothing is drawn in {panel.key}"
        if wanted.empty:
            assert wanted.empty in tab.page.frame_locator("iframe").locator("body").inner_text()
        for sentence in wanted.sentences:
            assert sentence in tab.page.frame_locator("iframe").locator("body").inner_text()
        tab.keep(f"{run.replace('/', '-')}-{name}")


def test_the_slider_changes_the_threshold_of_what_is_shown(tab: Tab) -> None:
    tab.choose("dormancy/plain")
    tab.show("units")
    panel = tab.by("panel-dormant")
    panel.wait_for()
    assert "tau = 0.1" in panel.inner_text()
    tab.by("tau").focus()
    for _ in range(3):
        tab.page.keyboard.press("ArrowRight")
    tab.settle()
    assert "tau = 0.3" in tab.by("tau-value").inner_text()
    assert "tau = 0.3" in tab.by("panel-dormant").inner_text()


def test_a_layer_is_opened_by_a_click_and_by_the_keyboard(tab: Tab) -> None:
    tab.choose("dormancy/redo")
    tab.show("units")
    tab.settle()
    assert tab.by("panel-raster").count() == 0
    canvas = tab.by("panel-dormant").locator("canvas").first
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.35})
    tab.by("panel-raster").wait_for()
    tab.settle()
    assert "Units of hidden" in tab.by("panel-raster").inner_text()
    assert tab.canvas_of(tab.by("panel-raster")) > 3
    tab.keep("raster")
    tab.by("raster-close").click()
    assert tab.by("panel-raster").count() == 0
    tab.by("open-layer").select_option("hidden3")
    tab.by("panel-raster").wait_for()
    assert "Units of hidden3" in tab.by("panel-raster").inner_text()


def test_runs_stand_side_by_side_on_one_axis(tab: Tab) -> None:
    tab.choose("dormancy/plain", "dormancy/redo")
    tab.show("units")
    tab.settle()
    panels = tab.by("panel-dormant")
    assert panels.count() == 2
    left, right = (panels.nth(index).bounding_box() for index in range(2))
    assert left["y"] == pytest.approx(right["y"], abs=2) and left["x"] + left["width"] <= right["x"]
    tab.keep("comparison")
    for axis in ("wall", "updates"):
        tab.by("axis").select_option(axis)
        tab.settle()


def test_what_is_shown_can_be_taken_along(tab: Tab, logs: tuple[Path, dict[str, RunLog]]) -> None:
    tab.choose("dormancy/plain")
    tab.show("units")
    tab.settle()
    panel = tab.by("panel-dormant")
    files = {}
    for kind in ("png", "svg", "csv"):
        with tab.page.expect_download() as waiting:
            panel.locator(f'[data-testid="export-{kind}"]').click()
        assert waiting.value.suggested_filename.endswith(f".{kind}")
        files[kind] = Path(waiting.value.path()).read_bytes()
    assert files["png"].startswith(b"\x89PNG") and len(files["png"]) > 5_000
    assert b"<svg" in files["svg"][:300] and b"hidden2" in files["svg"]
    rows = list(csv.reader(io.StringIO(files["csv"].decode("utf-8-sig"))))
    found = view(logs[1]["dormancy/plain"], "units").panels[0]
    assert rows[0][0] == "updates"
    for r, layer in enumerate(found.rows):  # type: ignore[union-attr]
        column = rows[0].index(layer)
        for c, update in enumerate(found.axis["updates"].tolist()):  # type: ignore[union-attr]
            assert int(rows[1 + c][0]) == update
            value = float(found.values[r, c])  # type: ignore[union-attr]
            assert float(rows[1 + c][column]) == pytest.approx(value, abs=1e-5)


def test_a_link_brings_the_view_back(tab: Tab, context: Any) -> None:
    tab.choose("dormancy/redo")
    tab.show("units")
    tab.by("open-layer").select_option("hidden2")
    tab.by("panel-raster").wait_for()
    tab.by("tau").focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.settle()
    tab.by("link").click()
    tab.page.wait_for_timeout(300)
    address = tab.page.evaluate("navigator.clipboard.readText()")
    again = Tab(context.new_page())
    again.page.goto(address)
    again.by("panel-raster").wait_for(timeout=30_000)
    assert "Units of hidden2" in again.by("panel-raster").inner_text()
    assert "tau = 0.075" in again.by("tau-value").inner_text()
    assert again.by("tab-units").get_attribute("aria-selected") == "true"
    checked = again.by("run-list").locator("input:checked")
    assert checked.count() == 1
    assert again.complaints == []
    again.page.close()


def test_heads_are_shown_at_the_time_of_the_slider(tab: Tab) -> None:
    tab.choose("heads/fresh")
    tab.show("heads")
    panel = tab.by("panel-induction-prefix-matching")
    panel.scroll_into_view_if_needed()
    tab.settle()
    slider = panel.locator('[data-testid="frame"]')
    before = panel.inner_text()
    slider.focus()
    tab.page.keyboard.press("Home")
    tab.settle()
    assert panel.inner_text() != before
    assert "update 1 " in panel.inner_text()


def test_views_can_be_reached_with_the_keyboard_alone(tab: Tab) -> None:
    tab.by("tab-overview").focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("Enter")
    tab.settle()
    assert tab.by("tab-units").get_attribute("aria-selected") == "true"


def test_dark_follows_tensorboard(server: Server, started: Any) -> None:
    dark = context_of(started, dark=True)
    tab = Tab(dark.new_page()).open(server.address)
    tab.settle()
    script = "getComputedStyle(document.body).backgroundColor"
    colour = tab.page.frames[-1].evaluate(script)
    assert max(int(n) for n in re.findall(r"\d+", colour)[:3]) < 80
    tab.keep("dark")
    assert tab.complaints == []
    dark.close()
