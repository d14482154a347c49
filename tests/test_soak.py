"""Long runs: killed and resumed they are the undisturbed ones, and nothing in them piles up."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import dynamo_probe as dp
from benchmarks.soak import killing, language, logs
from benchmarks.soak.process import Sample, growths
from benchmarks.soak.training import Plan, alerts, differences, equal, probes
from dynamo_probe.events import shorten
from dynamo_probe.warning import DynamoProbeWarning, warn


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_run_that_is_killed_and_resumed_is_the_undisturbed_one(tmp_path: Path) -> None:
    outcome = killing.run(1500, 3, tmp_path)
    assert outcome.problems == []
    assert all(now <= died for now, died in zip(outcome.resumed, outcome.kills, strict=True))
    assert outcome.files == 4 and outcome.tags == 88 and outcome.events > 30


def test_every_public_probe_is_soaked(tmp_path: Path) -> None:
    public = [getattr(dp, name) for name in dp.__all__]
    named = {one.__name__ for one in public if isinstance(one, type) and issubclass(one, dp.Probe)}
    soaked = set(probes(Plan(100, tmp_path), lambda: None, lambda: 0.0)) | set(language.probes(1))
    soaked |= {type(one).__name__ for one in alerts()}
    assert named - {"Probe"} == soaked, "add the probe to benchmarks/soak/training.py"


# --- the checks can fail ------------------------------------------------------------------------


def flat(steps: int = 100) -> list[Sample]:
    """Return a run that grows in its first half only."""
    return [
        Sample(1000 * n, 300_000_000 + 4096 * min(n, steps // 2), 5, 3, 1, 1, 1)
        for n in range(1, steps + 1)
    ]


def test_growth_in_the_second_half_is_found_and_growth_before_is_not() -> None:
    assert growths(flat()) == []
    leaking = [replace(one, memory=one.memory + 24 * one.step) for one in flat()]
    assert len(growths(leaking)) == 1 and "24.0 bytes an update" in growths(leaking)[0]
    opening = [replace(one, handles=5 + (one.step > 90_000)) for one in flat()]
    assert growths(opening) == ["handles were between 5 and 6"]


def test_states_are_compared_to_the_bit() -> None:
    state = {"a": [torch.zeros(2), {"b": float("nan")}], "c": 1}
    assert equal(state, {"c": 1, "a": [torch.zeros(2), {"b": float("nan")}]})
    assert differences(state, {**state, "a": [-torch.zeros(2), {"b": float("nan")}]}) == ["/a"]
    assert differences(state, {**state, "c": True}) == ["/c"]
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["/a/c"]


def scalars(directory: Path, steps: list[int]) -> dict[str, dict[str, torch.Tensor]]:
    """Write a log of one tag, and return the history that belongs to it."""
    with SummaryWriter(str(directory)) as writer:
        for step in steps:
            writer.add_scalar("x", step / 7, step)
    kept = np.array(sorted(set(steps)))
    return {"x": {"steps": torch.from_numpy(kept), "values": torch.from_numpy(kept / 7)}}


def test_a_log_of_a_run_taken_up_without_purging_is_found_at_fault(tmp_path: Path) -> None:
    history = scalars(tmp_path, [1, 2, 3, 2, 3, 4])
    # A loader that sees steps go back hides nothing unless a start is marked.
    found, _ = logs.read(tmp_path)
    assert found["x"][0].tolist() == [1, 2, 3, 2, 3, 4]
    assert logs.faults(found, history) == ["x: the updates do not increase"]


def test_a_log_that_lacks_a_reading_or_has_another_value_is_found_at_fault(tmp_path: Path) -> None:
    history = scalars(tmp_path, [1, 2, 3])
    found, complaints = logs.read(tmp_path)
    assert complaints == [] and logs.faults(found, history) == []
    steps, values = found["x"]
    missing = logs.faults({"x": (steps[:2], values[:2])}, history)
    assert missing == ["x: 1 readings of the history are not in the log"]
    assert logs.faults({"x": (steps, -values)}, history) == ["x: values differ from the history's"]


# --- what would pile up ------------------------------------------------------------------------


def test_the_newer_events_are_kept_and_the_others_counted() -> None:
    events: list[dp.Event] = []
    gone = 0
    for step in range(1, 1001):
        events.append(dp.Event(step, "alert", "x"))
        shorten(events, 10)
        assert len(events) <= 10
        gone = events[0].detail.get("dropped", 0)
        kept = [event.step for event in events if event.kind == "alert"]
        assert kept == list(range(gone + 1, step + 1))  # every event is kept or counted, once
    assert gone > 900 and str(events[0]) == f"update {gone}: note events (dropped: {gone})"


def test_a_warning_leaves_nothing_behind_in_the_module_that_gives_it() -> None:
    def told(step: int) -> None:
        warn(f"update {step}: alert", stacklevel=2)

    registry = globals().get("__warningregistry__", {})
    before = len(registry)
    with pytest.warns(DynamoProbeWarning) as heard:
        warnings.simplefilter("default")
        for step in range(50):
            told(step)
    assert len(heard) == 50 and heard[0].filename == __file__
    assert len(globals().get("__warningregistry__", {})) - before <= 1  # the filters' version


def test_a_resumed_log_goes_on_with_the_tags_that_it_had(tmp_path: Path) -> None:
    def tags(sink: dp.TensorBoard) -> set[str]:
        return sink._tags.admitted

    def readings(step: int, names: list[str]) -> list[dp.Reading]:
        return [dp.Reading(step, name, 0.0) for name in names]

    layers = [f"dormancy/layer/{n}/tau={tau}" for n in range(4) for tau in (0.0, 0.1)]
    first = dp.TensorBoard(tmp_path, max_scalar_tags=8)
    history = dp.History()
    for step, names in ((1, ["rank/a/b", *layers]), (2, ["x/y"]), (3, ["x/z", "a/b/c"])):
        history.add(readings(step, names))
        first.write(step, readings(step, names), [])
    first.close()
    second = dp.TensorBoard(tmp_path, max_scalar_tags=8)
    second.recall(history.beginnings())
    second.resume(3)
    second.write(4, readings(4, ["a/b/c", "x/y", *layers]), [])
    second.close()
    assert tags(second) == tags(first)
    other = dp.TensorBoard(tmp_path / "other", max_scalar_tags=8)
    other.write(4, readings(4, ["a/b/c", "x/y", *layers]), [])
    other.close()
    assert tags(other) != tags(first)  # without recalling, other tags would take their place
