"""The overlap coefficient against Python's sets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.functional.overlap import overlap_coefficient


def mask_of(members: set[int], units: int = 12) -> torch.Tensor:
    return torch.tensor([unit in members for unit in range(units)])


units = st.sets(st.integers(0, 11))


@given(units, units)
def test_overlap_equals_that_of_python_sets(first: set[int], second: set[int]):
    got = overlap_coefficient(mask_of(first), mask_of(second))
    if not first or not second:
        assert math.isnan(got)
    else:
        assert got == len(first & second) / min(len(first), len(second))


def test_a_set_within_another_overlaps_fully_whatever_the_sizes():
    assert overlap_coefficient(mask_of({3}), mask_of({1, 3, 5, 7})) == 1.0


def test_disjoint_sets_overlap_by_nothing():
    assert overlap_coefficient(mask_of({0, 1}), mask_of({2, 3})) == 0.0


def test_masks_of_any_shape_count_by_place():
    grid = torch.tensor([[True, False], [True, True]])
    assert overlap_coefficient(grid, grid.T) == pytest.approx(2 / 3)


def test_a_mask_that_is_not_bool_is_refused_with_the_fix():
    with pytest.raises(TypeError, match=r"torch.float32; give a bool one"):
        overlap_coefficient(torch.ones(3), mask_of({1}, 3))


def test_masks_of_two_layers_are_refused():
    with pytest.raises(ValueError, match=r"\[3\] and \[4\]; give two of the same units"):
        overlap_coefficient(mask_of({1}, 3), mask_of({1}, 4))
