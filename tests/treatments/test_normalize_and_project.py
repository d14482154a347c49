"""Normalize and project: norms stay, outputs stay, and layers with a meaning are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.observation.batch import Batch
from dynamo_probe.treatments.normalize_and_project import NormalizeAndProject, free_layers
from tests.models import mlp
from tests.training import everything, identical, seeded, train


def normalised() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(),
        nn.Linear(16, 12, bias=False), nn.RMSNorm(12), nn.ReLU(),
        nn.Linear(12, 2),
    )  # fmt: skip


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(32, 4)
    return (model(x) - x[:, :2].sin()).square().mean()


def sizes(net: nn.Module) -> dict[str, float]:
    return {n: p.detach().double().norm().item() for n, p in net.named_parameters() if p.dim() >= 2}


def test_norms_of_free_layers_stay_and_others_grow_as_they_would() -> None:
    seeded()
    net = normalised()
    before = sizes(net)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with dp.watch(net, optimizer, NormalizeAndProject(read_every=50), on_error="raise") as watch:
        train(net, optimizer, loss, 50)
    after = sizes(net)
    for name in ("0.weight", "3.weight"):
        assert after[name] == pytest.approx(before[name], rel=1e-6)
    assert abs(after["6.weight"] / before["6.weight"] - 1) > 0.02
    assert watch.history.latest("normalize_and_project/factor") < 1
    skipped = [e for e in watch.events if e.kind == "skipped"]
    assert [(e.subject, e.detail["reason"]) for e in skipped] == [
        ("normalize_and_project: 6", "its scale changes the output")
    ]


def test_a_projection_leaves_the_output_and_the_direction_of_the_weights() -> None:
    seeded()
    net = normalised()
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    x = torch.randn(64, 4)
    with dp.watch(net, optimizer, NormalizeAndProject(every=10), on_error="raise"):
        train(net, optimizer, loss, 9)
        plain, steps = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
        twin = torch.optim.Adam(plain.parameters(), 0.05)
        twin.load_state_dict(steps)
        seeded(3)
        train(net, optimizer, loss, 1)
    seeded(3)
    train(plain, twin, loss, 1)
    assert torch.allclose(net(x), plain(x), atol=1e-4)
    for index in (0, 3):
        factor = net[index].weight / plain[index].weight
        assert factor.std() < 1e-5 * factor.mean().abs()
    assert torch.allclose(net[0].bias / plain[0].bias, (net[0].weight / plain[0].weight)[:, 0])
    assert identical(everything([], [optimizer]), everything([], [twin]))


@pytest.mark.parametrize(
    ("model", "inputs", "free"),
    [
        (normalised(), torch.randn(8, 4), {"0", "3"}),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                          nn.Linear(4 * 4, 3)),
            torch.randn(8, 1, 4, 4),
            {"0"},
        ),
        (mlp(4, 8, 2), torch.randn(8, 4), set()),
        # A layer whose scale means something, and behind it one whose scale does not.
        (
            nn.Sequential(mlp(4, 8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)),
            torch.randn(8, 4),
            {"0.2"},
        ),
    ],
)  # fmt: skip
def test_free_layers_are_told_by_what_the_network_computes(model, inputs, free) -> None:
    before = copy.deepcopy(model.state_dict())
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    found = free_layers(model, Batch((inputs,), {}), names)
    assert {name for name, reason in found.items() if reason is None} == free
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_without_norms_is_told_what_is_missing_and_trains_on_untouched() -> None:
    results = []
    for treated in (True, False):
        seeded()
        net = mlp(4, 8, 2)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        if not treated:
            train(net, optimizer, loss, 5)
        else:
            with pytest.warns(dp.DynamoProbeWarning, match="put a LayerNorm"):
                with dp.watch(net, optimizer, NormalizeAndProject()):
                    train(net, optimizer, loss, 5)
        results.append(everything([net], [optimizer]))
    assert identical(*results)


def test_a_head_that_begins_at_zero_does_not_make_every_layer_free() -> None:
    seeded()
    plain, norms = mlp(4, 8, 2), normalised()
    for net in (plain, norms):
        nn.init.zeros_(net[-1].weight)
        nn.init.zeros_(net[-1].bias)
        names = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
        found = free_layers(net, Batch((torch.randn(8, 4),), {}), names)
        assert None not in found.values()


def test_a_large_constant_in_the_output_hides_no_scale() -> None:
    seeded()
    net = mlp(4, 8, 2)
    with torch.no_grad():
        net[2].bias.fill_(1000.0)
    found = free_layers(net, Batch((torch.randn(8, 4),), {}), ["0", "2"])
    assert set(found.values()) == {"its scale changes the output"}


def test_a_resumed_run_projects_what_the_run_found_at_its_beginning() -> None:
    seeded()
    net = normalised()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with dp.watch(net, optimizer, NormalizeAndProject(), on_error="raise") as watch:
        train(net, optimizer, loss, 3)
        state = watch.state_dict()
    with torch.no_grad():
        net[6].weight.zero_()  # nothing of any layer is seen in the output now
    before = sizes(net)
    with dp.watch(net, optimizer, NormalizeAndProject(), on_error="raise") as watch:
        watch.load_state_dict(state)
        train(net, optimizer, loss, 5)
    assert sizes(net)["0.weight"] == pytest.approx(before["0.weight"], rel=1e-5)
