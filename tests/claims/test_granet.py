"""MNIST-1D with 2 % of the connections: how one gets there decides what is left of the accuracy.

The margins are wide: see benchmarks/papers/RESULTS.md for ten other seeds.
"""

from statistics import fmean

import pytest

from benchmarks.papers import granet
from benchmarks.papers.granet import Run

pytestmark = pytest.mark.claims
METHODS = ("static", "SET", "RigL", "GMP(0)", "GraNet(0.5)", "GraNet(0)")


@pytest.fixture(scope="module")
def runs(run_seeds) -> dict[str, list[Run]]:
    jobs = [(granet.run, f"{method} 98", granet.MNIST1D) for method in METHODS]
    return dict(zip(METHODS, run_seeds(jobs), strict=True))


def points(runs: list[Run]) -> list[float]:
    """Test accuracy in per cent, seed by seed."""
    return [100 * run.accuracy for run in runs]


def test_every_method_ends_with_the_same_number_of_connections(runs):
    sizes = [40 * 200, 200 * 200, 200 * 10]
    wanted = round(0.02 * sum(sizes)) / sum(sizes)
    assert all(run.densities["all"] == wanted for arm in runs.values() for run in arm)


def test_a_mask_that_moves_beats_one_that_stays_on_every_seed(runs):
    pairs = zip(points(runs["static"]), points(runs["SET"]), strict=True)
    assert all(moving - static > 5 for static, moving in pairs)
    pairs = zip(points(runs["static"]), points(runs["RigL"]), strict=True)
    assert all(moving - static > 10 for static, moving in pairs)


def test_the_gradient_finds_better_connections_than_chance(runs):
    assert fmean(points(runs["RigL"])) - fmean(points(runs["SET"])) > 4


@pytest.mark.parametrize("gradual", ["GraNet(0.5)", "GraNet(0)"])
def test_granet_beats_rigl_on_every_seed(runs, gradual):
    pairs = zip(points(runs["RigL"]), points(runs[gradual]), strict=True)
    assert all(pruned - rigl > 3 for rigl, pruned in pairs)


def test_granet_is_not_worse_than_gradual_pruning(runs):
    assert fmean(points(runs["GraNet(0)"])) - fmean(points(runs["GMP(0)"])) > -3
