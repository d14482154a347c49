"""A thinned series is even, and has the first and the newest point."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.thinning import Thinning


def kept(points: int, capacity: int) -> list[int]:
    """Say by definition which points are kept: multiples of the smallest stride that fits."""
    stride = 1
    while True:
        chosen = sorted({*range(0, points, stride), points - 1}) if points else []
        if len(chosen) <= capacity:
            return chosen
        stride *= 2


@given(points=st.integers(0, 400), capacity=st.integers(2, 33))
def test_the_kept_points_are_the_multiples_of_the_stride_and_the_newest(points, capacity):
    thinning, series = Thinning(capacity), []
    for point in range(points):
        thinning.append((series,), (point,))
        assert series[0] == 0 and series[-1] == point
        assert len(series) <= capacity
    assert series == kept(points, capacity)
    assert thinning.count == points


def test_once_full_a_series_never_falls_below_half_its_capacity():
    thinning, series, fewest = Thinning(16), [], 16
    for point in range(2000):
        thinning.append((series,), (point,))
        if point >= 16:
            fewest = min(fewest, len(series))
    assert fewest == 9  # 0, 2, ..., 14 and the newest, 16


@given(points=st.integers(0, 200), capacity=st.integers(2, 20), data=st.data())
def test_after_a_cut_the_series_goes_on_as_if_the_later_points_had_not_been(points, capacity, data):
    thinning, series = Thinning(capacity), []
    for point in range(points):
        thinning.append((series,), (point,))
    length = data.draw(st.integers(0, len(series)))
    whole = list(series)
    thinning.cut((series,), length)
    assert series == whole[:length]
    following = thinning.count
    assert following == (series[-1] + 1 if series else 0)
    for point in range(following, following + 100):
        thinning.append((series,), (point,))
        assert len(series) <= capacity
        assert series[-1] == point
    assert all(point % thinning.stride == 0 for point in series[:-1])


def test_columns_are_thinned_together():
    thinning, one, two = Thinning(4), [], []
    for point in range(50):
        thinning.append((one, two), (point, -point))
    assert two == [-point for point in one]


def test_a_capacity_without_room_for_both_ends_is_refused():
    with pytest.raises(ValueError, match="capacity is 1; give 2 or more"):
        Thinning(1)
