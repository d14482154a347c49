"""How connections are spread over layers, and that the budget is met."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynamo_probe.anatomy.weights import Weight, find_weights
from dynamo_probe.treatments.sparse.distribution import check_distribution, layer_counts
from dynamo_probe.treatments.sparse.granularity import as_granularity
from tests.models import ConvNet, mlp

FREE = as_granularity("unstructured")


def weights_of(net: nn.Module) -> dict[str, Weight]:
    return dict(find_weights(net).found)


@given(density=st.floats(0.02, 1), spread=st.sampled_from(["uniform", "erk"]))
def test_single_connections_add_up_to_the_budget(density: float, spread: str) -> None:
    weights = weights_of(ConvNet())
    counts = layer_counts(weights, spread, density, 0.0, FREE)
    size = sum(math.prod(w.shape) for w in weights.values())
    assert sum(counts.values()) == round(density * size)
    assert all(1 <= counts[name] <= math.prod(w.shape) for name, w in weights.items())


def test_uniform_and_erk_by_hand() -> None:
    weights = weights_of(mlp(20, 10, 4))  # 200 and 40 connections
    assert layer_counts(weights, "uniform", 0.25, 0.0, FREE) == {"0.weight": 50, "2.weight": 10}
    # eps (30 + 14) = 60
    counts = layer_counts(weights, "erk", 0.25, 0.0, FREE)
    assert counts == {"0.weight": round(60 * 30 / 44), "2.weight": round(60 * 14 / 44)}


def test_given_densities_are_taken_as_they_are_first_pattern_first() -> None:
    weights = weights_of(mlp(20, 10, 10, 4))
    spread = {"0": 0.1, "2.*": 0.5, "*": 1.0}
    counts = layer_counts(weights, spread, 0.01, 0.0, FREE)
    assert counts == {"0.weight": 20, "2.weight": 50, "4.weight": 40}


def test_a_floor_lifts_layers_and_the_budget_stays() -> None:
    weights = weights_of(mlp(100, 100, 2))
    counts = layer_counts(weights, "erk", 0.05, 0.04, FREE)
    assert sum(counts.values()) == round(0.05 * 10_200)
    assert counts["0.weight"] >= 400


def test_counts_are_those_that_a_pattern_allows() -> None:
    weights = weights_of(nn.Sequential(nn.Linear(8, 6), nn.Conv2d(4, 3, 2)))
    halves = {"0.weight": 24, "1.weight": 24}
    assert layer_counts(weights, "uniform", 0.5, 0.0, as_granularity("2:4")) == halves
    rows = layer_counts(weights, "uniform", 0.4, 0.0, as_granularity("channels"))
    assert rows == {"0.weight": 16, "1.weight": 16}


def test_a_layer_without_a_density_and_a_density_without_a_layer_are_refused() -> None:
    weights = weights_of(mlp(20, 10, 4))
    with pytest.raises(ValueError, match=r"no density for '2.weight'; add a pattern such as '\*'"):
        layer_counts(weights, {"0": 0.1}, 1.0, 0.0, FREE)
    with pytest.raises(ValueError, match="the pattern 'fc' of distribution= names none of .*0.wei"):
        layer_counts(weights, {"0": 0.1, "fc": 0.3, "*": 1.0}, 1.0, 0.0, FREE)


def test_a_budget_that_would_empty_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="raise the density or lower the floor"):
        layer_counts(weights_of(mlp(5, 5, 5, 5)), "uniform", 0.01, 0.0, FREE)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ("er", ValueError, "give 'uniform', 'erk' or {pattern: density}"),
        ({}, ValueError, "distribution is empty; give {pattern of names: density}"),
        ({"*": 0.0}, ValueError, r"the density of '\*' is 0.0; give the share"),
        ({"0": 0.5, "2": 1.5}, ValueError, "the density of '2' is 1.5; give the share"),
        (["0"], TypeError, "give 'uniform', 'erk' or {pattern: density}"),
        (None, TypeError, "give 'uniform', 'erk' or {pattern: density}"),
    ],
)
def test_what_is_no_distribution_is_refused(
    wrong: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check_distribution(wrong)


def test_distributions_that_there_are_pass() -> None:
    for spread in ("uniform", "erk", {"*": 0.5}):
        check_distribution(spread)
