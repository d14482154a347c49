"""Repeated data: exact counts, the controls, what is refused with the nearest valid numbers."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, TensorDataset

from dynamo_probe.data import RepeatedMixture


def counts(indices) -> Counter[int]:
    return Counter(int(index) for index in indices)


@settings(deadline=None)
@given(
    pool=st.integers(1, 12), repeats=st.integers(2, 15), fresh=st.integers(0, 200),
    spare=st.integers(0, 50), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_each_sample_of_the_pool_comes_as_often_as_asked_and_all_others_once(
    pool, repeats, fresh, spare, seed
):
    fraction = Fraction(pool * repeats, pool * repeats + fresh)
    mixture = RepeatedMixture(range(pool + fresh + spare), fraction, pool, repeats, seed)
    times = counts(mixture.order)
    chosen, rest = counts(mixture.pool_indices), counts(mixture.fresh_indices)
    assert len(mixture) == pool * repeats + fresh
    assert len(chosen) == pool and len(rest) == fresh and not chosen & rest
    assert all(times[index] == repeats for index in chosen)
    assert all(times[index] == 1 for index in rest)
    assert len(times) == pool + fresh
    repeated = mixture.order[mixture.repeated]
    assert counts(repeated) == {index: repeats for index in chosen}


@pytest.mark.parametrize(
    ("fraction", "pool", "repeats", "total"),
    [
        # Hernandez et al. 2022, section 1.1: a share of 10 %, 0.1 % of the data 100 times.
        (0.1, 100, 100, 100_000),
        (0.1, 10, 1_000, 100_000),
        (0.5, 240, 100, 48_000),
        (0.9, 240, 180, 48_000),
        (0.03, 3, 100, 10_000),
        (1 / 3, 10, 10, 300),
        (0.7, 7, 10, 100),
        (1.0, 5, 2, 10),
        (1, 5, 2, 10),
    ],
)
def test_the_total_is_exact_where_binary_fractions_are_not(fraction, pool, repeats, total):
    mixture = RepeatedMixture(range(100_000), fraction, pool, repeats)
    assert len(mixture) == total
    assert int(mixture.repeated.sum()) == pool * repeats


def test_repeats_are_spread_over_the_whole_training():
    mixture = RepeatedMixture(range(10_000), 0.5, 10, 500, seed=0)
    tenths = mixture.repeated.view(10, -1).double().mean(1)
    # 1,000 positions each: a deviation of at most 0.016.
    assert ((tenths - 0.5).abs() < 0.08).all()
    assert len(mixture.order[:100].unique()) > 50


def test_a_seed_gives_one_order_and_another_seed_another():
    first, same, other = (RepeatedMixture(range(500), 0.5, 5, 10, seed) for seed in (1, 1, 2))
    assert torch.equal(first.order, same.order)
    assert not torch.equal(first.order, other.order)
    assert counts(first.pool_indices) != counts(other.pool_indices)


def test_torchs_random_state_is_left_alone():
    before = torch.get_rng_state()
    RepeatedMixture(range(500), 0.5, 5, 10, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_baseline_has_as_many_positions_and_no_repeat():
    mixture = RepeatedMixture(range(500), 0.9, 3, 30, seed=4)
    baseline = mixture.unrepeated()
    assert len(baseline) == len(mixture) == 100
    assert max(counts(baseline.order).values()) == 1
    assert not baseline.repeated.any()


def test_the_control_is_the_mixture_without_its_repeats_in_the_same_order():
    mixture = RepeatedMixture(range(500), 0.9, 3, 30, seed=4)
    control = mixture.unique_only()
    pool = set(mixture.pool_indices.tolist())
    assert control.order.tolist() == [i for i in mixture.order.tolist() if i not in pool]
    assert len(control) == 10 and not control.repeated.any()
    assert counts(control.order) == counts(mixture.fresh_indices)


def test_it_reads_the_dataset_it_is_given():
    data = TensorDataset(torch.arange(300) * 10)
    mixture = RepeatedMixture(data, 0.5, 4, 5)
    read = [int(sample) for (sample,) in (mixture[place] for place in range(len(mixture)))]
    assert read == (mixture.order * 10).tolist()
    assert mixture.__getitems__([3, 0]) == [
        data[int(mixture.order[3])],
        data[int(mixture.order[0])],
    ]
    with pytest.raises(IndexError):
        mixture[len(mixture)]


@settings(deadline=None)
@given(
    percent=st.integers(1, 99), pool=st.integers(1, 60), repeats=st.integers(2, 60),
)  # fmt: skip
def test_counts_that_do_not_come_out_even_are_refused_with_counts_that_do(percent, pool, repeats):
    data = range(400_000)
    fraction = Fraction(percent, 100)
    if (pool * repeats / fraction).denominator == 1:
        assert len(RepeatedMixture(data, percent / 100, pool, repeats)) == pool * repeats / fraction
        return
    with pytest.raises(ValueError, match="not a whole number") as error:
        RepeatedMixture(data, percent / 100, pool, repeats)
    advice = re.search(
        r"give repeats=(\d+), or pool=(\d+), or fraction=Fraction\((\d+), (\d+)\)", str(error.value)
    )
    assert advice is not None
    other_repeats, other_pool, above, below = map(int, advice.groups())
    RepeatedMixture(data, percent / 100, pool, other_repeats)
    RepeatedMixture(data, percent / 100, other_pool, repeats)
    near = RepeatedMixture(data, Fraction(above, below), pool, repeats)
    assert abs(len(near) - pool * repeats / fraction) <= Fraction(1, 2)
    # No number between the advice and what was asked for would have done.
    for value in range(min(repeats, other_repeats) + 1, max(repeats, other_repeats)):
        assert (pool * value / fraction).denominator != 1


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"above 0 and up to 1.*unrepeated\(\)"):
        RepeatedMixture(range(100), fraction, 1, 2)


@pytest.mark.parametrize(("pool", "repeats"), [(0, 2), (1, 1), (-1, 5)])
def test_counts_out_of_range_are_refused(pool, repeats):
    with pytest.raises(ValueError, match="at least 1 and 2"):
        RepeatedMixture(range(100), 0.5, pool, repeats)


def test_a_dataset_that_is_too_small_is_refused_with_what_is_needed():
    RepeatedMixture(range(22), 0.5, 2, 10)
    with pytest.raises(ValueError, match="need 22 samples, but the dataset has 21"):
        RepeatedMixture(range(21), 0.5, 2, 10)
    with pytest.raises(ValueError, match="40 samples without a repeat .* has 22"):
        RepeatedMixture(range(22), 0.5, 2, 10).unrepeated()


def test_nothing_but_repeats_has_no_control():
    with pytest.raises(ValueError, match="lower the fraction"):
        RepeatedMixture(range(22), 1.0, 2, 10).unique_only()


def test_a_dataset_without_a_length_is_refused():
    class Endless(IterableDataset):
        def __iter__(self):
            yield 0

    with pytest.raises(TypeError, match="Endless has no len"):
        RepeatedMixture(Endless(), 0.5, 2, 10)
