"""The driver of the comparisons: which runs are made, which are not made again, and on what."""

import json
from dataclasses import asdict, dataclass, replace

import pytest

from benchmarks.papers import comparisons
from benchmarks.papers.__main__ import finished
from benchmarks.papers.comparisons import Comparison, key, rows
from dynamo_probe.sweeps.engines import outcomes
from dynamo_probe.sweeps.records import appending


@dataclass(frozen=True, slots=True)
class Setting:
    lag: tuple[int, int] = (8, 32)
    updates: int = 3


@dataclass(frozen=True, slots=True)
class Run:
    arm: str
    seed: int
    figure: float


def run(arm: str, seed: int, *, setting: Setting) -> Run:
    return Run(arm, seed, seed * setting.updates)


COMPARISON = Comparison("one", run, Setting(), ("a", "b"))


@pytest.fixture
def here(monkeypatch) -> None:
    """Run in this process, without the seconds that another one takes to start."""
    monkeypatch.setattr(
        comparisons, "outcomes", lambda function, jobs, *_: outcomes(function, jobs, workers=0)
    )


def made(found) -> set[tuple[str, str, int]]:
    return {(row["name"], row["arm"], row["seed"]) for row in found}


def test_every_arm_is_run_on_every_seed(here):
    found = list(rows([COMPARISON], [1, 2], workers=1))
    assert made(found) == {("one", arm, seed) for arm in "ab" for seed in (1, 2)}
    assert {row["figure"] for row in found} == {3, 6}


def test_a_run_that_the_file_has_is_not_made_again(here, tmp_path):
    path = tmp_path / "rows.jsonl"
    assert finished(path, [COMPARISON], [1]) == []
    first = list(rows([replace(COMPARISON, arms=("a",))], [1, 2], workers=1))
    whole = "".join(json.dumps(row) + "\n" for row in first)
    path.write_text(whole + json.dumps(first[0])[:40], encoding="utf-8")
    done = finished(path, [COMPARISON], [1, 2, 3])
    assert made(done) == {("one", "a", 1), ("one", "a", 2)}
    with appending(path):  # only who writes cuts off what was cut off
        assert path.read_text(encoding="utf-8") == whole
    rest = list(rows([COMPARISON], [1, 2, 3], workers=1, done=done))
    assert made(rest) == {("one", "b", 1), ("one", "b", 2), ("one", "b", 3), ("one", "a", 3)}


def test_a_run_of_another_setting_is_another_run(here, tmp_path):
    path = tmp_path / "rows.jsonl"
    (row,) = rows([replace(COMPARISON, arms=("a",))], [1], workers=1)
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    longer = replace(COMPARISON, setting=Setting(updates=4))
    assert finished(path, [longer], [1]) == []
    assert key({**row, "setting": asdict(Setting())}) == key(json.loads(json.dumps(row)))


def broken(arm: str, seed: int, *, setting: Setting) -> Run:
    if seed == 2:
        raise ZeroDivisionError("nothing to divide by")
    return run(arm, seed, setting=setting)


def test_a_run_that_fails_is_a_row_with_its_traceback_and_is_made_again(here, tmp_path):
    path = tmp_path / "rows.jsonl"
    found = list(rows([replace(COMPARISON, run=broken)], [1, 2], workers=1))
    assert made(found) == {("one", arm, seed) for arm in "ab" for seed in (1, 2)}
    failed = [row for row in found if "error" in row]
    assert {row["seed"] for row in failed} == {2} and len(failed) == 2
    assert "nothing to divide by" in failed[0]["error"]
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    assert made(finished(path, [COMPARISON], [1, 2])) == {("one", "a", 1), ("one", "b", 1)}
