"""What sets of heads are worth: paired by sequence, with intervals of known coverage."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from dynamo_probe.functional.ablation import ablate_heads
from dynamo_probe.functional.ablation_effect import (
    ablation_effects,
    control_heads,
    effect_of,
    t_quantile,
)
from dynamo_probe.functional.copying import copy_loss
from tests.models import GPT


@pytest.mark.parametrize("probability", [0.9, 0.975, 0.995])
@pytest.mark.parametrize("freedom", [3, 4, 7, 15, 63, 1000])
def test_quantiles_are_those_of_student(probability: float, freedom: int) -> None:
    exact = stats.t.ppf(probability, freedom)
    allowed = 0.02 if probability > 0.99 and freedom < 7 else 2e-3
    assert t_quantile(probability, freedom) == pytest.approx(exact, rel=allowed)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    before = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    after = before + 0.3 + 0.1 * torch.randn(12, dtype=torch.float64)
    found = effect_of(after - before)
    low, high = stats.ttest_rel(after.numpy(), before.numpy()).confidence_interval(0.95)
    assert found.low == pytest.approx(low, rel=1e-4)
    assert found.high == pytest.approx(high, rel=1e-4)


def test_of_three_sequences_there_is_no_interval() -> None:
    found = effect_of(torch.tensor([1.0, 2.0, 3.0]))
    assert found.mean == 2 and math.isnan(found.low) and math.isnan(found.high)


def test_a_control_is_taken_off_sequence_by_sequence() -> None:
    one, other = effect_of(torch.tensor([1.0, 2, 3, 4])), effect_of(torch.tensor([0.0, 1, 2, 3]))
    assert one.over(other).mean == 1 and one.over(other).low == one.over(other).high == 1


def test_an_effect_is_the_loss_without_the_heads_less_the_loss_with_them() -> None:
    torch.manual_seed(0)
    model: nn.Module = GPT(vocabulary=60)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    sets = {"one": [(0, 1)], "both": [(0, 0), (1, 1)], "none": []}
    found = ablation_effects(model, 60, sets, sequences=5, seed=3)

    def losses() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return copy_loss(model, 60, sequences=5, generator=generator).by_sequence

    base = losses()
    for name in ("one", "both"):
        with ablate_heads(model, sets[name], "mean"):
            wanted = losses() - base
        assert torch.equal(found[name].differences, wanted)
        assert found[name].mean != 0
    assert found["none"].mean == 0


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_a_control_has_as_many_other_heads_of_the_same_layers(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    every = [(layer, head) for layer, heads in enumerate(sizes) for head in range(heads)]
    chosen = data.draw(st.lists(st.sampled_from(every), unique=True, max_size=len(every)))
    other = data.draw(st.lists(st.sampled_from(every), unique=True, max_size=2))
    drawn = control_heads(every, chosen, other, torch.Generator().manual_seed(seed))
    layers = range(len(sizes))
    free = {la: sizes[la] - len({h for h in {*chosen, *other} if h[0] == la}) for la in layers}
    wanted = {la: sum(h[0] == la for h in chosen) for la in layers}
    if drawn is None:
        assert any(wanted[la] > free[la] for la in layers)
    else:
        assert {*drawn} <= {*every} - {*chosen, *other} and len({*drawn}) == len(drawn)
        assert {la: sum(h[0] == la for h in drawn) for la in layers} == wanted
