"""Make the README's pictures: `python -m tests.tensorboard_plugin.screenshots LOGDIR`.

LOGDIR is what `dynamo-probe demo all --log-dir LOGDIR` wrote.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.tensorboard_plugin.browser import Tab, browser, context_of
from tests.tensorboard_plugin.servers import tensorboard

_IMAGES = Path(__file__).parents[2] / "docs" / "images"


def keep(tab: Tab, name: str) -> None:
    """Keep what is in the window, with few colours: it is to be small."""
    image = Image.open(io.BytesIO(tab.page.screenshot()))
    image.convert("RGB").quantize(128).save(_IMAGES / f"{name}.png", optimize=True)


def main() -> None:
    """Make both."""
    logs = Path(sys.argv[1])
    output = Path(tempfile.mkdtemp()) / "tensorboard.txt"
    with tensorboard(logs, fast=True, output=output) as server, browser() as started:
        server.wait_for(5)
        context = context_of(started)
        tab = Tab(context.new_page()).open(server.address)
        tab.page.set_viewport_size({"width": 1200, "height": 900})
        tab.choose("dormancy/plain", "dormancy/redo")
        tab.show("units")
        tab.settle()
        tab.by("open-layer").first.select_option("hidden2")
        tab.by("panel-raster").first.wait_for()
        tab.settle()
        keep(tab, "tab-units")
        tab.choose("sparsity/granet")
        tab.show("connections")
        tab.settle()
        keep(tab, "tab-connections")


if __name__ == "__main__":
    main()
