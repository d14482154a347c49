"""Scores of connections, from what is known of a weight."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.anatomy.weights import Weight, find_weights
from dynamo_probe.functional import select_exact
from dynamo_probe.treatments.sparse.scores import (
    Evidence,
    Gradient,
    Magnitude,
    Momentum,
    Random,
    RandomUnfired,
    Saliency,
    Score,
    as_score,
)

NAMES = ["magnitude", "saliency", "random", "random-unfired", "gradient", "momentum"]


def weight_of(layer: nn.Module) -> Weight:
    return find_weights(layer).found["weight"]


def evidence(where: Weight, seed: int = 0, **known: Any) -> Evidence:
    weight = where.parameter.detach()
    generator = torch.Generator().manual_seed(seed)
    return Evidence(where, weight, torch.ones_like(weight, dtype=torch.bool), generator, **known)


def test_magnitude_gradient_saliency_and_momentum_are_absolute_values_of_their_tensors() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4), torch.randn(8, 5)
    F.mse_loss(layer(x), torch.randn(8, 4)).backward()
    where, gradient, momentum = weight_of(layer), layer.weight.grad, torch.randn(4, 5)
    assert gradient is not None
    seen = evidence(where, gradient=gradient, momentum=momentum)
    assert torch.equal(Magnitude()(seen), layer.weight.detach().abs())
    assert torch.equal(Gradient()(seen), gradient.abs())
    assert torch.equal(Momentum()(seen), momentum.abs())
    assert torch.equal(Saliency()(seen), (layer.weight.detach() * gradient).abs())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_float32_or_better_and_of_the_weights_shape(
    name: str, kind: torch.dtype
) -> None:
    torch.manual_seed(0)
    where = weight_of(nn.Conv2d(3, 4, 2).to(kind))
    values = torch.randn(where.shape).to(kind)
    ever = torch.zeros(where.shape, dtype=torch.bool)
    score = as_score(name, "grow")(evidence(where, gradient=values, momentum=values, ever=ever))
    assert score.shape == where.shape
    assert score.dtype in (torch.float32, torch.float64)
    assert not score.requires_grad


def test_scores_ask_for_what_they_need_and_no_more() -> None:
    needs = {
        name: (score.needs_gradient, score.needs_momentum, score.needs_ever)
        for name in NAMES
        for score in [as_score(name, "grow")]
    }
    assert needs == {
        "magnitude": (False, False, False),
        "saliency": (True, False, False),
        "random": (False, False, False),
        "random-unfired": (False, False, True),
        "gradient": (True, False, False),
        "momentum": (False, True, False),
    }


@pytest.mark.parametrize("name", ["random", "random-unfired"])
def test_random_scores_come_from_the_generator_alone(name: str) -> None:
    torch.manual_seed(0)
    where, score = weight_of(nn.Linear(30, 20)), as_score(name, "grow")
    ever = torch.rand(20, 30) < 0.5

    def drawn(seed: int) -> Tensor:
        return score(evidence(where, seed, ever=ever))

    state = torch.get_rng_state()
    first = drawn(5)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, drawn(5))
    assert not torch.equal(first, drawn(6))
    seen = evidence(where, 5, ever=ever)
    assert not torch.equal(score(seen), score(seen))  # the generator goes on


def test_random_scores_are_uniform_from_zero_to_one() -> None:
    drawn = Random()(evidence(weight_of(nn.Linear(200, 200))))
    assert 0 <= drawn.min() and drawn.max() < 1
    # The mean of 40 000 numbers is within 4 standard errors of a half; a tenth is in each tenth.
    assert abs(drawn.mean().item() - 0.5) < 4 * (1 / 12 / 40_000) ** 0.5
    tenths = torch.histc(drawn, 10, 0, 1)
    assert (tenths - 4000).abs().max() < 4 * (40_000 * 0.09) ** 0.5


@pytest.mark.parametrize("grown", [1, 50, 180, 250])
def test_random_unfired_takes_what_was_never_there_first_and_then_the_others(grown: int) -> None:
    where = weight_of(nn.Linear(30, 20))
    generator = torch.Generator().manual_seed(0)
    ever = torch.rand(20, 30, generator=generator) < 0.7
    active = ever & (torch.rand(20, 30, generator=generator) < 0.5)
    unfired = int((~ever).sum())
    came = [
        select_exact(RandomUnfired()(evidence(where, seed, ever=ever)), grown, among=~active)
        for seed in (1, 2)
    ]
    for chosen in came:
        assert int((chosen & ~ever).sum()) == min(grown, unfired)
        assert int(chosen.sum()) == grown
    assert not torch.equal(*came)


def test_scores_are_resolved_by_name_or_given() -> None:
    for name in NAMES:
        assert as_score(name, "prune").name == name
    own = Magnitude()
    assert as_score(own, "prune") is own


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ("gradients", ValueError, "grow is 'gradients'; give one of magnitude, saliency, random"),
        (Gradient, TypeError, r"grow is the class Gradient; call it: Gradient\(\)"),
        (None, TypeError, "grow is None; give a name"),
        (3, TypeError, "grow is 3; give a name"),
    ],
)
def test_what_is_no_score_is_refused(wrong: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        as_score(wrong, "grow")


def test_a_score_of_ones_own_needs_only_to_be_called() -> None:
    class Newest(Score):
        name = "newest"

        def __call__(self, evidence: Evidence) -> Tensor:
            return torch.arange(evidence.weight.numel()).view(evidence.where.shape).float()

    where = weight_of(nn.Linear(3, 2))
    assert as_score(Newest(), "prune")(evidence(where)).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError, match="abstract"):
        Score()  # type: ignore[abstract]
