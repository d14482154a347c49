"""`dynamo-probe demo`: it writes logs, and says how to look at them."""

import json
from pathlib import Path

import pytest

from dynamo_probe.cli import main
from tests.cli.calls import call


def test_all_demos_write_their_logs_and_the_last_line_says_how_to_look(tmp_path: Path) -> None:
    done = call("demo", "--updates", "3", "--log-dir", "my logs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "To look at it: tensorboard --logdir 'my logs'   or   dynamo-probe report 'my logs'\n"
    )
    runs = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("events*")}
    names = ("dormancy/plain", "dormancy/redo", "heads/fresh", "heads/repeated", "sparsity/granet")
    assert runs == {f"my logs/{name}" for name in names}
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == [
        "dormancy", "sparsity", "heads"
    ]  # fmt: skip


def test_json_is_all_there_is_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("runs/demo", "runs/demo-2"):  # the second is not mixed into the first
        assert main(["demo", "dormancy", "--updates", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["log_dir"] == place
        assert list(found["demos"]) == ["dormancy"]
        assert len(list(Path(found["demos"]["dormancy"]).glob("*/events*"))) == 2


def test_a_log_that_is_there_is_not_written_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "heads").mkdir()
    assert main(["demo", "heads", "--log-dir", str(tmp_path)]) == 2
    assert "give another --log-dir" in capsys.readouterr().err
    assert list((tmp_path / "heads").iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "heads", "--updates", "1", "--log-dir", str(tmp_path / "file")]) == 1
    err = capsys.readouterr().err
    assert "give another --log-dir" in err and "Traceback" not in err
