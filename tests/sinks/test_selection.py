"""Few tags, the pooled ones first, and few pictures, however long a run is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.sinks.selection import ImageTimes, ScalarTags, primary_tau


def test_pooled_tags_come_first_then_every_layer_at_the_primary_threshold():
    layers = [f"dormancy/layer/{x}/tau={tau}" for x in "abcdef" for tau in ("0.025", "0.1")]
    pooled = ["dormancy/tau=0.025", "dormancy/tau=0.1"]
    tags = ScalarTags(12)
    tags.admit([*layers, *pooled], "0.1")
    # 12 less a quarter leaves 9: two pooled ones, six layers at 0.1, and one more.
    primary = [tag for tag in layers if tag.endswith("tau=0.1")]
    assert tags.admitted == {*pooled, *primary, "dormancy/layer/a/tau=0.025"}
    assert tags.refused == {*layers} - tags.admitted


def test_a_pooled_tag_that_comes_late_finds_room():
    tags = ScalarTags(8)
    tags.admit((f"dormancy/layer/{x}/tau=0.1" for x in range(50)), "0.1")
    assert len(tags.admitted) == 6
    tags.admit(["redo/recycled"], "0.1")
    assert "redo/recycled" in tags.admitted


@given(st.lists(st.lists(st.text("ab/", max_size=6), max_size=12), max_size=12), st.integers(1, 12))
def test_no_more_tags_than_allowed_are_written_and_none_is_dropped_later(updates, most):
    tags = ScalarTags(most)
    for update in updates:
        before = set(tags.admitted)
        tags.admit(update, None)
        assert before <= tags.admitted
        assert len(tags.admitted) <= most
        assert set(update) <= tags.admitted | tags.refused
        assert not tags.admitted & tags.refused


def test_refused_tags_are_news_once():
    tags = ScalarTags(1)
    tags.admit(["a"], None)
    assert tags.news() is None
    tags.admit(["b", "c"], None)
    assert tags.news() == (
        "2 scalar tags, such as b, are beyond max_scalar_tags=1 and are not written to "
        "TensorBoard; they are in watch.history, and layers are in the heatmap"
    )
    tags.told = True
    assert tags.news() is None


@pytest.mark.parametrize("every", [1, 7, 100, 12_345])
def test_pictures_are_spaced_logarithmically_and_bounded(every):
    times, drawn = ImageTimes(), []
    for reading in range(1, 200_000):
        if times.due(reading * every):
            times.drawn(reading * every)
            drawn.append(reading * every)
    assert drawn[0] == every
    assert 20 <= len(drawn) <= 39
    ratios = [later / earlier for earlier, later in zip(drawn, drawn[1:], strict=False)]
    assert min(ratios) > 1
    # Readings are too far apart at the start; then there are ten pictures a decade.
    settled = [r for r, step in zip(ratios[:18], drawn, strict=False) if step > 40 * every]
    assert all(1.24 < ratio < 1.30 for ratio in settled)


def test_there_are_pictures_even_after_a_hundred_million_updates():
    times, step = ImageTimes(), 1
    while times.count < 39:
        step = max(step + 1, times.next)
        times.drawn(step)
    assert step > 100_000_000
    assert not times.due(10**30)


@pytest.mark.parametrize(
    ("taus", "primary"),
    [
        (["0.0", "0.025", "0.1", "0.5"], "0.1"),
        (["0.10", "0.5"], "0.10"),
        (["0.0", "0.05", "0.025"], "0.05"),
        (["1e-3", "x"], "1e-3"),
        (["x"], "x"),
    ],
)
def test_the_primary_threshold_is_a_tenth_or_else_the_largest(taus, primary):
    assert primary_tau(taus) == primary
    assert primary_tau(reversed(taus)) == primary
