"""Units of the digits' networks: overlaps and pruning against naive computations."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.papers import digit_units, digits, dormancy_figure
from benchmarks.papers.comparisons import COMPARISONS, Comparison, one
from benchmarks.papers.lives import Lives
from tests.models import mlp

QUICK = replace(digits.SETTING, widths=(64, 16, 12, 10), tasks=4, updates=60, redo_every=60)


def magnitudes(network: nn.Module, inputs: torch.Tensor) -> list[np.ndarray]:
    """Return the activations of the hidden layers in float64, `[samples, units]` each."""
    linear = [module for module in network if isinstance(module, nn.Linear)]
    x, found = inputs.double().numpy(), []
    for layer in linear[:-1]:
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        x = np.maximum(x @ weight.T + bias, 0)
        found.append(x)
    return found


def test_scores_on_all_samples_are_those_of_a_naive_forward_pass():
    inputs, _ = digits.tasks(1, 1)
    lives = Lives(QUICK.updates, 1, on=inputs)
    digits.run("base", 1, setting=QUICK, watchers=[lives])
    assert len(lives.scores) == 4
    last = [scores.double().numpy() for scores in lives.scores[-1].values()]
    for scores, h in zip(last, magnitudes(lives.network, inputs), strict=True):
        mean = np.abs(h).mean(0)
        np.testing.assert_allclose(scores, mean / mean.mean(), rtol=1e-4, atol=1e-7)


def test_watching_changes_nothing():
    inputs, _ = digits.tasks(1, 1)
    alone = digits.run("redo live-mean", 2, setting=QUICK)
    watched = digits.run("redo live-mean", 2, setting=QUICK, watchers=[Lives(7, 1, on=inputs)])
    assert replace(alone, seconds=0) == replace(watched, seconds=0)


def test_following_pairs_each_reading_with_the_next():
    random = np.random.default_rng(0)
    masks = random.random((4, 2, 6)) < 0.5
    readings = [{"a": torch.tensor(a), "b": torch.tensor(b)} for a, b in masks]
    sets = [{(layer, unit) for layer, unit in zip(*np.nonzero(m), strict=True)} for m in masks]
    expected = [
        len(now & then) / min(len(now), len(then))
        for now, then in zip(sets[:-1], sets[1:], strict=True)
    ]
    assert [found for found, _ in digit_units.following(readings)] == pytest.approx(expected)
    by_chance = [
        sum(now[layer].sum() * then[layer].sum() / 6 for layer in (0, 1))
        / min(now.sum(), then.sum())
        for now, then in zip(masks[:-1], masks[1:], strict=True)
    ]
    assert [chance for _, chance in digit_units.following(readings)] == pytest.approx(by_chance)


def test_accuracy_after_pruning_is_that_of_a_network_without_those_units():
    torch.manual_seed(0)
    network, inputs = mlp(8, 10, 6, 4), torch.randn(200, 8)
    with torch.no_grad():
        for layer in (network[0], network[2], network[4]):
            nn.init.kaiming_uniform_(layer.weight)
            layer.bias.zero_()
        network[0].bias[:5] -= 3.0  # seldom active
        network[0].bias[0] -= 100.0  # never
    # Labels that the network mostly gets right, so that pruning has something to take.
    classes = network(inputs).argmax(1)
    classes[::5] = 0
    found = digit_units.pruned(network, inputs, classes, seed=3)
    hidden = magnitudes(network, inputs)
    means = [np.abs(h).mean(0) for h in hidden]
    for tau in digit_units.TAUS:
        dormant = [mean / mean.mean() <= tau for mean in means]
        active = [np.zeros_like(mask) for mask in dormant]
        for mask, mean, cut in zip(active, means, dormant, strict=True):
            mask[np.argsort(-mean)[: cut.sum()]] = True
        for what, masks in (("dormant", dormant), ("as many most active", active)):
            share, accuracy = found[f"{what}, tau {tau:g}"]
            assert share == pytest.approx(sum(mask.sum() for mask in masks) / 16)
            assert accuracy == pytest.approx(naive_accuracy(network, inputs, classes, masks))
    assert found["dormant, tau 0"][1] == found["nothing"][1]
    assert 0 < found["dormant, tau 0"][0] < found["dormant, tau 0.1"][0] < 0.7
    assert found["as many random, tau 0.1"][0] == found["dormant, tau 0.1"][0]
    assert found["as many most active, tau 0.1"][1] < found["nothing"][1]


def naive_accuracy(network, inputs, classes, masks) -> float:
    linear = [module for module in network if isinstance(module, nn.Linear)]
    x = inputs.double().numpy()
    for layer, mask in zip(linear, [*masks, None], strict=True):
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        x = x @ weight.T + bias
        if mask is not None:
            x = np.where(mask, 0.0, np.maximum(x, 0.0))
    return float((x.argmax(1) == classes.numpy()).mean())


@pytest.mark.parametrize("arm", digit_units.ARMS)
def test_every_arm_runs_and_fills_its_row(arm: str):
    comparison = Comparison("quick", digit_units.run, QUICK, (arm,), digit_units.table)
    row = json.loads(json.dumps(one(comparison, arm, 1)))
    assert [len(row[x]["0.025"]) for x in ("overlap", "following")] == [3, 3]
    assert bool(row["pruned"]) == (arm in ("base", "stationary"))
    if row["pruned"]:
        # The labels that it was trained on last: all units together know them.
        assert row["pruned"]["nothing"][1] == pytest.approx(row["accuracy"][-1], abs=2e-3)
    text = comparison.table([row], comparison.arms)
    assert f"\n| {arm} | 1 | " in text
    assert ("| pruned from" in text) == bool(row["pruned"])


def test_widths_scale_the_hidden_layers_alone():
    assert digit_units.wide(0.5).widths == (64, 64, 64, 64, 10)
    assert digit_units.wide(4).widths == (64, 512, 512, 512, 10)
    names = {c.name: asdict(c.setting) for c in COMPARISONS if c.name.startswith("digit-units/")}
    usual = names.pop("digit-units/as usual")
    assert len(names) == 3
    for setting in names.values():
        assert {**setting, "widths": usual["widths"]} == usual


def test_the_picture_is_drawn_from_rows(tmp_path):
    def row(name: str, arm: str, seed: int) -> dict:
        whats = ["nothing", *(f"{kind}, tau 0.1" for kind in dormancy_figure.PRUNED)]
        return {
            "name": name,
            "arm": arm,
            "seed": seed,
            "dormant": {"0.025": [0.1, 0.2, 0.3]},
            "following": {"0.025": [[0.9, 0.2], [0.9, 0.3]]},
            "pruned": {what: [0.1, 0.5] for what in whats},
        }

    rows = [row(name, "base", seed) for name in dormancy_figure.WIDTHS for seed in (1, 2)]
    rows += [row(dormancy_figure.USUAL, "stationary", seed) for seed in (1, 2)]
    path = dormancy_figure.draw(rows, tmp_path / "units.png")
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size < 150_000
    # Three values 1, 2, 3: a standard deviation of 1.
    assert dormancy_figure.standard_error(np.array([1.0, 2.0, 3.0])) == pytest.approx(3**-0.5)
