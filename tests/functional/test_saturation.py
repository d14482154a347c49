"""Saturation against loops over samples and units."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynamo_probe.functional import gradient_saturated_units, saturated_units, saturation

rows = st.lists(
    st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=12
)


@given(rows)
def test_the_shares_equal_a_loop(samples: list[list[float]]) -> None:
    h = torch.tensor(samples)
    found = saturation(h, (-1.0, 1.0), 0.01)
    for unit in range(3):
        low = sum(row[unit] < -0.98 for row in h.tolist()) / len(samples)
        high = sum(row[unit] > 0.98 for row in h.tolist()) / len(samples)
        assert found.low[unit].item() == low
        assert found.high[unit].item() == high
    assert torch.equal(found.units(), saturated_units(h, (-1.0, 1.0)))


def test_a_nan_is_neither_saturated_nor_not() -> None:
    found = saturation(torch.tensor([[float("nan"), 1.0], [1.0, 1.0]]), (0.0, 1.0))
    assert found.high.isnan().tolist() == [True, False]
    assert found.units().tolist() == [False, True]


def test_a_function_without_two_bounds_has_no_saturation() -> None:
    with pytest.raises(ValueError, match="two finite bounds"):
        saturation(torch.zeros(2, 2), (0.0, float("inf")))


def naive(h: Tensor, gradient: Tensor) -> list[bool]:
    found = []
    for unit in range(h.shape[1]):
        level = sum(abs(v) for v in h[:, unit].tolist()) / len(h)
        flat = [abs(g) / max(level, 1e-12) < 1e-4 for g in gradient[:, unit].tolist()]
        found.append(sum(flat) / len(h) > 0.99)
    return found


def test_saturation_by_gradients_is_by_the_ratio_and_on_almost_every_sample() -> None:
    torch.manual_seed(0)
    h = torch.rand(200, 5) + 1
    gradient = torch.full((200, 5), 1e-6)
    gradient[:, 1] = 1.0  # gets a gradient
    gradient[:3, 2] = 1.0  # on 1.5 % of the samples
    gradient[:1, 3] = 1.0  # on 0.5 %
    h[:, 4], gradient[:, 4] = 0.0, 1e-6  # silent: the ratio is large
    expected = [True, False, False, True, False]
    assert naive(h, gradient) == expected
    assert gradient_saturated_units(h, gradient).tolist() == expected


def test_saturation_by_gradients_depends_on_the_size_of_the_loss() -> None:
    h, gradient = torch.ones(10, 1), torch.full((10, 1), 5e-4)
    assert gradient_saturated_units(h, gradient).tolist() == [False]
    assert gradient_saturated_units(h, gradient / 10).tolist() == [True]
    with pytest.raises(ValueError, match="of the same samples and units"):
        gradient_saturated_units(h, gradient[:5])
