"""What the plugin serves from TensorBoard itself, with either of its loaders."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.logs.as_json import plain
from dynamo_probe.logs.reading import read_logs
from dynamo_probe.logs.units_view import raster
from dynamo_probe.logs.views import VIEWS, view
from dynamo_probe.sinks.tensorboard import TensorBoard
from dynamo_probe.tensorboard_plugin.plugin import DynamoPlugin, static_files
from tests.tensorboard_plugin.servers import Server, tensorboard

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a'b\"c&d",
    "deep/er/run",
    "ünï ✓ \u202e",
    "%2e%2e?run=#",
    "x" * 250,
]


def write(folder: Path, layer: str = "fc1", updates: int = 9) -> None:
    sink = TensorBoard(folder)
    for step in range(1, updates + 1):
        scores = np.random.default_rng(step).exponential(0.3, 16)
        readings = [Reading(step, f"dormancy/scores/{layer}", scores)]
        readings.append(Reading(step, "dormancy/tau=0.1", float((scores <= 0.1).mean())))
        events = [Event(step, "recycled", layer, {"units": [1]})] if step == 5 else []
        sink.write(step, readings, events)
    sink.close()


@pytest.fixture(scope="module", params=[True, False], ids=["rust", "python"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    top = tmp_path_factory.mktemp("logs")
    for name in HOSTILE:
        write(top / name, layer=f"</script><b>{name}")
    write(top / "long", layer="y" * 10_000)
    write(top / "newer")
    [path] = (top / "newer").iterdir()
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"dynamo_probe log\n\x01", b"dynamo_probe log\n\x07"))
    write(top / "torn")
    [path] = (top / "torn").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    (top / "empty").mkdir()
    output = tmp_path_factory.mktemp("output") / "tensorboard.txt"
    with tensorboard(top, fast=request.param, output=output) as running:
        # The Rust loader checks records, so that a log whose version was forged is none to it.
        running.wait_for(len(HOSTILE) + 2)
        yield running, top


def test_the_entry_point_leads_to_the_plugin() -> None:
    [found] = entry_points(group="tensorboard_plugins", name="dynamo_probe")
    assert found.load() is DynamoPlugin


@pytest.mark.parametrize("name", [*HOSTILE, "long"])
def test_views_are_those_of_the_log_whatever_it_is_called(
    server: tuple[Server, Path], name: str
) -> None:
    running, top = server
    log = read_logs(top / name)["."]
    for which in VIEWS:
        status, found = running.get("view", run=name, name=which)
        assert status == 200 and found == plain(view(log, which))
    status, found = running.get("view", run=name, name="units", tau=0.3)
    assert status == 200 and found == plain(view(log, "units", 0.3))
    [layer] = log.units
    assert running.get("raster", run=name, row=0) == (200, plain(raster(log, layer)))
    if len(layer) < 1000:  # longer ones do not go into an address
        assert running.get("raster", run=name, layer=layer) == (200, plain(raster(log, layer)))


def test_a_torn_log_is_shown_as_far_as_it_goes(server: tuple[Server, Path]) -> None:
    running, _ = server
    if "torn" not in running.wait_for(1):
        pytest.skip("this loader has read no record of the file")
    status, found = running.get("overview", run="torn")
    assert status == 200 and found["views"]["torn"]["facts"]["update"] == 1


def test_what_there_is_not_is_refused_with_the_reason(server: tuple[Server, Path]) -> None:
    running, _ = server
    run = HOSTILE[0]
    for status, path, query, words in [
        (404, "view", {"run": "nowhere", "name": "units"}, "no log of a run"),
        (404, "raster", {"run": "../../etc", "layer": "x"}, "no log of a run"),
        (400, "view", {"run": run, "name": "secrets"}, "no view"),
        (400, "view", {"run": run, "name": "units", "tau": "x"}, "not a number"),
        (400, "view", {"run": run, "name": "units", "tau": 0.123}, "not recorded"),
        (400, "view", {"name": "units"}, "give run="),
        (400, "raster", {"run": run, "layer": "nothing"}, "no layer"),
        (400, "raster", {"run": run, "row": 1}, "below 1"),
        (400, "raster", {"run": run, "row": "-1"}, "below 1"),
    ]:
        found = running.get(path, **query)
        assert found[0] == status and words in found[1]["error"]
    status, found = running.get("overview", run=["nowhere", run])
    assert status == 200 and list(found["views"]) == [run]
    assert found["trouble"][0]["run"] == "nowhere"


def test_static_files_are_those_of_the_package_and_no_others(server: tuple[Server, Path]) -> None:
    running, _ = server
    base = f"{running.address}/data/plugin/dynamo_probe/static"
    with urllib.request.urlopen(f"{base}/index.js", timeout=30) as answer:
        assert answer.read() == static_files()["index.js"]
        assert answer.headers["Content-Type"].startswith("text/javascript")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("../plugin.py", "%2e%2e/plugin.py", "nothing.js", "", "//etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{base}/{path}", timeout=30)
        refused.value.close()
        assert refused.value.code == 404


@pytest.mark.parametrize("fast", [True, False], ids=["rust", "python"])
def test_two_processes_in_one_directory_are_told_of(tmp_path: Path, fast: bool) -> None:
    sinks = [TensorBoard(tmp_path / "both") for _ in range(2)]
    for step in (1, 2):
        for sink in sinks:
            sink.write(step, [Reading(step, "dormancy/tau=0.1", 0.5)], [])
    for sink in sinks:
        sink.close()
    with tensorboard(tmp_path, fast=fast, output=tmp_path / "output.txt") as running:
        running.wait_for(1)
        _, found = running.get("overview", run="both")
        # The loader in Rust shows one of them only, which has noticed the other itself.
        texts = [one["text"] for one in found["trouble"]]
        texts += [one["text"] for one in found["views"]["both"]["alerts"]]
        assert any("log_dir of its own" in text for text in texts)
