"""Logs read back from event files: of runs that were killed, damaged, or written by two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.logs.reading import read_all, read_logs
from dynamo_probe.sinks.tensorboard import TensorBoard


def write(folder: Path, updates: range = range(1, 6), close: bool = True) -> TensorBoard:
    sink = TensorBoard(folder)
    for step in updates:
        scores = Reading(step, "dormancy/scores/fc1", np.arange(4) / 3 * step)
        sink.write(step, [Reading(step, "loss", 1 / step), scores], [])
    if close:
        sink.close()
    return sink


def test_runs_are_named_by_their_paths_and_hold_what_was_written(tmp_path: Path) -> None:
    names = ["a", "b/c", "<b>&\"'", "ünï ✓", "x" * 200]
    for name in names:
        write(tmp_path / name)
    logs, troubles = read_all(tmp_path)
    assert list(logs) == sorted(names) and troubles == []
    for log in logs.values():
        assert log.step == 5
        assert log.series["loss"].values.tolist() == [1 / n for n in range(1, 6)]
        assert log.units["fc1"].counts.values[:, :9].sum(1).tolist() == [1, 1, 1, 1, 1]
    write(tmp_path)
    assert "." in read_logs(tmp_path)


def test_an_event_file_that_was_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    write(tmp_path)  # a log with the first update, and one at the end
    [path] = tmp_path.iterdir()
    raw = path.read_bytes()
    path.write_bytes(raw[:-7])
    assert read_logs(tmp_path)["."].step == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_happens_to_a_file_it_is_read_or_told_of(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    write(folder)
    [path] = folder.iterdir()
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        # Shares: two runs of this do not make files of one length.
        at = int(data.draw(st.floats(0, 1)) * (len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: int(data.draw(st.floats(0, 1)) * len(raw))])
    try:
        log = read_logs(folder)["."]
    except ValueError as reason:
        assert "no log" in str(reason)
    else:
        assert log.step in (1, 5)


def test_a_run_that_goes_on_is_one_run(tmp_path: Path) -> None:
    write(tmp_path)
    sink = TensorBoard(tmp_path)
    sink.resume(3)
    sink.write(4, [Reading(4, "loss", 9.0)], [])
    sink.close()
    logs, troubles = read_all(tmp_path)
    assert troubles == []
    assert logs["."].series["loss"].values.tolist() == [1.0, 1 / 2, 1 / 3, 9.0]
    assert logs["."].units["fc1"].counts.steps.tolist() == [1, 2, 3]


def test_two_processes_in_one_directory_are_told_of(tmp_path: Path) -> None:
    first, second = write(tmp_path, close=False), write(tmp_path, range(1, 9), close=False)
    first.close()
    second.close()
    paths = sorted(tmp_path.iterdir())
    for name, path in zip("zy", paths, strict=True):  # the newest is not the last by name
        path.rename(tmp_path / f"events.out.tfevents.{name}")
    logs, troubles = read_all(tmp_path)
    assert logs["."].step == 8
    assert [one.run for one in troubles] == ["."]
    assert "several processes" in troubles[0].text and "log_dir of its own" in troubles[0].text


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_run_that_was_killed_is_read(tmp_path: Path) -> None:
    script = f"""
import os, signal, torch, dynamo_probe as dp
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(net.parameters(), 0.1)
watch = dp.watch(net, optimizer, dp.Dormancy(every=1), log_dir={str(tmp_path)!r})
for _ in range(50):
    net(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
import time; time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    log = read_logs(tmp_path)["."]
    assert log.step >= 1 and "0" in log.units


def test_what_is_no_log_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no directory"):
        read_logs(tmp_path / "missing")
    with pytest.raises(ValueError, match="has no event files"):
        read_logs(tmp_path)
    (tmp_path / "events.out.tfevents.1.x").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"attach a probe with dp\.watch"):
        read_logs(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        read_logs(tmp_path / "events.out.tfevents.1.x")


def test_a_log_of_another_version_is_told_of_and_others_are_read(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name)
    [path] = (tmp_path / "a").iterdir()
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"dynamo_probe log\n\x01", b"dynamo_probe log\n\x07"))
    logs, troubles = read_all(tmp_path)
    assert list(logs) == ["b"]
    assert troubles[0].run == "a" and "format 7" in troubles[0].text


def test_a_log_is_written_first_and_last_and_seldom_between(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    for step in range(1, 400):
        sink.write(step, [Reading(step, "loss", 1.0)], [Event(step, "note", "x")])
    sink.close()
    [path] = tmp_path.iterdir()
    assert path.read_bytes().count(b"dynamo_probe log\n") <= 6
