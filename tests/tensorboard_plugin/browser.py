"""A real browser on the tab: headless Chromium, and what it complained of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"

# TensorBoard's own page says this, whatever is shown.
_NOT_OURS = ("Multiple instances of Three.js",)


def chromium() -> str:
    """Return where Chromium is; skip where there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed: no test in a browser")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("there is no Chromium (apt-get install chromium): no test in a browser")


class Tab:
    """The Dynamo tab in an open page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))

    def _heard(self, message: Any) -> None:
        ours = not any(words in message.text for words in _NOT_OURS)
        if message.type in ("error", "warning") and ours:
            self.complaints.append(f"{message.type}: {message.text}")

    def open(self, address: str, more: str = "") -> Tab:
        """Open the tab, and wait until its first view is there."""
        self.page.goto(f"{address}/#dynamo_probe{more}")
        self.by("tab-overview").wait_for(timeout=60_000)
        return self

    def by(self, name: str) -> Any:
        """Return what has a `data-testid`."""
        return self.page.frame_locator("iframe").locator(f'[data-testid="{name}"]')

    def choose(self, *runs: str) -> None:
        """Show these runs and no others."""
        find, boxes = self.by("run-filter"), self.by("run-list")
        find.fill("")
        boxes.locator("input").first.wait_for()
        while (ticked := boxes.locator("input:checked")).count():
            ticked.first.uncheck()
        for run in runs:
            find.fill(run)
            label = boxes.locator("label:visible").filter(has=self.page.locator("input"))
            label.nth(0).locator("input").check()
        find.fill("")

    def show(self, view: str) -> None:
        """Go to a view."""
        self.by(f"tab-{view}").click()

    def canvas_of(self, panel: Any) -> int:
        """Return how many colours a panel's chart has: 1 where nothing is drawn."""
        script = """panel => {
            const seen = new Set();
            for (const canvas of panel.querySelectorAll('canvas')) {
                if (!canvas.width || !canvas.height) continue;
                const data = canvas.getContext('2d')
                    .getImageData(0, 0, canvas.width, canvas.height).data;
                for (let i = 0; i < data.length; i += 4)
                    seen.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);
            }
            return seen.size;
        }"""
        return int(panel.evaluate(script))

    def settle(self) -> None:
        """Wait until nothing is being fetched and everything in sight is drawn."""
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(250)

    def keep(self, name: str) -> None:
        """Keep a picture of the page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@contextmanager
def browser() -> Iterator[Any]:
    """Start a browser; one at a time in a process."""
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        started = player.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


def context_of(started: Any, *, dark: bool = False) -> Any:
    """Return a context of its own in the browser: its window, clipboard and downloads."""
    context = started.new_context(
        viewport={"width": 1400, "height": 900},
        color_scheme="dark" if dark else "light",
        accept_downloads=True,
    )
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    return context
