"""The figures that are shown are those that were read: against naive loops over the readings."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.logs.as_json import plain
from dynamo_probe.logs.overview import _percent
from dynamo_probe.logs.panels import Bars, Grid, Lines, Map, View
from dynamo_probe.logs.recording import Recording
from dynamo_probe.logs.runlog import RunLog
from dynamo_probe.logs.views import VIEWS, raster, view


def panel(found: View, key: str) -> object:
    [one] = [one for one in found.panels if one.key == key]
    return one


def scores_of(step: int, layer: int, units: int = 7) -> np.ndarray:
    return np.random.default_rng([step, layer]).exponential(0.2, units)


@pytest.fixture
def log() -> RunLog:
    recording = Recording()
    for step in range(10, 110, 10):
        readings = [Reading(step, "dormancy/scores/first", scores_of(step, 0))]
        if step % 20 == 0:  # the second layer is read at every second update only
            readings.append(Reading(step, "dormancy/scores/second", scores_of(step, 1, 5)))
        readings += [
            Reading(step, "dormancy/overlap", 0.5 if step > 10 else float("nan")),
            Reading(step, "clock/environment steps", 4.0 * step),
            Reading(step, "granet/density", 1 - step / 200),
            Reading(step, "granet/target", 1 - step / 200 + 0.01),
            Reading(step, "topology/layer/first/density", step / 100),
            Reading(step, "topology/turnover", 0.1),
            Reading(step, "plasticity/rate=0.9/plasticity", -step / 100),
            Reading(step, "plasticity/lr", 1e-3),
            Reading(step, "repetition/fraction", 0.25),
            Reading(step, "repetition/fresh", 0.75),
            Reading(step, "repetition/repeats=2", 0.2),
            Reading(step, "repetition/repeats=3-4", 0.04),
            Reading(step, "repetition/repeats=unknown", 0.01),
            Reading(step, "induction/layers", 2.0),
            Reading(step, "induction/prefix_matching_by_head", np.arange(6) / step),
            Reading(step, "redo/recycled_total", float(step // 50)),
        ]
        events = [Event(50, "recycled", "first", {"units": [3, 6]})] if step == 50 else []
        if step == 100:
            events.append(Event(100, "alert", "<b>x</b>", {"reason": "why", "value": 2.0}))
        recording.add(step, readings, events, 1000.0 + step)
    return recording.log()


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.3])
def test_the_map_of_units_is_the_share_of_scores_at_most_tau(log: RunLog, tau: float) -> None:
    found = panel(view(log, "units", tau), "dormant")
    assert isinstance(found, Map)
    assert found.rows == ("first", "second")
    assert found.axis["updates"].tolist() == list(range(10, 110, 10))
    assert found.axis["wall"].tolist() == [1000.0 + step for step in range(10, 110, 10)]
    assert found.axis["environment steps"].tolist() == [4.0 * s for s in range(10, 110, 10)]
    for column, step in enumerate(range(10, 110, 10)):
        first = sum(score <= tau for score in scores_of(step, 0)) / 7
        assert found.values[0, column] == pytest.approx(first)
        if step % 20:
            assert np.isnan(found.values[1, column])
        else:
            second = sum(score <= tau for score in scores_of(step, 1, 5)) / 5
            assert found.values[1, column] == pytest.approx(second)


def test_the_raster_gives_each_units_state_and_its_recyclings(log: RunLog) -> None:
    found = raster(log, "first")
    assert found.recycled.tolist() == [[3, 50], [6, 50]]
    for column, step in enumerate(found.axis["updates"].tolist()):
        for unit, score in enumerate(scores_of(step, 0)):
            for index, tau in enumerate(found.taus):
                assert (found.codes[unit, column] <= index) == (score <= tau)
    as_json = plain(found)
    raw = base64.b64decode(as_json["codes"]["base64"])
    assert (
        np.array_equal(np.frombuffer(raw, np.uint8).reshape(7, 10), found.codes)
        and as_json["codes"]["rows"] == 7
    )
    with pytest.raises(ValueError, match="no layer 'third'"):
        raster(log, "third")


def test_the_sentences_say_the_numbers(log: RunLog) -> None:
    found = view(log, "overview")
    dormant = {
        step: sum(s <= 0.1 for s in [*scores_of(step, 0), *scores_of(step, 1, 5)]) / 12
        for step in (20, 100)
    }
    words = " ".join(found.sentences)
    assert f"{100 * dormant[100]:.0f} % of units dormant (tau 0.1)" in words
    assert f"{100 * dormant[20]:.0f} % at update 20" in words
    assert "50 % of them the same as at the reading before" in words
    assert "redo: 2 recycled." in words
    assert "50 % of the connections are kept, target 51 %" in words
    assert "Pruning plasticity at rate=0.9: -1.000." in words
    assert "25 % of the tokens are repeated data" in words and "1 alert." in words
    assert found.alerts == (
        {"update": 100, "kind": "alert", "subject": "<b>x</b>", "text": "why; value: 2.0"},
    )


def test_connections_are_shown_with_their_targets(log: RunLog) -> None:
    found = view(log, "connections")
    density = panel(found, "density")
    assert isinstance(density, Lines)
    assert [(one.name, one.style) for one in density.lines] == [
        ("granet: actual", "solid"),
        ("granet: target", "dashed"),
    ]
    assert density.lines[0].values.tolist() == [1 - step / 200 for step in range(10, 110, 10)]
    layers = panel(found, "layer-density")
    assert isinstance(layers, Map) and layers.rows == ("first",)
    assert layers.values[0].tolist() == pytest.approx([s / 100 for s in range(10, 110, 10)])
    keys = [one.key for one in found.panels]
    assert keys == ["density", "layer-density", "turnover", "plasticity", "lr"]


def test_heads_and_repeats_are_in_their_places(log: RunLog) -> None:
    found = view(log, "heads")
    grid = panel(found, "induction-prefix-matching")
    assert isinstance(grid, Grid)
    assert grid.frames.shape == (10, 2, 3)
    assert grid.frames[4].ravel().tolist() == pytest.approx((np.arange(6) / 50).tolist())
    bars = panel(found, "repeats")
    assert isinstance(bars, Bars)
    assert bars.categories == ("fresh", "2", "3-4", "unknown")
    assert bars.values.tolist() == [0.75, 0.2, 0.04, 0.01]


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_json_without_nan_and_say_why_they_are_empty(log: RunLog, name: str) -> None:
    text = json.dumps(plain(view(log, name)), allow_nan=False)
    assert json.loads(text)["name"] == name
    empty = view(RunLog(0, 0.0, 0.0), name)
    assert empty.sentences if name == "overview" else "dp." in empty.empty
    json.dumps(plain(empty), allow_nan=False)


def test_what_there_is_not_is_refused(log: RunLog) -> None:
    with pytest.raises(ValueError, match="there are overview, units"):
        view(log, "weights")
    with pytest.raises(ValueError, match="tau=0.11 was not recorded; give one of 0, 0.001"):
        view(log, "units", 0.11)


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.004, "0.4 %"), (0.996, "99.6 %"), (0.5, "50 %"),
     (1e-9, "1e-07 %")],
)  # fmt: skip
def test_a_share_is_0_or_100_per_cent_only_where_it_is_exactly(share: float, words: str) -> None:
    assert _percent(share) == words


def test_recyclings_of_units_that_are_not_shown_are_left_out_and_others_are_in_their_rows() -> None:
    recording = Recording()
    scores = Reading(1, "dormancy/scores/a", np.linspace(0, 1, 4096))
    event = Event(1, "recycled", "a", {"units": [0, 1, 4095]})
    recording.add(1, [scores], [event], 1.0)
    found = raster(recording.log(), "a")
    assert found.units[0] == 0 and found.units[-1] == 4095 and 1 not in found.units
    assert found.recycled.tolist() == [[0, 1], [len(found.units) - 1, 1]]
    assert "512 of 4,096 units" in found.title


def test_a_clock_is_not_known_before_and_after_it_was_read() -> None:
    recording = Recording()
    for step in range(1, 6):
        readings = [Reading(step, "rank/effective", 1.0)]
        if 2 <= step <= 4:
            readings.append(Reading(step, "clock/frames", 10.0 * step))
        recording.add(step, readings, [], 1.0)
    line = panel(view(recording.log(), "overview"), "rank-now").lines[0]  # type: ignore[attr-defined]
    frames = line.axis["frames"].tolist()
    assert frames[1:4] == [20.0, 30.0, 40.0]
    assert np.isnan(frames[0]) and np.isnan(frames[4])


def test_of_many_alerts_no_exact_number_is_said() -> None:
    for alerts, words in ((499, "499 alerts."), (3000, "At least 500 alerts.")):
        recording = Recording()
        for step in range(1, alerts + 1):
            recording.add(step, [], [Event(step, "alert", "x", {})], 1.0)
        assert words in view(recording.log(), "overview").sentences
