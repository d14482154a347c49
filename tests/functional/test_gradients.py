"""Norms, zeros and both definitions of GraMa against naive loops and numbers set by hand."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from dynamo_probe.functional.gradients import (
    count_zeros,
    grama_activation_scores,
    grama_weight_scores,
    norms,
    total_norm,
)


def naive_norm(values: list[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values))


@given(
    st.lists(
        st.lists(st.floats(-(2.0**127), 2.0**127, width=32), max_size=9), min_size=1, max_size=5
    )
)
@example([[6.7e-31], [1e-44, 1e-45], [3e38, 1.0], [1e-19, 1e-20], [1e-40], [0.0]])
def test_norms_equal_a_naive_sum_of_squares(rows: list[list[float]]) -> None:
    tensors = [torch.tensor(row) for row in rows]
    exact = [t.tolist() for t in tensors]
    found = norms(tensors)
    for norm, row in zip(found, exact, strict=True):
        assert float(norm) == pytest.approx(naive_norm(row), rel=1e-6, abs=0)
    whole = total_norm(float(norm) for norm in found)
    assert whole == pytest.approx(naive_norm([v for row in exact for v in row]), rel=1e-6, abs=0)


def test_half_precision_is_summed_in_float32_beside_other_types() -> None:
    # In bfloat16 a running sum of squares of ones stops at 256.
    mixed = [torch.ones(10_000, dtype=torch.bfloat16), torch.full((4,), 0.5, dtype=torch.float64)]
    assert [float(norm) for norm in norms(mixed)] == [100.0, 1.0]


def test_a_total_norm_does_not_overflow_where_squares_would() -> None:
    assert total_norm([3e200, 4e200]) == pytest.approx(5e200)


def test_a_sparse_gradient_has_the_norm_and_the_zeros_of_the_dense_one() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    gradient = table.weight.grad
    assert gradient is not None and gradient.is_sparse
    assert float(norms([gradient])[0]) == pytest.approx(naive_norm([2, 2, 1, 1]))
    assert int(count_zeros(gradient)) == 6


def test_samples_of_opposite_sign_cancel_in_weights_and_not_in_activations() -> None:
    # Two samples x = 1 with dL/dz = +1 and -1 at unit 0, and +1 and +1 at unit 1.
    at_units = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    at_weights = (at_units.T @ torch.ones(2, 3)).view(2, 3)
    assert grama_activation_scores(at_units).tolist() == [1.0, 1.0]
    assert grama_weight_scores(at_weights).tolist() == [0.0, 2.0]


def test_no_gradient_at_all_scores_0_and_a_nan_takes_no_part() -> None:
    assert grama_activation_scores(torch.zeros(4, 3)).tolist() == [0.0] * 3
    scores = grama_activation_scores(torch.tensor([[1.0, float("nan"), 3.0]]))
    assert scores[[0, 2]].tolist() == [0.5, 1.5]
    assert bool(scores[1].isnan())


@pytest.mark.parametrize(
    ("layer", "dim", "shape"),
    [
        (nn.Linear(4, 3), 0, (5, 4)),
        (nn.Conv2d(2, 3, (2, 3), groups=1), 0, (2, 2, 5, 5)),
        (nn.ConvTranspose1d(4, 3, 2), 1, (2, 4, 5)),
    ],
)
def test_the_weights_that_lead_into_a_unit_are_those_that_move_its_output(
    layer: nn.Linear, dim: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    out = layer(torch.randn(shape))
    axis = -1 if isinstance(layer, nn.Linear) else 1
    naive = []
    for unit in range(3):  # only weights that lead into this unit get a gradient from it
        (own,) = torch.autograd.grad(
            out.select(axis, unit).square().sum(), layer.weight, retain_graph=True
        )
        reached = own != 0
        naive.append((own[reached].abs().sum() / reached.sum()).item())
        assert int(reached.sum()) == layer.weight.numel() // 3
    (gradient,) = torch.autograd.grad(out.square().sum(), layer.weight)
    expected = [value / (sum(naive) / 3) for value in naive]
    assert grama_weight_scores(gradient, dim).tolist() == pytest.approx(expected, rel=1e-5)
