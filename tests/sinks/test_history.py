"""Readings in memory come back as they went in, bounded, and survive a checkpoint."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.instrument import Reading
from dynamo_probe.sinks import History

TAG = "dormancy/tau=0.1"


def filled(points: int = 5, capacity: int = 20_000) -> History:
    history = History(capacity)
    for step in range(1, points + 1):
        history.add([Reading(step, TAG, step / 7, samples=step), Reading(step, "rank/fc1", -step)])
    history.add([Reading(points, "dormancy/scores/fc1", np.array([0.5, 1.5], np.float32), 64)])
    return history


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**40),
            st.floats(allow_nan=True, allow_infinity=True),
            st.none() | st.integers(0, 2**40),
        ),
        min_size=1,
        max_size=50,
    )
)
def test_a_series_comes_back_exactly_whatever_the_values(points):
    history = History()
    history.add(Reading(step, "a", value, samples) for step, value, samples in points)
    steps, values = history.series("a")
    assert steps.dtype == np.int64 and values.dtype == np.float64
    assert steps.tolist() == [step for step, _, _ in points]
    np.testing.assert_array_equal(values, [value for _, value, _ in points])
    np.testing.assert_equal(history.latest("a"), points[-1][1])
    assert history.samples("a") == points[-1][2]


def test_tags_are_sorted_and_counted():
    history = filled(5)
    assert history.tags() == ["dormancy/scores/fc1", TAG, "rank/fc1"]
    assert len(history) == 11
    assert TAG in history and "nothing" not in history
    assert repr(history) == "History(11 readings of 3 tags, updates 1 to 5)"
    assert repr(History()) == "History(empty)"


def test_of_a_reading_per_unit_only_the_newest_is_kept():
    history = History()
    for step in (1, 2):
        history.add([Reading(step, "scores", np.array([step, math.nan]), samples=step)])
    np.testing.assert_array_equal(history.latest("scores"), [2, math.nan])
    assert history.samples("scores") == 2
    assert len(history) == 1
    steps, values = history.series("scores")
    assert steps.tolist() == [2]
    np.testing.assert_array_equal(values, [[2, math.nan]])


def test_the_history_keeps_copies():
    value = np.zeros(2)
    history = History()
    history.add([Reading(1, "a", value), Reading(1, "b", 1.0)])
    value[:] = 9
    history.series("b")[1][:] = 9
    history.series("a")[1][:] = 9
    assert history.latest("a").tolist() == [0, 0]
    assert history.latest("b") == 1.0


def test_a_full_series_is_thinned_evenly_and_keeps_both_ends():
    history = filled(1000, capacity=100)
    steps, values = history.series(TAG)
    # Of the points numbered 0 to 999, every 16th and the last: 64 points. Every 8th would be 126.
    expected = [*range(1, 1001, 16), 1000]
    assert steps.tolist() == expected
    assert values.tolist() == [step / 7 for step in expected]
    assert history.samples(TAG) == 1000


def test_an_unknown_tag_names_the_similar_ones():
    with pytest.raises(KeyError, match=r"'dormancy/tau=0\.2'; did you mean 'dormancy/tau=0\.1'"):
        filled().series("dormancy/tau=0.2")
    for look in (History.latest, History.samples, History.series):
        with pytest.raises(KeyError, match="tags\\(\\) lists what was"):
            look(filled(), "zzzzzzzzzzzzz")
        with pytest.raises(KeyError, match="nothing was read at all"):
            look(History(), "a")


def test_one_tag_cannot_hold_both_kinds_of_reading():
    for values in ([1.0, np.zeros(2)], [np.zeros(2), 1.0]):
        history = History()
        history.add([Reading(1, "a", values[0])])
        with pytest.raises(ValueError, match="'a' holds both .*; use two tags"):
            history.add([Reading(2, "a", values[1])])


@pytest.mark.parametrize("points", [0, 1, 5, 40])
def test_a_checkpointed_history_goes_on_exactly_like_the_uninterrupted_one(points, tmp_path):
    def more(history: History, first: int) -> None:
        for step in range(first, first + 60):
            history.add([Reading(step, "a", 1 / step, None), Reading(step, "b", step, step)])

    whole, before, after = History(16), History(16), History(16)
    for history in (whole, before):
        for step in range(1, points + 1):
            history.add([Reading(step, "a", 1 / step, None), Reading(step, "v", np.ones(3) / step)])
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after.add([Reading(9, "stale", 0.0)])
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for history in (whole, after):
        more(history, points + 1)
    assert after.tags() == whole.tags()
    for tag in whole.tags():
        for one, other in zip(after.series(tag), whole.series(tag), strict=True):
            np.testing.assert_array_equal(one, other)
        assert after.samples(tag) == whole.samples(tag)


def test_a_state_is_not_changed_by_what_is_read_later():
    history = filled(3)
    state = history.state_dict()
    history.add([Reading(4, TAG, 4.0)])
    assert state["scalars"][TAG]["steps"].tolist() == [1, 2, 3]
    assert state["scalars"][TAG]["values"].dtype == torch.float64


def test_a_smaller_history_takes_a_larger_one_thinned():
    small = History(10)
    small.load_state_dict(filled(100, capacity=100).state_dict())
    expected = filled(100, capacity=10)
    assert small.series(TAG)[0].tolist() == expected.series(TAG)[0].tolist()


def test_a_foreign_state_is_refused_and_changes_nothing():
    history = filled(3)
    for state in ({}, {"scalars": {"a": {}}, "vectors": {}}, {"scalars": [], "vectors": {}}):
        with pytest.raises(ValueError, match="give what History.state_dict"):
            history.load_state_dict(state)
    assert len(history) == 7


def test_pandas_gets_a_long_table_of_scalars():
    table = filled(2).to_pandas()
    assert list(table.columns) == ["step", "tag", "value", "samples"]
    assert table["tag"].tolist() == [TAG, TAG, "rank/fc1", "rank/fc1"]
    assert table["step"].tolist() == [1, 2, 1, 2]
    assert table["value"].tolist() == [1 / 7, 2 / 7, -1, -2]
    assert table["samples"].isna().tolist() == [False, False, True, True]
    assert table["samples"].dropna().tolist() == [1, 2]
    assert len(History().to_pandas()) == 0


def test_without_pandas_the_message_says_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        filled().to_pandas()


def test_a_capacity_below_two_is_refused_at_once():
    with pytest.raises(ValueError, match="capacity is 1"):
        History(1)
