"""Sizes of updates and weights against naive sums."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.functional.updates import change_norms, mean_weight_magnitude, relative_change

pairs = st.lists(
    st.lists(
        st.tuples(st.floats(-99, 99, width=32), st.floats(-99, 99, width=32)),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=4,
)


@given(pairs)
def test_relative_change_equals_a_naive_loop(rows: list[list[tuple[float, float]]]) -> None:
    after = [torch.tensor([a for a, _ in row], dtype=torch.float64) for row in rows]
    before = [torch.tensor([b for _, b in row], dtype=torch.float64) for row in rows]
    moved = math.sqrt(math.fsum((a - b) ** 2 for row in rows for a, b in row))
    size = math.sqrt(math.fsum(b**2 for row in rows for _, b in row))
    found = relative_change(after, before)
    assert math.isnan(found) if size == 0 else found == pytest.approx(moved / size, rel=1e-12)


def test_a_small_move_of_half_precision_weights_is_not_lost() -> None:
    before = torch.full((4,), 256.0, dtype=torch.bfloat16)
    after = before + torch.tensor([2.0, 0, 0, 0], dtype=torch.bfloat16)
    assert float(change_norms([after], [before])[0]) == 2.0
    assert relative_change([after], [before]) == 2 / 512


def test_the_mean_magnitude_is_over_entries_and_not_over_tensors() -> None:
    weights = [torch.tensor([-1.0]), torch.full((3, 3), -2.0, dtype=torch.bfloat16)]
    assert mean_weight_magnitude(weights) == 1.9
    assert math.isnan(mean_weight_magnitude([]))
