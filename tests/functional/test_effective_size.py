"""Effective size and compute-equivalent loss: closed forms, published values, what is refused."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.functional.effective_size import compute_equivalent_loss, effective_size

SIZES = st.lists(st.floats(1.0, 1e12), min_size=2, max_size=8, unique=True).map(sorted)


def line(size: float) -> float:
    """A loss that is linear in the logarithm of the size, so that interpolation is exact."""
    return 6.0 - 0.2 * math.log(size)


def test_the_published_example_is_340_million_parameters_and_a_divisor_of_2_37():
    # Hernandez et al. 2022, section 2: 805M parameters, as good as "nearly 340M".
    baseline = {n: line(n) for n in (1.57e6, 5e6, 4e7, 2e8, 4e8, 805e6)}
    found = effective_size(baseline, line(340e6))
    assert found == pytest.approx(340e6, rel=1e-12)
    assert round(805e6 / found, 2) == 2.37
    assert found.reason is None


def test_the_published_compute_equivalent_loss_is_a_third():
    # Chudnovsky et al. 2026, abstract: the loss of an unrepeated run with 67% of the FLOPs.
    baseline = {c: line(c) for c in (1e17, 1e18, 1e19, 1e20)}
    lost = compute_equivalent_loss(baseline, line(0.67 * 3e19), compute=3e19)
    assert lost == pytest.approx(0.33, abs=1e-12)
    assert lost.effective_compute == pytest.approx(0.67 * 3e19, rel=1e-12)


def test_halfway_in_the_metric_is_the_geometric_mean_of_the_sizes():
    assert effective_size({100: 3.0, 10_000: 1.0}, 2.0) == pytest.approx(1_000, rel=1e-14)


@given(SIZES, st.data())
def test_a_point_of_the_baseline_has_its_own_size(sizes, data):
    metrics = data.draw(strictly_monotone(len(sizes)))
    place = data.draw(st.integers(0, len(sizes) - 1))
    found = effective_size(dict(zip(sizes, metrics, strict=True)), metrics[place])
    assert found == sizes[place]
    assert found.reason is None


@given(SIZES, st.data())
def test_a_monotone_table_is_inverted_as_numpy_inverts_it(sizes, data):
    metrics = data.draw(strictly_monotone(len(sizes)))
    metric = data.draw(st.floats(min(metrics), max(metrics)))
    rising = metrics[0] < metrics[-1]
    x, y = (metrics, np.log(sizes)) if rising else (metrics[::-1], np.log(sizes)[::-1])
    found = effective_size(dict(zip(sizes, metrics, strict=True)), metric)
    assert found.reason is None
    assert math.log(found) == pytest.approx(np.interp(metric, x, y), rel=1e-9, abs=1e-9)


@given(SIZES, st.data(), st.floats(1e-6, 1e6))
def test_outside_the_range_nothing_is_claimed(sizes, data, beyond):
    metrics = data.draw(strictly_monotone(len(sizes)))
    baseline = dict(zip(sizes, metrics, strict=True))
    for metric in (min(metrics) - beyond, max(metrics) + beyond):
        found = effective_size(baseline, metric)
        assert math.isnan(found)
        assert found.reason is not None and "outside" in found.reason


@given(SIZES, st.data())
def test_the_order_of_the_table_does_not_matter(sizes, data):
    metrics = data.draw(strictly_monotone(len(sizes)))
    metric = data.draw(st.floats(min(metrics), max(metrics)))
    points = list(zip(sizes, metrics, strict=True))
    shuffled = data.draw(st.permutations(points))
    assert effective_size(dict(shuffled), metric) == effective_size(dict(points), metric)


@st.composite
def strictly_monotone(draw, count: int) -> list[float]:
    steps = draw(st.lists(st.floats(1e-3, 10.0), min_size=count, max_size=count))
    metrics = [float(total) for total in np.cumsum(steps)]
    return metrics if draw(st.booleans()) else metrics[::-1]


def test_a_baseline_that_turns_is_ambiguous_only_where_it_does():
    baseline = {1: 5.0, 10: 3.0, 100: 3.5, 1_000: 1.0}
    twice = effective_size(baseline, 3.2)
    assert math.isnan(twice) and "3 sizes or more, from" in str(twice.reason)
    assert effective_size(baseline, 4.0) == pytest.approx(10**0.5)
    assert effective_size(baseline, 2.25) == pytest.approx(1_000 / 10**0.5)


def test_a_flat_piece_at_the_metric_is_ambiguous():
    found = effective_size({1: 4.0, 10: 3.0, 100: 3.0, 1_000: 1.0}, 3.0)
    assert math.isnan(found) and "one way" in str(found.reason)


@pytest.mark.parametrize("metric", [math.nan, math.inf, -math.inf])
def test_a_run_that_diverged_has_no_size(metric):
    found = effective_size({1: 4.0, 10: 3.0}, metric)
    assert math.isnan(found) and found.reason == f"the metric is {metric}"
    lost = compute_equivalent_loss({1: 4.0, 10: 3.0}, metric, compute=5.0)
    assert math.isnan(lost) and math.isnan(lost.effective_compute) and lost.reason


@pytest.mark.parametrize(
    ("baseline", "advice"),
    [
        ({}, "at least two"),
        ({10: 3.0}, "at least two"),
        ({0: 4.0, 10: 3.0}, "positive"),
        ({-1: 4.0, 10: 3.0}, "positive"),
        ({math.inf: 4.0, 10: 3.0}, "positive, finite"),
        ({math.nan: 4.0, 10: 3.0}, "positive, finite"),
        ({1: math.nan, 10: 3.0}, "leave that run out"),
        ({1: math.inf, 10: 3.0}, "leave that run out"),
    ],
)
def test_a_wrong_baseline_is_refused_with_the_fix(baseline, advice):
    with pytest.raises(ValueError, match=advice):
        effective_size(baseline, 3.5)
    with pytest.raises(ValueError, match=advice):
        compute_equivalent_loss(baseline, 3.5, compute=1.0)


@pytest.mark.parametrize("compute", [0, -1, math.nan, math.inf])
def test_a_compute_that_is_none_is_refused(compute):
    with pytest.raises(ValueError, match="positive, finite"):
        compute_equivalent_loss({1: 4.0, 10: 3.0}, 3.5, compute=compute)


def test_a_run_that_is_better_than_its_compute_has_lost_less_than_nothing():
    assert compute_equivalent_loss({1: 4.0, 100: 2.0}, 3.0, compute=5.0) == pytest.approx(-1.0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_what_a_result_carries_survives_a_copy(again):
    size = again(effective_size({1: 4.0, 10: 3.0}, 5.0))
    assert math.isnan(size) and size.reason == (
        "the metric 5 is outside the baseline's range, 3 to 4"
    )
    lost = again(compute_equivalent_loss({1: 4.0, 100: 2.0}, 3.0, compute=20.0))
    assert (lost, lost.effective_compute, lost.reason) == (
        pytest.approx(0.5),
        pytest.approx(10),
        None,
    )
