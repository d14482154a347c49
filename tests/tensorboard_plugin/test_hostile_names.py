"""Names that would be code anywhere else, and more runs than anybody looks at, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.sinks.tensorboard import TensorBoard
from tests.tensorboard_plugin.browser import Tab, browser, chromium, context_of
from tests.tensorboard_plugin.servers import Server, tensorboard

SCRIPT = "<img src=x onerror=window.top.hacked=1><script>window.top.hacked=1</script>"
RUN = "<img src=x onerror=window.top.hacked=1>\"'&"
LAYERS = [
    SCRIPT,
    "javascript:window.top.hacked=1",
    "${hacked}{b}\\n%s",
    "\u202eünï ✓",
    "y" * 10_000,
]


def write(folder: Path, updates: int = 4) -> None:
    sink = TensorBoard(folder)
    for step in range(1, updates + 1):
        readings = [
            Reading(step, f"dormancy/scores/{layer}", np.random.default_rng(step).random(8))
            for layer in LAYERS
        ]
        readings += [
            Reading(step, f"{SCRIPT}/density".replace("/script", "script"), 0.5),
            Reading(step, "clock/" + SCRIPT, float(step)),
            Reading(step, "induction/layers", 1.0),
            Reading(step, "induction/sink_by_head", np.ones(2) / step),
        ]
        events = [Event(step, "alert", SCRIPT, {"reason": SCRIPT, SCRIPT: SCRIPT})]
        events.append(Event(step, "recycled", LAYERS[0], {"units": [1]}))
        sink.write(step, readings, events)
    sink.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    chromium()
    top = tmp_path_factory.mktemp("logs")
    write(top / RUN)
    for number in range(500):
        sink = TensorBoard(top / f"many/{number:03}")
        sink.write(1, [Reading(1, "dormancy/tau=0.1", number / 500)], [])
        sink.close()
    output = tmp_path_factory.mktemp("output") / "tensorboard.txt"
    with tensorboard(top, fast=True, output=output) as running:
        running.wait_for(501)
        yield running


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as found:
        yield found


def test_names_are_text_and_nothing_else(server: Server, started: Any) -> None:
    context = context_of(started)
    tab = Tab(context.new_page()).open(server.address)
    tab.choose(RUN)
    for view in ("overview", "units", "connections", "heads"):
        tab.show(view)
        tab.settle()
    tab.show("units")
    body = tab.page.frame_locator("iframe").locator("body")
    for index, layer in enumerate(LAYERS):
        tab.by("open-layer").select_option(index=index + 1)  # the first option is no layer
        tab.by("panel-raster").wait_for()
        tab.settle()
        shown = layer.replace("\u202e", "")  # what would turn the text around is left out
        assert shown[:20] in tab.by("panel-raster").inner_text()
        canvas = tab.by("panel-raster").locator("canvas").first
        canvas.hover()
        tab.page.wait_for_timeout(200)
    assert RUN in body.inner_text()
    assert len(body.inner_text()) < 60_000  # a name of 10,000 characters is cut
    assert tab.page.frames[-1].locator("img").count() == 0
    assert tab.page.evaluate("window.hacked") is None
    for kind in ("csv", "svg"):
        with tab.page.expect_download() as waiting:
            tab.by("panel-dormant").locator(f'[data-testid="export-{kind}"]').click()
        name = waiting.value.suggested_filename
        assert not set(name) & set("<>\"'&/\\") and len(name) < 200
        text = Path(waiting.value.path()).read_text("utf-8-sig")
        assert kind == "csv" or "<img" not in text
    tab.keep("hostile")
    assert tab.complaints == []
    context.close()


def test_of_500_runs_few_are_shown_and_all_can_be_found(server: Server, started: Any) -> None:
    context = context_of(started)
    tab = Tab(context.new_page()).open(server.address)
    tab.settle()
    assert tab.by("run-list").locator("input:checked").count() <= 8
    tab.choose("many/499")
    tab.settle()
    body = tab.page.frame_locator("iframe").locator("body").inner_text()
    assert "many/499" in body
    tab.keep("many-runs")
    assert tab.complaints == []
    context.close()
