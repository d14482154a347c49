"""Change points against a loop over all splits in exact fractions; the false alarms of noise."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.functional.change_point import ChangePoint, change_point
from dynamo_probe.functional.formation import expected_formation

# Whole numbers over a power of two: the loop below is exact, and so are equal splits.
series = st.lists(st.integers(-64, 64).map(lambda x: x / 8), min_size=3, max_size=30)


def naive(values: list[float]) -> tuple[int, Fraction, Fraction, Fraction] | None:
    """Best split, the share that it explains and both means; None for a constant series."""
    exact = [Fraction(value) for value in values]

    def error(part: list[Fraction]) -> Fraction:
        mean = sum(part, Fraction(0)) / len(part)
        return sum(((x - mean) ** 2 for x in part), Fraction(0))

    total = error(exact)
    if total == 0:
        return None
    errors = {k: error(exact[:k]) + error(exact[k:]) for k in range(1, len(exact))}
    best = min(errors, key=lambda k: (errors[k], k))
    before, after = exact[:best], exact[best:]
    return (
        best,
        1 - errors[best] / total,
        sum(before, Fraction(0)) / len(before),
        sum(after, Fraction(0)) / len(after),
    )


@given(series)
def test_the_split_is_that_of_a_loop_over_all_splits_in_fractions(values: list[float]):
    wanted = naive(values)
    found = change_point(values)
    if wanted is None:
        assert math.isnan(found.gain) and not found.significant and found.p_value == 1
        assert found.index == 1 and found.before == found.after == values[0]
        return
    index, gain, before, after = wanted
    assert found.index == index
    assert found.gain == pytest.approx(float(gain), rel=1e-12, abs=1e-14)
    assert found.before == pytest.approx(float(before), rel=1e-15, abs=1e-300)
    assert found.after == pytest.approx(float(after), rel=1e-15, abs=1e-300)


@given(series, st.integers(-40, 40), st.integers(-1000, 1000))
def test_scale_and_offset_change_neither_split_nor_gain(
    values: list[float], power: int, offset: int
):
    plain = change_point(values)
    moved = change_point([value * 2.0**power for value in values])
    assert (moved.index, moved.p_value) == (plain.index, plain.p_value)
    shifted = change_point([value + offset for value in values])
    assert shifted.index == plain.index
    assert shifted.gain == pytest.approx(plain.gain, rel=1e-12, nan_ok=True)


def test_of_equally_good_splits_the_first_is_taken():
    assert change_point([0.0, 1.0, 0.0]).index == 1
    assert change_point([0.1, 0.3, 0.1, 0.3, 0.1]).index == 1


@pytest.mark.parametrize("place", [1, 2, 50, 98, 99])
def test_a_step_without_noise_is_found_where_it_is(place: int):
    found = change_point([0.03] * place + [0.6] * (100 - place))
    assert found.index == place and found.significant
    assert found.gain == pytest.approx(1.0, abs=1e-12)
    assert (found.before, found.after) == (pytest.approx(0.03), pytest.approx(0.6))


def test_a_step_of_two_standard_deviations_is_found_near_its_place():
    random = np.random.default_rng(0)
    for _ in range(50):
        values = random.standard_normal(200)
        values[120:] += 2.0
        found = change_point(values)
        assert found.significant and abs(found.index - 120) <= 10
        assert found.after > found.before


@pytest.mark.parametrize("count", [3, 5, 20, 200])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_noise_alone_is_called_a_change_no_more_often_than_the_level(count: int, level: float):
    random = np.random.default_rng(count)
    runs = 4000
    alarms = sum(
        change_point(values, level=level).significant
        for values in random.standard_normal((runs, count))
    )
    # Four standard deviations of a binomial count above its mean.
    assert alarms <= runs * level + 4 * math.sqrt(runs * level)
    assert alarms > 0, "a guard that never lets anything through proves nothing"


def test_the_p_value_bounds_the_f_test_of_every_split():
    """Against the tail of Beta(1/2, (n - 2)/2) integrated by the midpoint rule."""
    for values in ([0.0, 0.2, 0.9, 1.0], [0.0, 1.0, 0.2, 0.8, 0.9, 1.1, 0.7], [0.0, 5.0, 1.0, 2.0]):
        found, count = change_point(values), len(values)
        half = (count - 2) / 2
        # With x = 1 - u^2 the integrand has no pole at 1.
        top, cells = math.sqrt(1 - found.gain), 20_000
        u = (np.arange(cells) + 0.5) * top / cells
        integral = (2 * u ** (2 * half - 1) / np.sqrt(1 - u**2)).sum() * top / cells
        beta = math.gamma(0.5) * math.gamma(half) / math.gamma(half + 0.5)
        exact = min(1.0, (count - 1) * integral / beta)
        assert exact <= found.p_value * (1 + 1e-6)
        assert found.p_value <= min(1.0, exact / math.sqrt(found.gain)) * (1 + 1e-6)


def test_values_that_differ_in_the_last_bit_alone_are_told_apart():
    above = math.nextafter(0.1, 1.0)
    found = change_point([0.1, 0.1, above, above])
    assert found.index == 2 and found.gain == 1.0


def test_a_tensor_an_array_and_a_list_are_the_same_and_are_left_alone():
    values = [0.0, 0.5, 4.0, 4.5]
    tensor, array = torch.tensor(values, requires_grad=True), np.array(values)
    assert change_point(values) == change_point(array) == change_point(tensor)
    assert isinstance(change_point(values), ChangePoint)
    assert array.tolist() == values and tensor.tolist() == values


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, 2.0], "3 or more"),
        ([[1.0, 2.0, 3.0]], "3 or more"),
        ([1.0, float("nan"), 2.0], "not finite"),
        ([1.0, float("inf"), 2.0], "not finite"),
        ([1e308, -1e308, 0.0], "scale them down"),
    ],
)
def test_what_is_no_series_is_refused_with_the_fix(values: list, says: str):
    with pytest.raises(ValueError, match=says):
        change_point(values)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, float("nan"), True])
def test_a_level_that_is_no_share_is_refused(level: float):
    with pytest.raises(ValueError, match="level is"):
        change_point([0.0, 1.0, 2.0], level=level)


# --- the published law ---


def test_the_published_example_forms_at_about_690_updates():
    assert expected_formation(512, 1024) == pytest.approx(690, abs=5)
    tokens = expected_formation(512, 1024) * 512 * 1024
    assert tokens == pytest.approx(3.6e8, rel=0.02)


@given(st.integers(1, 4096), st.integers(1, 8192))
def test_tokens_at_formation_grow_with_the_root_of_tokens_in_an_update(batch: int, context: int):
    tokens = expected_formation(batch, context) * batch * context
    assert tokens == pytest.approx(10**5.7 * math.sqrt(batch * context), rel=1e-12)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), True, "8"])
def test_sizes_that_are_not_positive_numbers_are_refused(wrong: float):
    with pytest.raises(ValueError, match="batch_size is"):
        expected_formation(wrong, 16)
    with pytest.raises(ValueError, match="context is"):
        expected_formation(16, wrong)
