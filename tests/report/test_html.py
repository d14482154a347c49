"""Reports of log directories: as they are on disk, killed runs among them."""

from __future__ import annotations

import io
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dynamo_probe.logs.panels import View
from dynamo_probe.report import html
from dynamo_probe.report.html import most_dormant, write_report
from tests.report.panels import HOSTILE, heat, raster, write_log
from tests.report.test_page import checked, parsed, rows, text


def page_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


def test_a_log_becomes_a_page_and_its_figures(tmp_path: Path) -> None:
    write_log(tmp_path / "logs" / "plain")
    write_log(tmp_path / "logs" / "redo", "<b>layer</b>")
    made = write_report(tmp_path / "logs", tmp_path / "out" / "my.html")
    assert made.runs == ["plain", "redo"] and made.warnings == []
    top = parsed(page_of(made.html))
    checked(top)
    assert [text(one) for one in top.iter("h2")][1:] == ["Run plain", "Run redo"]
    assert {path.parent for path in made.figures} == {tmp_path / "out" / "my_figures"}
    names = sorted(path.name for path in made.figures)
    assert "run-1-units-dormant.png" in names and "run-2-units-raster.png" in names
    assert sorted(os.listdir(tmp_path / "out" / "my_figures")) == names
    assert sorted(os.listdir(tmp_path / "out")) == ["my.html", "my_figures"]
    for path in made.figures:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            picture.verify()
    # From the log's definition: at update 6 all of four units were at 0.
    tables = [rows(next(one.iter("table"))) for one in top.iter("details")]
    assert ["fc1", "1", "6", "1"] in [row for table in tables for row in table]
    assert ["dormant", "1", "4"] in [row for table in tables for row in table]
    alerts = [rows(one) for one in top.iter("table") if one.find("caption") is not None]
    assert alerts[0][1] == ["6", "alert", "fc1", "high"] and len(alerts[0]) == 7


def test_the_log_of_a_killed_run_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    write_log(tmp_path / "logs")
    [path] = (tmp_path / "logs").iterdir()
    path.write_bytes(path.read_bytes()[:-9])  # the newest log is torn, the one before is whole
    made = write_report(tmp_path / "logs", tmp_path / "report.html")
    assert made.runs == ["."]
    checked(parsed(page_of(made.html)))
    assert "1 updates" in page_of(made.html)


@pytest.mark.parametrize("layer", [HOSTILE[1], "".join(HOSTILE), "x" * 10_000], ids=range(3))
def test_layers_of_any_name_are_shown(tmp_path: Path, layer: str) -> None:
    layer = layer.encode(errors="replace").decode()  # event files hold no half letters
    write_log(tmp_path / "logs", layer)
    made = write_report(tmp_path / "logs", tmp_path / "report.html", figures=tmp_path / "png")
    checked(parsed(page_of(made.html)))
    assert all(path.parent == tmp_path / "png" for path in made.figures)


def test_a_report_is_replaced_at_once_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path / "logs")
    target = tmp_path / "report.html"
    target.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(html.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path / "logs", target)
    assert target.read_text() == "before"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    monkeypatch.undo()
    write_report(tmp_path / "logs", target)
    assert "<!DOCTYPE html>" in target.read_text("utf-8")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_the_newest_runs_are_shown_where_there_are_many(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        write_log(tmp_path / "logs" / name)
    made = write_report(tmp_path / "logs", tmp_path / "report.html", most=2)
    assert made.runs == ["a", "b"]
    [warning] = made.warnings
    assert "There are 3 runs; the 2 that were written to last" in warning
    assert warning in text(parsed(page_of(made.html)))
    made = write_report(tmp_path / "logs", tmp_path / "report.html", runs=["c", "a"])
    assert made.runs == ["c", "a"] and made.warnings == []


def test_a_threshold_that_was_not_recorded_is_replaced_by_the_nearest(tmp_path: Path) -> None:
    write_log(tmp_path / "logs")
    made = write_report(tmp_path / "logs", tmp_path / "report.html", tau=0.11)
    assert made.warnings == [".: tau 0.11 was not recorded; 0.1 is shown"]


def test_what_cannot_be_shown_is_refused_with_the_fix(tmp_path: Path) -> None:
    write_log(tmp_path / "logs" / "a")
    (tmp_path / "none").mkdir()
    out = tmp_path / "report.html"
    with pytest.raises(FileNotFoundError, match="no directory"):
        write_report(tmp_path / "missing", out)
    with pytest.raises(ValueError, match="no event files"):
        write_report(tmp_path / "none", out)
    with pytest.raises(ValueError, match=r"no run 'x'; there are 'a'"):
        write_report(tmp_path / "logs", out, runs=["x"])
    with pytest.raises(ValueError, match=r"axis 'epochs'; there are updates, wall"):
        write_report(tmp_path / "logs", out, axis="epochs")
    with pytest.raises(ValueError, match="give at least 1"):
        write_report(tmp_path / "logs", out, most=0)
    with pytest.raises(IsADirectoryError, match="name a file"):
        write_report(tmp_path / "logs", tmp_path)
    assert not out.exists()


def test_a_view_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynamo_probe.logs import views

    real = views.view

    def failing(log: object, name: str, tau: float | None) -> View:
        if name == "heads":
            raise KeyError("torn")
        return real(log, name, tau)  # type: ignore[arg-type]

    monkeypatch.setattr(views, "view", failing)
    write_log(tmp_path / "logs")
    made = write_report(tmp_path / "logs", tmp_path / "report.html")
    assert made.warnings == [
        "., heads: this view could not be made (KeyError: 'torn')",
    ]
    assert "run-1-units-dormant.png" in [path.name for path in made.figures]


def test_rasters_are_of_the_layers_with_the_most_dormant_units() -> None:
    panel = heat()
    assert most_dormant([panel]) == []
    assert most_dormant([replace(panel, opens="raster"), raster()], 1) == ["fc1"]
    assert most_dormant([replace(panel, opens="raster")]) == ["fc1", "fc2"]
    higher = replace(panel, values=panel.values[::-1], opens="raster")
    assert most_dormant([higher]) == ["fc2", "fc1"]


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path / "logs")
    for name in list(sys.modules):
        if name.startswith(("matplotlib", "dynamo_probe.report.")) and not name.endswith(".html"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dynamo-probe\[report\]'"):
        write_report(tmp_path / "logs", tmp_path / "report.html")
