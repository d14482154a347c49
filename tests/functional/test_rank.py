"""The rank family against numpy's singular values, closed forms and its invariances."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynamo_probe.functional.rank import (
    RankSummary,
    effective_rank,
    participation_ratio,
    rank_summary,
    spectrum,
    srank,
    stable_rank,
)

EPSILON = np.finfo(np.float64).eps
FIGURES = (effective_rank, stable_rank, srank, participation_ratio)

matrices = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.floats(-100.0, 100.0, allow_subnormal=False).map(lambda x: round(x, 3)),
).filter(lambda matrix: bool(matrix.any()))


def naive_srank(sigma: np.ndarray, delta: float) -> int:
    total = math.fsum(sigma)
    return next(
        k for k in range(1, len(sigma) + 1) if math.fsum(sigma[:k]) >= (1.0 - delta) * total
    )


def naive_effective_rank(sigma: np.ndarray) -> float:
    shares = [value / math.fsum(sigma) for value in sigma]
    return math.exp(-math.fsum(share * math.log(share) for share in shares if share > 0))


def planted(sigma: list[float], samples: int, units: int, seed: int = 0) -> torch.Tensor:
    """Features with exactly these singular values, through random orthonormal factors."""
    random = np.random.default_rng(seed)
    left = np.linalg.qr(random.standard_normal((samples, len(sigma))))[0]
    right = np.linalg.qr(random.standard_normal((units, len(sigma))))[0]
    return torch.from_numpy(left @ np.diag(sigma) @ right.T)


# --- against numpy's SVD in float64 ---


@given(matrices)
def test_spectrum_equals_numpys_up_to_the_rounding_of_the_gram_matrix(matrix: np.ndarray):
    want = np.linalg.svd(matrix, compute_uv=False)
    got = spectrum(torch.from_numpy(matrix)).numpy()
    assert got.shape == want.shape
    assert (np.diff(got) <= 0).all() and (got >= 0).all()
    # Half of it is what lies below the noise and becomes 0, half the rounding of both solves.
    assert np.abs(got**2 - want**2).max() <= 8 * max(matrix.shape) * EPSILON * want[0] ** 2


@given(matrices)
def test_figures_equal_the_naive_formulas_on_numpys_singular_values(matrix: np.ndarray):
    sigma = np.linalg.svd(matrix, compute_uv=False)
    summary = rank_summary(torch.from_numpy(matrix))
    squares = sigma**2
    # A sigma^2 is right to the noise; a sigma near zero only to its root, in at most 12 directions.
    # The entropy's error is that share and its logarithm.
    share = math.sqrt(4 * 12 * EPSILON)
    entropy = 12 * share * (1 - math.log(share))
    assert summary.stable_rank == pytest.approx(squares.sum() / squares[0], rel=1e-12)
    assert summary.participation_ratio == pytest.approx(
        squares.sum() ** 2 / (squares**2).sum(), rel=1e-12
    )
    assert summary.effective_rank == pytest.approx(naive_effective_rank(sigma), rel=entropy)
    fewest, most = (naive_srank(sigma, 0.01 + 12 * slack) for slack in (share, -share))
    assert fewest <= summary.srank <= most
    assert (summary.samples, summary.units) == matrix.shape


@given(matrices, st.floats(0.0, 0.9))
def test_each_function_gives_the_figure_of_the_summary(matrix: np.ndarray, delta: float):
    features = torch.from_numpy(matrix)
    summary = rank_summary(features, delta=delta)
    assert summary == RankSummary(
        effective_rank=effective_rank(features),
        stable_rank=stable_rank(features),
        srank=srank(features, delta),
        participation_ratio=participation_ratio(features),
        delta=delta,
        samples=matrix.shape[0],
        units=matrix.shape[1],
    )


# --- closed forms ---


@pytest.mark.parametrize("size", [1, 2, 7, 99])
def test_identity_has_full_rank(size: int):
    features = torch.eye(size)
    for figure in (effective_rank, stable_rank, participation_ratio, srank):
        assert figure(features) == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (1, 8), (8, 1), (1, 1)])
def test_rank_one_features_have_rank_exactly_one(shape: tuple[int, int]):
    random = np.random.default_rng(1)
    features = torch.from_numpy(np.outer(*(random.standard_normal(side) + 2.0 for side in shape)))
    for figure in (effective_rank, stable_rank, srank, participation_ratio):
        assert figure(features) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("shape", [(40, 10), (10, 40), (10, 10)])
def test_planted_spectrum_gives_the_figures_worked_out_by_hand(shape: tuple[int, int]):
    features = planted([4.0, 2.0, 1.0, 1.0], *shape)
    # Shares 1/2, 1/4, 1/8, 1/8 have an entropy of 7/4 bits; the squares are 16, 4, 1, 1.
    assert effective_rank(features) == pytest.approx(2**1.75, rel=1e-6)
    assert stable_rank(features) == pytest.approx(22 / 16, rel=1e-12)
    assert participation_ratio(features) == pytest.approx(22**2 / 274, rel=1e-12)
    assert srank(features) == 4.0
    assert srank(features, delta=0.25) == 2.0
    assert srank(features, delta=0.24) == 3.0
    assert srank(features, delta=0.25, squared=True) == 2.0
    assert srank(features, delta=0.28, squared=True) == 1.0


@given(
    st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=8),
    st.integers(8, 40),
    st.integers(8, 40),
    st.integers(0, 2**16),
)
def test_directions_that_were_not_planted_count_for_exactly_nothing(
    sigma: list[float], samples: int, units: int, seed: int
):
    features = planted(sigma, samples, units, seed)
    got = spectrum(features)
    assert int((got > 0).sum()) == len(sigma)
    assert srank(features, delta=0.0) == len(sigma)
    # An eigenvalue's error of 8 * 40 epsilon is half of that over 1e-3 in the smallest sigma.
    rounding = 8 * 40 * EPSILON / 2e-3
    np.testing.assert_allclose(got[: len(sigma)], sorted(sigma, reverse=True), atol=rounding)
    assert effective_rank(features) == pytest.approx(
        naive_effective_rank(np.array(sigma)), rel=1e-8
    )


@pytest.mark.parametrize("delta_percent", range(100))
def test_srank_of_equal_singular_values_is_their_share_also_at_an_exact_tie(delta_percent: int):
    # In floats 1 - 0.94 is above 0.06, so that 6 of 100 would narrowly miss it.
    assert srank(torch.eye(100), delta=delta_percent / 100) == 100 - delta_percent


def test_a_direction_counts_down_to_the_documented_noise_and_not_below():
    noise = 4 * 40 * EPSILON
    assert 1e-9**2 < noise < 1e-6**2
    seen, lost = spectrum(planted([1.0, 1e-6], 40, 10)), spectrum(planted([1.0, 1e-9], 40, 10))
    assert float(seen[1]) == pytest.approx(1e-6, rel=noise / (2 * 1e-6**2))
    assert float(lost[1]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.bfloat16])
def test_zero_features_have_rank_zero(dtype: torch.dtype):
    features = torch.zeros(6, 3, dtype=dtype)
    assert [figure(features) for figure in FIGURES] == [0.0] * 4
    assert torch.equal(spectrum(features), torch.zeros(3, dtype=torch.float64))


def test_dead_units_and_repeated_samples_add_no_rank():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([features, torch.zeros(30, 4)], dim=1)
    repeated = torch.cat([features, features])
    for figure in FIGURES:
        assert figure(padded) == pytest.approx(figure(features), rel=1e-12)
        assert figure(repeated) == pytest.approx(figure(features), rel=1e-12)


# --- invariances ---


@given(matrices, st.integers(0, 2**16))
def test_spectrum_does_not_change_under_a_rotation_of_samples_or_units(
    matrix: np.ndarray, seed: int
):
    random = np.random.default_rng(seed)
    turn_samples, turn_units = (
        np.linalg.qr(random.standard_normal((side, side)))[0] for side in matrix.shape
    )
    want = spectrum(torch.from_numpy(matrix)).square()
    got = spectrum(torch.from_numpy(turn_samples @ matrix @ turn_units)).square()
    # Noise of both solves, what each sets to 0, and the rounding of the two products.
    assert (got - want).abs().max() <= 16 * max(matrix.shape) * EPSILON * want[0]


@given(matrices, st.integers(-900, 900))
@example(np.array([[3.0, 0.0], [0.0, 4.0]]), -1000)
@example(np.array([[3.0, 0.0], [0.0, 4.0]]), 1000)
def test_figures_are_bit_identical_under_scaling_by_a_power_of_two(
    matrix: np.ndarray, exponent: int
):
    features = torch.from_numpy(matrix)
    scaled = torch.from_numpy(np.ldexp(matrix, exponent))
    assert rank_summary(scaled) == rank_summary(features)


@given(matrices)
def test_transposed_features_have_the_same_spectrum(matrix: np.ndarray):
    features = torch.from_numpy(matrix)
    want, got = spectrum(features).square(), spectrum(features.T).square()
    assert (got - want).abs().max() <= 16 * max(matrix.shape) * EPSILON * want[0]


# --- centring ---


@given(matrices)
def test_centred_spectrum_equals_numpys_of_the_features_less_their_mean(matrix: np.ndarray):
    want = np.linalg.svd(matrix - matrix.mean(axis=0), compute_uv=False)
    got = spectrum(torch.from_numpy(matrix), center=True).numpy()
    # The mean is rounded at the features' own size, which the centred ones may be far below.
    size = np.linalg.norm(matrix)
    assert np.abs(got**2 - want**2).max() <= 8 * matrix.size * EPSILON * size * (want[0] + size)


@pytest.mark.parametrize("value", [0.1, 1e-30, -7.3, 1e300])
def test_identical_samples_have_centred_rank_exactly_zero(value: float):
    features = torch.full((7, 3), value, dtype=torch.float64) * torch.tensor([1.0, 0.3, 0.7])
    assert rank_summary(features, center=True).effective_rank == 0.0
    assert rank_summary(features).effective_rank == pytest.approx(1.0, abs=1e-14)


def test_a_small_spread_on_a_large_offset_keeps_its_centred_rank():
    spread = planted([2.0, 1.0], 16, 4) * 2.0**-30
    spread = spread - spread.mean(dim=0)
    want = rank_summary(spread)
    got = rank_summary(spread + 1.0, center=True)
    # The offset leaves 22 of the spread's 52 bits.
    assert got.stable_rank == pytest.approx(want.stable_rank, rel=2.0**-18)


# --- types ---


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int64, torch.uint8]
)
def test_a_narrow_type_gives_the_figures_of_the_same_values_in_float64(dtype: torch.dtype):
    values = torch.randint(0, 100, (17, 9), generator=torch.Generator().manual_seed(3))
    features = values.to(dtype)
    assert rank_summary(features) == rank_summary(features.double())


def test_features_with_gradients_are_read_and_left_alone():
    features = torch.eye(3, requires_grad=True)
    kept = features.detach().clone()
    assert not spectrum(features).requires_grad
    assert torch.equal(features, kept) and features.grad is None


def test_no_random_number_is_drawn():
    before = torch.random.get_rng_state()
    rank_summary(torch.eye(5))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- bad input ---


@pytest.mark.parametrize("figure", [*FIGURES, spectrum, rank_summary])
def test_features_that_are_not_finite_are_refused_with_their_number(
    figure: Callable[[torch.Tensor], object],
):
    features = torch.ones(4, 3)
    features[1, 2], features[2, 0], features[3, 1] = math.nan, math.inf, -math.inf
    with pytest.raises(ValueError, match="3 of 12 features are NaN or infinite"):
        figure(features)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4, 4)])
def test_features_of_another_shape_are_refused_with_the_fix(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"give \[samples, units\].*einops.rearrange"):
        effective_rank(torch.ones(shape))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_features_are_refused(shape: tuple[int, int]):
    with pytest.raises(ValueError, match="at least one sample and one unit"):
        stable_rank(torch.ones(shape))


def test_complex_features_are_refused():
    with pytest.raises(TypeError, match="give real features"):
        spectrum(torch.ones(2, 2, dtype=torch.complex64))


@pytest.mark.parametrize("delta", [-0.01, 1.0, math.nan])
def test_a_delta_outside_its_range_is_refused(delta: float):
    with pytest.raises(ValueError, match="delta is"):
        srank(torch.eye(2), delta=delta)
    with pytest.raises(ValueError, match="delta is"):
        rank_summary(torch.eye(2), delta=delta)
