"""How quick the Dynamo tab is on a large run: `python -m benchmarks.overhead.tab_of_large_runs`.

200 layers of 4,096 units, as many readings as a run of 10,000 keeps. TensorBoard and headless
Chromium share the machine with this script. Printed are the time from the first click on a view
until it is drawn, and the frames while the page is scrolled through.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.overhead.log_of_large_runs import readings_of, scores_of_run
from dynamo_probe.sinks.tensorboard import TensorBoard
from tests.tensorboard_plugin.browser import Tab, browser, context_of
from tests.tensorboard_plugin.servers import tensorboard

_FRAMES = """async () => {
    const page = document.scrollingElement, gaps = [];
    let last = performance.now();
    const end = last + 4000, speed = (page.scrollHeight - page.clientHeight) / 4000;
    while (last < end) {
        const now = await new Promise(requestAnimationFrame);
        gaps.push(now - last);
        page.scrollTop += (now - last) * speed;
        last = now;
    }
    gaps.sort((a, b) => a - b);
    return [gaps.length / 4, gaps[Math.floor(gaps.length / 2)],
            gaps[Math.floor(gaps.length * 0.95)], gaps[gaps.length - 1]];
}"""


def write(folder: Path, layers: int, units: int, readings: int) -> None:
    sink = TensorBoard(folder)
    for step, scores in scores_of_run(layers, units, readings):
        sink.write(step, readings_of(step, scores), [])
    sink.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--readings", type=int, default=512)
    options = parser.parse_args()
    top = Path(tempfile.mkdtemp())
    write(top / "logs/large", options.layers, options.units, options.readings)
    size = sum(path.stat().st_size for path in (top / "logs/large").iterdir())
    print(f"event file: {size / 1e6:.1f} MB")
    with tensorboard(top / "logs", fast=True, output=top / "output.txt") as server:
        server.wait_for(1)
        with browser() as started:
            started_at = time.perf_counter()
            tab = Tab(context_of(started).new_page()).open(server.address)
            tab.by("panel-dormant-share").locator("canvas").first.wait_for()
            took = time.perf_counter() - started_at
            print(f"TensorBoard itself, the tab and its overview: {took:.2f} s")
            for view, panel in (("units", "panel-dormant"),):
                clicked = time.perf_counter()
                tab.show(view)
                tab.by(panel).locator("canvas").first.wait_for()
                while tab.canvas_of(tab.by(panel)) < 10:
                    pass
                print(f"{view}: drawn {time.perf_counter() - clicked:.2f} s after the click")
            clicked = time.perf_counter()
            tab.by("open-layer").select_option(index=8)
            tab.by("panel-raster").locator("canvas").first.wait_for()
            while tab.canvas_of(tab.by("panel-raster")) < 2:
                pass
            print(f"raster: drawn {time.perf_counter() - clicked:.2f} s after it was chosen")
            tab.settle()
            rate, median, most, worst = tab.page.frames[-1].evaluate(_FRAMES)
            print(
                f"scrolling: {rate:.0f} frames a second, {median:.0f} ms the median, {most:.0f} ms "
                f"95 % of them, {worst:.0f} ms the longest"
            )
            print("complaints:", tab.complaints)


if __name__ == "__main__":
    main()
