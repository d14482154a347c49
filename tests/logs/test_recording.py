"""What is kept of a run: exactly what was read, thinned over the whole run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.logs.recording import NOT_READ, PRUNED, TAUS, Recording, codes_of
from dynamo_probe.logs.runlog import RunLog, packed, unpacked


def recorded(updates: int, units: int = 6, layers: int = 2) -> Recording:
    recording, random = Recording(), np.random.default_rng(0)
    for step in range(1, updates + 1):
        readings = [
            Reading(step, f"dormancy/scores/fc{n}", random.exponential(0.3, units))
            for n in range(layers)
        ]
        readings.append(Reading(step, "loss", 1 / step))
        recording.add(step, readings, [], 1000.0 + step)
    return recording


@given(
    st.lists(
        st.one_of(st.sampled_from(TAUS), st.floats(0, 2), st.just(np.nan), st.just(np.inf)),
        min_size=1,
    ),
    st.sampled_from(TAUS),
)
def test_a_unit_is_dormant_by_its_code_where_its_score_is_at_most_tau(
    scores: list[float], tau: float
) -> None:
    codes = codes_of(np.array(scores), TAUS)
    for code, score in zip(codes.tolist(), scores, strict=True):
        if np.isfinite(score):
            assert (code <= TAUS.index(tau)) == (score <= tau)
        else:
            assert code == NOT_READ


def test_counts_are_of_all_units_and_codes_of_those_that_are_shown() -> None:
    recording = Recording()
    scores = {f"fc{n}": np.random.default_rng(n).exponential(0.2, 4096) for n in range(200)}
    readings = [Reading(5, f"dormancy/scores/{name}", x) for name, x in scores.items()]
    recording.add(5, readings, [], 1.0)
    log = recording.log()
    for name, one in log.units.items():
        assert one.of == 4096 and len(one.shown) == 256
        assert one.shown[0] == 0 and one.shown[-1] == 4095
        assert one.counts.values.sum() == 4096
        for index, tau in enumerate(log.taus):
            dormant = int((scores[name] <= tau).sum())
            assert one.counts.values[0, : index + 1].sum() == dormant
        assert one.codes.values[0].tolist() == codes_of(scores[name], TAUS)[one.shown].tolist()


def test_a_run_of_any_length_keeps_its_first_and_newest_reading_and_stays_small() -> None:
    log = recorded(5000).log()
    for one in (log.series["loss"], log.units["fc0"].counts, log.units["fc0"].codes):
        assert one.steps[0] == 1 and one.steps[-1] == 5000
        assert 256 <= len(one.steps) <= 512
        assert (one.walls == 1000.0 + one.steps).all()
        gaps = np.diff(one.steps)[:-1]
        assert (gaps == gaps[0]).all()
    assert log.series["loss"].values == pytest.approx(1 / log.series["loss"].steps)


def test_thresholds_of_the_runs_probes_are_exact_too() -> None:
    recording = Recording()
    readings = [Reading(1, "dormancy/tau=0.037", 0.5), Reading(1, "dormancy/tau=what", 0.5)]
    readings.append(Reading(1, "dormancy/scores/a", np.array([0.03, 0.036, 0.037, 0.038])))
    recording.add(1, readings, [], 1.0)
    log = recording.log()
    assert log.taus == tuple(sorted({*TAUS, 0.037}))
    assert log.units["a"].counts.values[0, : log.taus.index(0.037) + 1].sum() == 3


def test_units_that_no_connection_enters_are_pruned_from_then_on() -> None:
    recording = Recording()
    scores = Reading(1, "dormancy/scores/a", np.array([0.5, 0.0, 1.5]))
    recording.add(1, [scores], [], 1.0)
    fan_in = Reading(2, "topology/fan_in/a", np.array([3.0, 0.0, 1.0]))
    recording.add(2, [fan_in], [], 2.0)
    recording.add(3, [scores], [], 3.0)
    codes = recording.log().units["a"].codes.values
    assert codes[0, 1] == 0 and codes[1, 1] == PRUNED
    assert codes[0, 0] == codes[1, 0] and codes[0, 2] == codes[1, 2]


def test_recycled_units_are_kept_one_by_one_and_events_stay_few() -> None:
    recording = Recording()
    for step in range(1, 3001):
        event = Event(step, "recycled", "fc1", {"units": [step % 7, 9], "ages": [1, 2]})
        recording.add(step, [], [event], 1.0)
    log = recording.log()
    assert log.recycled["fc1"].shape == (6000, 2)
    assert log.recycled["fc1"][-2:].tolist() == [[3000, 3000 % 7], [3000, 9]]
    assert len(log.events) <= 500
    assert log.events[0]["step"] == 1 and log.events[-1]["step"] == 3000
    assert log.events[-1]["detail"] == {"units": 2}


@pytest.mark.parametrize("updates", [10, 700, 1500])
def test_a_run_that_goes_on_keeps_what_was_before_and_forgets_what_came_after(
    updates: int,
) -> None:
    whole = recorded(updates)
    log = unpacked(packed(whole.log()))
    again = Recording()
    again.go_on_from(log)
    again.forget_after(updates // 2)
    new = again.log()
    assert new.earlier == (whole.writer,) and new.writer != whole.writer
    for name in ("fc0", "fc1"):
        before, after = log.units[name], new.units[name]
        keep = before.counts.steps <= updates // 2
        assert after.counts.steps.tolist() == before.counts.steps[keep].tolist()
        assert (after.counts.values == before.counts.values[keep]).all()
        assert (after.shown == before.shown).all()
    assert new.series["loss"].steps.max() <= updates // 2
    again.add(updates // 2 + 1, [Reading(updates // 2 + 1, "loss", 5.0)], [], 9.0)
    assert again.log().series["loss"].values[-1] == 5.0


def test_an_update_that_is_read_again_replaces_what_was_read() -> None:
    recording = Recording()
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 4.0)):
        recording.add(step, [Reading(step, "x", value)], [], 1.0)
    one = recording.log().series["x"]
    assert one.steps.tolist() == [1, 2] and one.values.tolist() == [1.0, 4.0]


def test_values_of_events_that_json_does_not_know_become_text() -> None:
    recording = Recording()
    detail = {"nan": float("nan"), "what": object(), "long": "x" * 10_000, "units": "many"}
    recording.add(1, [], [Event(1, "recycled", "a", detail)], 1.0)
    back: RunLog = unpacked(packed(recording.log()))
    assert back.events[0]["detail"]["nan"] == "nan"
    assert len(back.events[0]["detail"]["long"]) < 2_100
    assert "object" in back.events[0]["detail"]["what"]


def test_events_and_recyclings_that_came_after_are_forgotten_too() -> None:
    recording = Recording()
    for step in range(1, 7):
        recording.add(step, [], [Event(step, "recycled", "a", {"units": [step]})], 1.0)
    again = Recording()
    again.go_on_from(recording.log())
    again.forget_after(3)
    log = again.log()
    assert log.recycled["a"].tolist() == [[1, 1], [2, 2], [3, 3]]
    assert [event["step"] for event in log.events] == [1, 2, 3]


def test_a_run_that_goes_on_keeps_its_thresholds() -> None:
    first = Recording()
    readings = [Reading(1, "dormancy/tau=0.037", 0.5)]
    first.add(1, [*readings, Reading(1, "dormancy/scores/a", np.array([0.03, 0.04]))], [], 1.0)
    again = Recording()
    again.go_on_from(first.log())
    again.add(2, [Reading(2, "dormancy/scores/a", np.array([0.037, 0.038]))], [], 2.0)
    log = again.log()
    counts = log.units["a"].counts.values
    assert counts[:, : log.taus.index(0.037) + 1].sum(1).tolist() == [1, 1]


def test_a_layer_that_has_another_width_begins_anew() -> None:
    recording = Recording()
    for step, units in ((1, 4), (2, 4), (3, 6)):
        scores = Reading(step, "dormancy/scores/a", np.full(units, 0.5))
        recording.add(step, [scores], [], 1.0)
    one = recording.log().units["a"]
    assert one.of == 6 and one.counts.steps.tolist() == [3] and one.codes.values.shape == (1, 6)
