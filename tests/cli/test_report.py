"""`dynamo-probe report` hands over what it was given, and tells what came of it."""

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dynamo_probe.cli import main


@dataclass
class Files:
    html: Path
    figures: tuple[Path, ...]
    runs: tuple[str, ...]
    warnings: tuple[str, ...]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put a stand-in in the place of what draws."""
    calls: list[dict[str, Any]] = []

    def write_report(log_dir: Path, output: Path, *, tau: float, axis: str) -> Files:
        calls.append({"log_dir": log_dir, "output": output, "tau": tau, "axis": axis})
        if log_dir.name == "bad":
            raise ValueError("no log of ours is in bad;\ngive another")
        return Files(output, (output.with_name("a.png"),), ("r\x1b[0m",), ("one\nrun is torn",))

    module = types.ModuleType("dynamo_probe.report.html")
    module.write_report = write_report  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dynamo_probe.report.html", module)
    if "dynamo_probe.report" not in sys.modules:
        monkeypatch.setitem(
            sys.modules, "dynamo_probe.report", types.ModuleType("dynamo_probe.report")
        )
    return calls


def test_what_was_given_is_handed_over(
    writer: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "-o", str(page), "--tau", "0.025", "--axis", "wall"]) == 0
    assert writer == [{"log_dir": tmp_path, "output": page, "tau": 0.025, "axis": "wall"}]
    out, err = capsys.readouterr()
    assert out == f"{page}: 1 run, 1 figures beside it\n"
    assert err.splitlines()[-1] == "dynamo-probe: one\\nrun is torn"


def test_json_is_all_there_is_on_standard_output(
    writer: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--output", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "html": str(page),
        "figures": [str(tmp_path / "a.png")],
        "runs": ["r\x1b[0m"],
        "warnings": ["one\nrun is torn"],
    }
    assert writer[0]["tau"] == 0.1 and writer[0]["axis"] == "updates"


@pytest.mark.parametrize(
    ("log_dir", "page", "code", "message"),
    [
        ("missing", "page.html", 2, "there is no"),
        (".", ".", 2, "give a file"),
        (".", "no/such/page.html", 2, "make it first"),
        ("bad", "page.html", 1, "no log of ours is in bad;\\ngive another"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    writer: list[dict[str, Any]],
    log_dir: str,
    page: str,
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad").mkdir()
    assert main(["report", str(tmp_path / log_dir), "-o", str(tmp_path / page)]) == code
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1] and "Traceback" not in err


def test_what_the_figures_need_and_is_missing_is_told(
    writer: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_report(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(sys.modules["dynamo_probe.report.html"], "write_report", write_report)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 1
    assert "pip install 'dynamo-probe[report]'" in capsys.readouterr().err
