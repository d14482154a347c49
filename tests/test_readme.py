"""The README's code runs as it stands."""

import re
from pathlib import Path

from tests.code_blocks import python_blocks, run_blocks

README = Path(__file__).parent.parent / "README.md"


def test_the_python_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(README.read_text())
    assert len(blocks) == 10
    names = run_blocks(blocks, "README.md")
    assert names["watch"].history.series("dead_inputs/0")[0].tolist() == [50, 100]
    assert list((tmp_path / "runs" / "readme").glob("events*"))


def test_the_files_it_points_to_exist() -> None:
    targets = re.findall(r"\]\(([\w/.]+)\)", README.read_text())
    assert targets
    assert [target for target in targets if not (README.parent / target).exists()] == []
