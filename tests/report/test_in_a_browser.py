"""The report in Chromium: from the file alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynamo_probe.instrument import Reading
from dynamo_probe.report.html import write_report
from dynamo_probe.sinks.tensorboard import TensorBoard
from tests.tensorboard_plugin.browser import browser, context_of


def test_the_page_asks_for_nothing_but_itself(tmp_path: Path) -> None:
    with browser() as started:
        sink = TensorBoard(tmp_path / "run" / "<script src=http://localhost:9>")
        for step in range(1, 5):
            scores = np.random.default_rng(step).random(8)
            sink.write(step, [Reading(step, "dormancy/scores/http:--x", scores)], [])
        sink.close()
        files = write_report(tmp_path / "run", tmp_path / "report.html")
        page = context_of(started).new_page()
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(files.html.as_uri())
        page.wait_for_load_state("networkidle")
        assert [url for url in asked if not url.startswith("data:")] == [files.html.as_uri()]
        assert said == []
        images = page.locator("img")
        assert images.count() == len(files.figures) > 2
        for index in range(images.count()):
            assert images.nth(index).evaluate("image => image.complete && image.naturalWidth") > 100
            assert len(images.nth(index).get_attribute("alt") or "") > 20
