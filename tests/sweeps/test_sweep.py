"""Sweeps: what is run, what is kept, and what becomes of runs and workers that fail."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.sweeps.records import appending, canonical, expand, read_rows, run_key
from dynamo_probe.sweeps.sweep import SweepFailed, sweep
from tests.sweeps import functions

plain_values = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())


@given(st.dictionaries(st.text(), plain_values, max_size=4), st.randoms())
def test_a_key_depends_on_the_settings_and_not_on_their_order(settings: dict, random: Any) -> None:
    names = list(settings)
    random.shuffle(names)
    shuffled = {name: settings[name] for name in names}
    assert run_key("f", settings, 1) == run_key("f", shuffled, 1)
    assert run_key("f", settings, 1) != run_key("f", settings, 2)
    assert run_key("f", settings, 1) != run_key("g", settings, 1)
    assert json.loads(run_key("f", settings, 1)) == ["f", settings, 1]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3).filter(lambda n: n != "seed"),
        st.lists(st.integers(), min_size=1, max_size=3, unique=True),
        max_size=3,
    )
)
def test_a_grid_is_every_combination_once(grid: dict[str, list[int]]) -> None:
    found = expand(grid)
    assert len(found) == math.prod(len(values) for values in grid.values())
    assert len({canonical(one) for one in found}) == len(found)
    assert all(one[name] in values for one in found for name, values in grid.items())


def test_runs_come_in_the_order_of_grid_and_seeds_with_threads_as_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    grid = {"left": [1, 2], "right": [3, 4]}
    found = sweep(functions.add, grid, seeds=[5, 6], workers=2, out=out)
    expected = [(left, right, seed) for left in (1, 2) for right in (3, 4) for seed in (5, 6)]
    runs = [(r["settings"]["left"], r["settings"]["right"], r["seed"]) for r in found]
    assert runs == expected and not found.failed and len(found) == 8
    assert [row["result"]["total"] for row in found] == [a + 10 * b + 100 * c for a, b, c in runs]
    assert {row["result"]["threads"] for row in found} == {1}
    assert os.getpid() not in {row["result"]["process"] for row in found}
    rows = read_rows(out)
    assert len(rows) == 8
    assert rows[0].keys() >= {"settings", "seed", "versions", "machine", "time", "attempts"}
    assert list(found.to_pandas().columns) == [
        "left",
        "right",
        "seed",
        "total",
        "threads",
        "process",
    ]


def test_runs_that_the_file_has_are_not_made_again(tmp_path: Path) -> None:
    out, grid = tmp_path / "rows.jsonl", {"folder": [str(tmp_path)]}
    sweep(functions.counted, grid, seeds=[1, 2], workers=0, out=out)
    text = out.read_text()
    out.write_text(text + '{"function": "tests.sw')  # a kill in the middle of a line
    found = sweep(functions.counted, grid, seeds=[1, 2, 3], workers=0, out=out)
    assert (tmp_path / "calls").read_text().split() == ["1", "2", "3"]
    assert [row["result"] for row in found if row["seed"] != 2] == [0.5, 1.5]
    assert math.isnan(found.rows[1]["result"])
    assert len(read_rows(out)) == 3


def test_a_failed_run_is_made_once_more(tmp_path: Path) -> None:
    found = sweep(functions.fails_once, {"folder": [str(tmp_path)]}, seeds=[1, 2], workers=1)
    assert [row["result"] for row in found] == [1, 2]
    assert [row["attempts"] for row in found] == [2, 2]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raise", "ZeroDivisionError: seed 1 never works"),
        ("exit", "its process ended: exit code 3"),
        ("kill", "killed by SIGKILL"),
        ("result", "pickle"),
        ("words", "cannot be recorded"),
        ("system exit", "SystemExit: no more"),
    ],
)
def test_a_run_that_fails_twice_is_recorded_and_takes_no_other_along(
    tmp_path: Path, kind: str, message: str
) -> None:
    out = tmp_path / "rows.jsonl"
    found = sweep(functions.odd, {"kind": [kind]}, seeds=[0, 1, 2, 3], workers=1, out=out)
    assert [row["seed"] for row in found] == [0, 2, 3]
    (failed,) = found.failed
    assert failed["seed"] == 1 and message in failed["error"]
    assert failed["attempts"] == (1 if kind == "words" else 2)
    assert len(read_rows(out)) == 4
    with pytest.raises(SweepFailed, match="1 runs failed"):
        found.raise_for_failures()


def test_a_call_may_have_processes_of_its_own() -> None:
    assert not sweep(functions.odd, {"kind": ["child"]}, seeds=[1], workers=1, retries=0).failed


def test_arrays_and_tensors_are_recorded_as_numbers() -> None:
    (row,) = sweep(functions.numbers, {}, seeds=[7], workers=0)
    assert row["result"] == {"array": [0, 1], "tensor": 1.5, "seed": 7}


def test_a_worker_that_dies_between_two_calls_takes_none_along() -> None:
    found = sweep(functions.dies_between, {}, seeds=range(4), workers=1, retries=5)
    assert [row["result"] for row in found] == [0, 1, 2, 3]


def test_reading_never_changes_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b":')
    assert read_rows(path) == [{"a": 1}]
    assert path.read_bytes() == b'{"a": 1}\n{"b":'
    with appending(path) as file:
        file.write('{"c": 3}\n')
    assert read_rows(path) == [{"a": 1}, {"c": 3}]


@pytest.mark.parametrize("text", ["dear diary", "dear diary\n", "[\n  1\n]", "[1]\n"])
def test_another_files_content_is_refused_and_left_as_it_was(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not"):
        sweep(functions.numbers, {}, seeds=[1], workers=0, out=path)
    assert path.read_text() == text


def test_a_failed_run_is_made_anew_by_the_next_call(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    folder = {"folder": [str(tmp_path)]}
    first = sweep(functions.fails_once, folder, seeds=[1], workers=0, out=out, retries=0)
    assert len(first.failed) == 1
    assert sweep(functions.fails_once, folder, seeds=[1], workers=0, out=out).rows[0]["result"] == 1


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from dynamo_probe.sweeps.sweep import sweep
from tests.sweeps import functions
if __name__ == "__main__":
    sweep(functions.slow, {"folder": [sys.argv[1]]}, [1, 2, 3], workers=2, out=sys.argv[2])
"""


def test_an_interrupt_leaves_the_file_whole_and_no_process(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "begun-3").exists() and out.exists() and out.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    with pytest.raises(RuntimeError, match="another sweep writes to"), appending(out):
        pass
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert errors.decode().strip().endswith("KeyboardInterrupt")
    assert [row["result"] for row in read_rows(out)] == [1]
    deadline = time.monotonic() + 20
    while alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(group: int) -> bool:
    """Whether a process of a group still runs; the dead that nobody has buried do not count."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    found = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True)
    return any(not line.startswith("Z") for line in found.stdout.split())


def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from dynamo_probe.sweeps.sweep import sweep\n"
        "def run(seed):\n    return seed\n"
        "print(sweep(run, {}, [1], retries=0).failed[0]['error'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert 'if __name__ == "__main__":' in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sweep(lambda seed: seed, {}), ValueError, "at the top of a module"),
        (
            lambda: sweep(functions.add, {"left": 3}),
            TypeError,
            r"give a list of values, such as \[3\]",
        ),
        (lambda: sweep(functions.add, {"left": "ab"}), TypeError, "give a list"),
        (lambda: sweep(functions.add, {"left": [{1, 2}]}), TypeError, "not made of numbers"),
        (lambda: sweep(functions.add, {"left": [1, 1]}), ValueError, "come twice"),
        (lambda: sweep(functions.add, [{"seed": 1}]), ValueError, "give seeds="),
        (lambda: sweep(functions.add, {}, [1, 1]), ValueError, "one twice"),
        (lambda: sweep(functions.add, {}, [1.5]), ValueError, "give whole numbers"),  # type: ignore
        (lambda: sweep(functions.add, {}, engine="threads"), ValueError, "process, ray"),
        (lambda: sweep(functions.add, {}, workers=-1), ValueError, "give 0 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_file_that_is_not_a_sweeps_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("dear diary\n")
    with pytest.raises(ValueError, match="line 1 of .* is not JSON"):
        sweep(functions.add, {"left": [1], "right": [1]}, workers=0, out=out)
    assert out.read_text() == "dear diary\n"


def test_each_run_is_logged_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dynamo_probe"):
        sweep(functions.odd, {"kind": ["raise"]}, seeds=[0, 1], workers=0)
    assert caplog.messages[0].startswith('1/2 {"kind": "raise"}, seed 0 done in 0.0 s, about')
    assert caplog.messages[1].startswith('2/2 {"kind": "raise"}, seed 1 failed in 0.0 s')


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_its_engine_says_what_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"dynamo-probe\[sweep\]"):
        sweep(functions.add, {"left": [1], "right": [1]}, engine="ray")


def test_ray_brings_every_result_and_survives_a_dead_worker() -> None:
    pytest.importorskip("ray")
    found = sweep(functions.odd, {"kind": ["exit"]}, seeds=[0, 1, 2], workers=2, engine="ray")
    assert [row["seed"] for row in found] == [0, 2]
    assert "its process ended" in found.failed[0]["error"]
