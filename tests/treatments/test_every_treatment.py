"""What holds for every treatment: off is off, resume, any optimizer, target networks, bad calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import dynamo_probe as dp
from dynamo_probe.treatments.continual_backprop import ContinualBackprop
from dynamo_probe.treatments.l2_init import L2Init
from dynamo_probe.treatments.layer_reset import LayerReset
from dynamo_probe.treatments.normalize_and_project import NormalizeAndProject
from dynamo_probe.treatments.plasticity_injection import Injectable, PlasticityInjection
from dynamo_probe.treatments.regrama import ReGraMa
from dynamo_probe.treatments.shrink_and_perturb import ShrinkAndPerturb
from tests.training import everything, identical, seeded, train

Make = Callable[..., dp.Treatment]

MIRRORED: dict[str, Make] = {
    "redo": lambda **more: dp.ReDo(0.8, 4, **more),
    "continual backprop": lambda **more: ContinualBackprop(0.1, maturity=3, **more),
    "regrama": lambda **more: ReGraMa(0.8, 4, **more),
    "shrink and perturb": lambda **more: ShrinkAndPerturb(0.7, every=4, **more),
    "layer reset": lambda **more: LayerReset(2, 4, **more),
    "plasticity injection": lambda **more: PlasticityInjection(4, **more),
}
ALL: dict[str, Make] = MIRRORED | {
    "l2 init": lambda **more: L2Init(0.1, 4, **more),
    "normalize and project": lambda **more: NormalizeAndProject(1, 4, **more),
}
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "fused adam": lambda p: torch.optim.Adam(p, 1e-2, fused=True, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
}


def network() -> nn.Sequential:
    """An MLP with norms and a head that can be injected into."""
    return nn.Sequential(
        nn.Linear(4, 12),
        nn.LayerNorm(12),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.ReLU(),
        Injectable(nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 2))),
    )


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 4)
    return (model(x) - x[:, :2].sin()).square().mean()


def begin(optimizer: str = "adam") -> tuple[nn.Sequential, Optimizer]:
    seeded()
    net = network()
    return net, OPTIMIZERS[optimizer](net.parameters())


@pytest.mark.parametrize("name", ALL)
def test_a_treatment_that_is_off_leaves_the_run_bit_for_bit_as_it_was(name: str) -> None:
    states = []
    for treated in (False, True):
        net, optimizer = begin()
        treatment = ALL[name]()
        treatment.enabled = False
        instruments = [dp.Dormancy(5), *([treatment] if treated else [])]
        with dp.watch(net, optimizer, instruments, on_error="raise"):
            train(net, optimizer, loss, 12)
        states.append(everything([net], [optimizer]))
    assert identical(*states)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ALL)
def test_a_treatment_acts_and_keeps_the_optimizer_whole(name: str, optimizer: str) -> None:
    finals = []
    for treated in (False, True):
        net, steps = begin(optimizer)
        groups = [list(map(id, group["params"])) for group in steps.param_groups]
        instruments = [ALL[name]()] if treated else [dp.Dormancy(5)]
        with dp.watch(net, steps, instruments, on_error="raise") as watch:
            train(net, steps, loss, 9)
            assert not [e for e in watch.events if e.kind == "disabled"]
        assert [list(map(id, group["params"])) for group in steps.param_groups] == groups
        own = {id(p): p for p in net.parameters()}
        for parameter, state in steps.state.items():
            assert id(parameter) in own
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim():
                    assert value.shape == parameter.shape, key
                    assert value.isfinite().all()
        before = [p.detach().clone() for p in net.parameters() if p.requires_grad]
        train(net, steps, loss, 2)
        # Whatever was put in place of something else goes on being trained.
        after = [p.detach() for p in net.parameters() if p.requires_grad]
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        finals.append(torch.cat([p.flatten() for p in after]))
    assert not torch.equal(*finals)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("at", [3, 6])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name: str, at: int) -> None:
    net, optimizer = begin()
    with dp.watch(net, optimizer, ALL[name](), on_error="raise") as watch:
        train(net, optimizer, loss, at)
        saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), watch.state_dict()))
        random = torch.get_rng_state()
        train(net, optimizer, loss, 8)
        expected = everything([net], [optimizer])
        readings = {t: watch.history.series(t)[1].tolist() for t in watch.history.tags()}

    torch.manual_seed(99)
    again = network()
    steps = OPTIMIZERS["adam"](again.parameters())
    with dp.watch(again, steps, ALL[name](), on_error="raise") as watch:
        again.load_state_dict(saved[0])
        steps.load_state_dict(saved[1])
        watch.load_state_dict(saved[2])
        torch.set_rng_state(random)
        train(again, steps, loss, 8)
        found = {t: watch.history.series(t)[1].tolist() for t in watch.history.tags()}
    assert identical(expected, everything([again], [steps]))
    assert all(values == readings[tag][-len(values) :] for tag, values in found.items())


@pytest.mark.parametrize("name", MIRRORED)
def test_target_networks_get_what_the_network_gets_and_nothing_else(name: str) -> None:
    net, optimizer = begin()
    target = copy.deepcopy(net)
    before = copy.deepcopy(target.state_dict())
    with dp.watch(net, optimizer, MIRRORED[name](mirror=target), on_error="raise") as watch:
        train(net, optimizer, loss, 3)
        earlier = copy.deepcopy(net.state_dict())
        if name != "continual backprop":
            assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())
        train(net, optimizer, loss, 1)
        assert watch.step == 4
    if name in ("plasticity injection", "continual backprop"):
        return  # see their own tests
    changed = 0
    for key, value in target.state_dict().items():
        moved = value != before[key]
        changed += int(moved.sum())
        # Where the target moved it holds the network's new value, just after the firing.
        assert torch.equal(value[moved], net.state_dict()[key][moved]), key
    assert changed and earlier.keys() == before.keys()


@pytest.mark.parametrize("name", MIRRORED)
def test_a_mirror_of_another_shape_is_refused(name: str) -> None:
    net, optimizer = begin()
    with pytest.raises(ValueError, match="same architecture"):
        dp.watch(net, optimizer, MIRRORED[name](mirror=nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShrinkAndPerturb(1.5), "from 0 to 1"),
        (lambda: ShrinkAndPerturb(perturb=-1.0), "give 0 or more"),
        (lambda: ShrinkAndPerturb(noise="gaussian"), "give perturb"),
        (lambda: ShrinkAndPerturb(moments="live-mean"), "zero, zero\\+step or keep"),
        (lambda: LayerReset(0), "give 1 or more, or names"),
        (lambda: L2Init(-1.0), "give 0 or more"),
        (lambda: NormalizeAndProject(0), "give 1 or more"),
        (lambda: PlasticityInjection(0), "from 1 on"),
        (lambda: ContinualBackprop(2.0), "give 0 to 1"),
        (lambda: ContinualBackprop(maturity=-1), "give 0 or more"),
        (lambda: ContinualBackprop(decay=1.0), "below 1"),
        (lambda: ReGraMa(-0.1), "tau"),
        (lambda: ReGraMa(every=0), "give 1 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make", [lambda: ShrinkAndPerturb(layers=["nope"]), lambda: LayerReset(["nope"])]
)
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(make: Any) -> None:
    net, optimizer = begin()
    with pytest.raises(ValueError, match="nothing is called 'nope'; the layers are 0, 1, 3"):
        dp.watch(net, optimizer, make())


@pytest.mark.parametrize("name", ["shrink and perturb", "layer reset", "redo", "l2 init"])
def test_pruned_connections_stay_pruned(name: str) -> None:
    net, optimizer = begin()
    instruments = [dp.StaticSparse(0.3, include=["0", "3"]), ALL[name]()]
    with dp.watch(net, optimizer, instruments, on_error="raise"):
        train(net, optimizer, loss, 1)
        zero = {n: p == 0 for n, p in net.named_parameters() if n in ("0.weight", "3.weight")}
        train(net, optimizer, loss, 8)
        for key, mask in zero.items():
            assert mask.float().mean() > 0.5
            assert (net.get_parameter(key)[mask] == 0).all()
