"""Pruning plasticity against plain loops on copies, and every trace that it could leave."""

import copy
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

import dynamo_probe as dp
from dynamo_probe.functional.one_shot import one_shot_masks, regrown, thinned
from dynamo_probe.functional.plasticity import pruning_plasticity
from dynamo_probe.functional.plasticity_report import PlasticityReport
from dynamo_probe.functional.unmeasurable import Unmeasurable
from tests.models import ConvNet, mlp
from tests.training import everything, identical, seeded

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD with momentum": lambda p: torch.optim.SGD(
        p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
}


@dataclass
class Task:
    """A network in training, with data that can be put back."""

    net: nn.Module
    optimizer: Optimizer
    data: torch.Generator
    each: Callable[[], object] = lambda: None
    before: Callable[[], object] = lambda: None

    def loss(self) -> Tensor:
        x = torch.randn(16, 6, generator=self.data)
        return F.mse_loss(self.net(x), (x[:, :2] * x[:, 2:4]).sin())

    def step(self) -> None:
        self.before()
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.each()

    def score(self) -> float:
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            return -float(F.mse_loss(self.net(x), (x[:, :2] * x[:, 2:4]).sin()))

    def copied(self) -> "Task":
        """Copy all of it, without anything of ours."""
        net = copy.deepcopy(self.net)
        groups = [
            {k: v for k, v in g.items() if k != "params"}
            | {"params": [self.counterpart(net, p) for p in g["params"]]}
            for g in self.optimizer.param_groups
        ]
        optimizer = type(self.optimizer)(groups)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        data = torch.Generator()
        data.set_state(self.data.get_state())
        return Task(net, optimizer, data)

    def counterpart(self, net: nn.Module, parameter: Tensor) -> Tensor:
        names = {id(p): n for n, p in self.net.named_parameters()}
        return dict(net.named_parameters())[names[id(parameter)]]


def task(
    optimizer: Callable[[Any], Optimizer] = OPTIMIZERS["SGD with momentum"],
    net: nn.Module | None = None,
    updates: int = 20,
) -> Task:
    seeded()
    net = mlp(6, 24, 16, 2) if net is None else net
    found = Task(net, optimizer(net.parameters()), torch.Generator().manual_seed(1))
    for _ in range(updates):
        found.step()
    return found


def measure(of: Task, **keywords: Any) -> PlasticityReport:
    keywords = {"rates": [0.5], "updates": 4, "curve_every": 1, "also": [of.data]} | keywords
    return pruning_plasticity(of.net, of.optimizer, of.step, of.score, **keywords)


def weights_of(net: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in net.named_parameters() if n.endswith("weight")}


def by_torch(net: nn.Module, rate: float, scope: str) -> dict[str, Tensor]:
    """Prune a network for good with torch's own pruning; return the masks."""
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if scope == "global":
        pairs = [(layer, "weight") for layer in layers]
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=rate)
    for layer in layers:
        if scope == "uniform":
            prune.l1_unstructured(layer, "weight", amount=rate)
        prune.remove(layer, "weight")
    return {name: p.detach() != 0 for name, p in weights_of(net).items()}


def curve_by_hand(of: Task, masks: dict[str, Tensor], updates: int) -> tuple[float, ...]:
    """Train with w *= m after every update, and nothing else."""
    scores = [of.score()]
    for _ in range(updates):
        of.step()
        with torch.no_grad():
            for name, weight in weights_of(of.net).items():
                if name in masks:
                    weight *= masks[name]
        scores.append(of.score())
    return tuple(scores)


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_the_curves_are_those_of_a_plain_loop_on_a_copy_pruned_by_torch(
    optimizer: str, scope: str
) -> None:
    of = task(OPTIMIZERS[optimizer])
    plain = of.copied()
    before, control = plain.score(), curve_by_hand(plain, {}, 12)
    report = measure(of, rates=[0.3, 0.9], updates=12, scope=scope)
    assert report.before == before
    assert report.control.scores == control
    assert report.learning_rates == (of.optimizer.param_groups[0]["lr"],)
    for record in report.records:
        plain = of.copied()
        masks = by_torch(plain.net, record.rate, scope)
        immediate = plain.score() - before
        curve = curve_by_hand(plain, masks, 12)
        assert record.curve.updates == tuple(range(13))
        assert record.curve.scores == curve
        assert record.kept == {name: int(mask.sum()) for name, mask in masks.items()}
        size = sum(mask.numel() for mask in masks.values())
        assert record.sparsity == round(record.rate * size) / size or scope == "uniform"
        assert record.pruned == size - sum(record.kept.values())
        assert record.immediate == immediate
        assert record.after == curve[-1]
        assert record.plasticity == curve[-1] - before
        assert record.plasticity_vs_control == curve[-1] - control[-1]


def test_rate_0_is_the_control() -> None:
    of = task()
    record = measure(of, rates=[0.0], updates=9).at(0.0)
    assert record.curve == record.control
    assert (record.immediate, record.plasticity_vs_control, record.pruned) == (0.0, 0.0, 0)


def test_the_points_of_the_curve_are_the_ends_and_the_multiples_between() -> None:
    of = task()
    every = measure(of, updates=11, curve_every=1)
    some = measure(of, updates=11, curve_every=4)
    assert some.control.updates == some.at(0.5).curve.updates == (0, 4, 8, 11)
    assert some.at(0.5).curve.scores == tuple(every.at(0.5).curve.scores[i] for i in (0, 4, 8, 11))
    assert measure(of, updates=35, curve_every=None).control.updates == (*range(0, 35, 3), 35)


def test_looking_more_often_changes_nothing_though_evaluation_draws_and_changes_modes() -> None:
    net = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)
    )
    of = task(net=net)

    def evaluate() -> float:
        net.eval()
        draws = torch.rand(()) + np.random.rand() + random.random()
        score = of.score() + 0.0 * float(draws)
        net[1].train()
        of.score()  # moves the running statistics
        return score

    found = [
        pruning_plasticity(
            net,
            of.optimizer,
            of.step,
            evaluate,
            rates=[0.5],
            updates=6,
            curve_every=every,
            also=[of.data],
        )
        for every in (1, 6)
    ]
    assert found[0].at(0.5).after == found[1].at(0.5).after
    assert found[0].control.scores[-1] == found[1].control.scores[-1]
    assert found[0].before != 0


# --- learning rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [False, True])
def test_a_scheduler_inside_train_step_does_not_thaw_the_learning_rate(tensor: bool) -> None:
    def optimizer(p: Any) -> Optimizer:
        return torch.optim.SGD(p, torch.tensor(0.1) if tensor else 0.1, momentum=0.9)

    of = task(optimizer)
    constant = measure(of, updates=9)
    scheduler = torch.optim.lr_scheduler.StepLR(of.optimizer, 2, 0.1)
    of.each = scheduler.step
    state = copy.deepcopy(scheduler.state_dict())
    scheduled = measure(of, updates=9, also=[of.data, scheduler])
    assert scheduled == constant
    assert scheduler.state_dict() == state
    # As some loops do it: a rate computed from a counter, set just before the step.
    of.each, count = lambda: None, {"updates": 0}

    def set_rate() -> None:
        count["updates"] += 1
        of.optimizer.param_groups[0]["lr"] = 0.1 / count["updates"]

    of.before = set_rate
    assert measure(of, updates=9, also=[of.data, count]) == constant
    assert count["updates"] == 0
    assert float(of.optimizer.param_groups[0]["lr"]) == float(torch.tensor(0.1) if tensor else 0.1)


def test_without_freezing_it_follows_the_schedule_and_gives_the_final_gap() -> None:
    of = task()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(of.optimizer, 0.8)
    of.each = scheduler.step
    report = measure(of, rates=[0.5], updates=7, frozen=False, also=[of.data, scheduler])

    def scheduled() -> Task:
        plain = of.copied()
        group = plain.optimizer.param_groups[0]
        plain.each = lambda: group.update(lr=group["lr"] * 0.8)
        return plain

    pruned = scheduled()
    curve = curve_by_hand(pruned, by_torch(pruned.net, 0.5, "global"), 7)
    assert report.at(0.5).curve.scores == curve
    assert report.at(0.5).curve.scores != measure(of).at(0.5).curve.scores
    whole = curve_by_hand(scheduled(), {}, 7)[-1]
    assert report.final_gap(0.5) == curve[-1] - whole
    assert report.final_gap(0.5, final_score=1.0) == curve[-1] - 1.0
    with pytest.raises(ValueError, match="frozen=False"):
        measure(of, also=[of.data, scheduler]).final_gap(0.5)


def test_a_learning_rate_that_moves_with_nothing_in_also_is_told() -> None:
    of = task()
    group = of.optimizer.param_groups[0]
    of.each = lambda: group.update(lr=group["lr"] * 0.5)
    assert "scheduler" in measure(of, also=[]).notes[0]
    assert not measure(of).notes


# --- selection ------------------------------------------------------------------------------------

TENSORS = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, 2.0, -3.0]), min_size=1, max_size=9),
    min_size=1,
    max_size=4,
)


@given(TENSORS, st.floats(0, 0.999))
def test_one_shot_pruning_is_a_stable_sort_to_the_count(
    values: list[list[float]], rate: float
) -> None:
    weights = {str(i): torch.tensor(v) for i, v in enumerate(values)}
    whole = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    flat = np.concatenate([np.abs(v) for v in values])
    keep = len(flat) - round(rate * len(flat))
    expected = np.zeros(len(flat), bool)
    expected[np.argsort(-flat, kind="stable")[:keep]] = True
    found = one_shot_masks(weights, rate, "global", whole)
    assert torch.cat(list(found.values())).tolist() == expected.tolist()
    for name, mask in one_shot_masks(weights, rate, "uniform", whole).items():
        size = weights[name].numel()
        assert int(mask.sum()) == size - round(rate * size)
        gone, kept = weights[name].abs()[~mask], weights[name].abs()[mask]
        assert not len(gone) or not len(kept) or gone.max() <= kept.min()


def test_what_is_not_there_goes_first_and_a_rate_below_prunes_nothing() -> None:
    weights = {"a": torch.tensor([5.0, 4.0, 3.0, 0.0, 0.0, 0.0])}
    there = {"a": torch.tensor([True, True, True, False, False, False])}
    assert one_shot_masks(weights, 0.2, "global", there)["a"].equal(there["a"])
    assert one_shot_masks(weights, 0.5, "uniform", there)["a"].equal(there["a"])
    assert one_shot_masks(weights, 4 / 6, "global", there)["a"].tolist() == [True, True] + 4 * [
        False
    ]


def naive_regrown(mask: Tensor, scores: Tensor, number: int) -> Tensor:
    """Sort the places that are empty, and fill the first."""
    empty = [i for i, there in enumerate(mask.flatten().tolist()) if not there]
    empty.sort(key=lambda i: -float(scores.flatten()[i]))
    found = mask.clone().flatten()
    found[empty[:number]] = True
    return found.view_as(mask)


def naive_gradients(of: Task, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the next batch at the pruned weights."""
    plain = of.copied()
    weights = weights_of(plain.net)
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name] *= mask
    found = torch.autograd.grad(plain.loss(), list(weights.values()))
    return dict(zip(weights, found, strict=True))


def recovered(of: Task, live: dict[str, Tensor], masks: dict[str, Tensor], updates: int) -> Any:
    """Train a copy by hand, with weights and state zero where nothing lives."""
    plain = of.copied()
    with torch.no_grad():
        for name, weight in weights_of(plain.net).items():
            weight *= live[name]
            for value in plain.optimizer.state[weight].values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value *= live[name]
    return curve_by_hand(plain, masks, updates)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_zero_cost_regeneration_exchanges_connections_by_gradient(
    optimizer: str, scope: str
) -> None:
    of = task(OPTIMIZERS[optimizer])
    stay = by_torch(of.copied().net, 0.8, scope)
    gradients = naive_gradients(of, stay)
    live, masks = {}, {}
    for name, weight in weights_of(of.net).items():
        there = int(stay[name].sum())
        drop = round(0.3 * there)
        order = (weight.detach().abs() * stay[name]).flatten().argsort(descending=True)
        live[name] = torch.zeros_like(stay[name]).flatten()
        live[name][order[: there - drop]] = True
        live[name] = live[name].view_as(weight)
        masks[name] = naive_regrown(live[name], gradients[name].abs(), drop)
    record = measure(of, rates=[0.8], updates=6, scope=scope, regenerate="zero-cost").at(
        0.8, "zero-cost"
    )
    assert record.curve.scores == recovered(of, live, masks, 6)
    assert record.variant == "zero-cost by gradient"
    assert record.sparsity == measure(of, rates=[0.8], scope=scope).at(0.8).sparsity
    assert record.regrown == sum(int((masks[n] & ~live[n]).sum()) for n in masks)
    assert record.kept == {n: int(m.sum()) for n, m in masks.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_restoring_a_dense_network_leaves_it_dense_with_the_pruned_weights_at_0(
    optimizer: str,
) -> None:
    of = task(OPTIMIZERS[optimizer])
    stay = by_torch(of.copied().net, 0.8, "global")
    record = measure(of, rates=[0.8], updates=6, regenerate="restore").at(0.8, "restore")
    assert record.curve.scores == recovered(of, stay, {}, 6)
    assert record.sparsity == 0.0
    assert record.regrown == record.pruned == round(0.8 * record.weights)


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_restoring_a_sparse_network_picks_among_all_that_is_not_there(scope: Any) -> None:
    of = task()
    given = by_torch(of.net, 0.5, "uniform")
    stay = by_torch(of.copied().net, 0.8, scope)
    gradients = naive_gradients(of, stay)
    if scope == "uniform":
        masks = {
            n: naive_regrown(stay[n], gradients[n].abs(), int((given[n] & ~stay[n]).sum()))
            for n in stay
        }
    else:
        flat = torch.cat([stay[n].flatten() for n in stay])
        scores = torch.cat([gradients[n].abs().flatten() for n in stay])
        number = sum(int((given[n] & ~stay[n]).sum()) for n in stay)
        parts = naive_regrown(flat, scores, number).split([m.numel() for m in stay.values()])
        masks = {n: part.view_as(stay[n]) for n, part in zip(stay, parts, strict=True)}
    assert any((masks[n] & ~given[n]).any() for n in masks)
    record = measure(of, rates=[0.8], updates=6, scope=scope, regenerate="restore", masks=given).at(
        0.8, "restore"
    )
    assert record.curve.scores == recovered(of, stay, masks, 6)


def test_random_growth_follows_the_generator_and_keeps_the_count() -> None:
    of = task()
    found = [
        measure(
            of,
            regenerate=[None, "zero-cost"],
            growth="random",
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert found[0].at(0.5) == found[2].at(0.5)
    for report in found:
        assert report.at(0.5, "zero-cost").kept == report.at(0.5).kept
        assert report.at(0.5, "zero-cost").label == "rate=0.5/regenerate=zero-cost/growth=random"


def test_growth_brings_back_what_has_just_gone_where_its_score_is_best() -> None:
    weights = {"w": torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])}
    masks = {"w": torch.tensor([True, True, True, True, False])}
    live = thinned(masks, weights, 0.5)
    assert live["w"].tolist() == [True, True, False, False, False]
    back = regrown(live, {"w": torch.tensor([0.0, 0.0, 9.0, 0.0, 1.0])}, {"w": 2})
    assert back["w"].tolist() == [True, True, True, False, True]


# --- masks that hold ------------------------------------------------------------------------------


class Centred(Optimizer):
    """Mixes the entries of a gradient, so that a state of 0 and a gradient of 0 do not stay 0."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    state.mul_(0.9).add_(p.grad - p.grad.mean())
                    p.sub_(group["lr"] * state)


ALL: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "fused Adam": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, 1e-3),
    "ASGD": lambda p: torch.optim.ASGD(p, 1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, 1e-2),
    "not entry by entry": Centred,
}


@pytest.mark.parametrize("kind", ALL)
def test_weights_and_states_are_0_where_nothing_is_all_along(kind: str) -> None:
    of = task(ALL[kind])
    looked, counts = [], []

    def score() -> float:
        shares = []
        for name, weight in weights_of(of.net).items():
            off = weight.detach() == 0
            counts.append((name, int(off.sum())))
            for key, value in of.optimizer.state[weight].items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    fresh = {"step_size": 1e-3, "sum": 0.1}.get(key, 0.0)
                    shares.append(bool((value[off] == torch.tensor(fresh)).all()))
        looked.append(all(shares))
        return of.score()

    report = pruning_plasticity(
        of.net,
        of.optimizer,
        of.step,
        score,
        rates=[0.7],
        updates=5,
        curve_every=1,
        also=[of.data],
        masks=None,
    )
    record = report.at(0.7)
    sizes = {name: weight.numel() for name, weight in weights_of(of.net).items()}
    expected = [(name, sizes[name] - kept) for name, kept in record.kept.items()]
    assert counts[-6 * len(sizes) :] == 6 * expected
    assert looked[-6:] == [True] * 6


def test_gradients_are_0_where_nothing_is_when_the_optimizer_steps() -> None:
    of, seen = task(), []
    inner = of.optimizer.step

    def step() -> None:
        inner()
        for weight in weights_of(of.net).values():
            assert weight.grad is not None
            off = weight.detach() == 0
            seen.append((int(off.sum()), bool((weight.grad[off] == 0).all())))

    of.optimizer.step = step  # type: ignore[method-assign]
    record = measure(of, rates=[0.75], updates=3).at(0.75)
    sizes = [weight.numel() for weight in weights_of(of.net).values()]
    gone = [size - kept for size, kept in zip(sizes, record.kept.values(), strict=True)]
    assert seen[-9:] == 3 * [(number, True) for number in gone]


@pytest.mark.parametrize("where", ["step", "backward"])
def test_clipping_sees_the_masked_gradient_where_it_is_masked_in_the_backward_pass(
    where: Any,
) -> None:
    of, norms = task(), []

    def step() -> None:
        of.optimizer.zero_grad()
        of.loss().backward()
        norms.append(float(nn.utils.clip_grad_norm_(of.net.parameters(), 0.01)))
        of.optimizer.step()

    plain = of.copied()
    stay = by_torch(plain.net, 0.9, "global")
    plain.loss().backward()
    square = 0.0
    for name, parameter in plain.net.named_parameters():
        assert parameter.grad is not None
        masked = parameter.grad * stay[name] if where == "backward" and name in stay else None
        square += float((parameter.grad if masked is None else masked).double().square().sum())
    keywords = {"rates": [0.9], "updates": 1, "also": [of.data], "mask_grads": where}
    pruning_plasticity(of.net, of.optimizer, step, of.score, **keywords)
    assert norms[-1] == pytest.approx(square**0.5, rel=1e-6)
    assert not any(p._post_accumulate_grad_hooks for p in of.net.parameters())


def test_closures_work_where_gradients_are_masked_in_the_backward_pass() -> None:
    of = task()
    of.optimizer = lbfgs = torch.optim.LBFGS(of.net.parameters(), 0.1, max_iter=3)

    def step() -> None:
        x = torch.randn(16, 6, generator=of.data)

        def closure() -> float:
            lbfgs.zero_grad()
            loss = of.net(x).square().mean()
            loss.backward()
            return float(loss.detach())

        lbfgs.step(closure)

    def run(**keywords: Any) -> PlasticityReport:
        return pruning_plasticity(
            of.net, lbfgs, step, of.score, rates=[0.9], updates=2, also=[of.data], **keywords
        )

    step()
    before = everything([of.net], [lbfgs])
    record = run(mask_grads="backward").at(0.9)
    assert record.after != record.before + record.immediate
    assert identical(before, everything([of.net], [lbfgs]))
    with pytest.raises(ValueError, match="mask_grads='backward'"):
        run()
    assert identical(before, everything([of.net], [lbfgs]))


def test_masks_of_a_sparse_network_hold_in_the_control_too() -> None:
    of = task()
    given = by_torch(of.net, 0.6, "global")
    report = measure(of, rates=[0.3, 0.8], updates=5, masks=given)
    plain = of.copied()
    assert report.control.scores == curve_by_hand(plain, given, 5)
    assert report.at(0.3).curve == report.control
    assert (report.at(0.3).pruned, report.at(0.3).sparsity) == (0, pytest.approx(0.6, abs=1e-3))
    plain = of.copied()
    assert report.at(0.8).curve.scores == curve_by_hand(
        plain, by_torch(plain.net, 0.8, "global"), 5
    )


def test_a_layer_that_is_left_whole_stays_so_and_counts_for_nothing() -> None:
    of = task()
    report = measure(of, outputs={"4"}, exclude=["0.*"])
    assert report.at(0.5).kept == {"2.weight": 24 * 16 // 2}
    assert report.weights == 24 * 16
    assert measure(of, outputs={"4"}, include=["4"]).at(0.5).kept == {"4.weight": 16}


# --- everything is put back -----------------------------------------------------------------------


class Remembering(nn.Module):
    """Changes buffers and attributes in its forward pass, and has a frozen and a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ConvNet()
        self.mirror = nn.Linear(12, 3)
        self.mirror.weight = self.net.advantage.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("last", torch.zeros(2))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach()[0, 0, 0, :2] + 0
        return self.net(x) * self.frozen * (0.5 + 0 * random.random() + 0 * np.random.rand())


def conv_step(net: nn.Module, optimizer: Optimizer) -> Callable[[], None]:
    def step() -> None:
        net.train()
        optimizer.zero_grad()
        F.cross_entropy(net(torch.randn(4, 2, 10, 10)), torch.randint(3, (4,))).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def conv_score(net: nn.Module) -> Callable[[], float]:
    def score() -> float:
        net.eval()
        with torch.no_grad():
            return float(net(torch.ones(1, 2, 10, 10)).mean())

    return score


def identities(net: nn.Module, optimizer: Optimizer) -> Iterator[Any]:
    for tensor in (*net.parameters(), *net.buffers()):
        yield from (id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad)
        yield None if tensor.grad is None else (id(tensor.grad), tensor.grad._version)
    for state in optimizer.state.values():
        yield from ((key, id(value)) for key, value in state.items() if isinstance(value, Tensor))
    for group in optimizer.param_groups:
        yield from ((key, value) for key, value in group.items() if key != "params")
    yield from (id(optimizer.state), id(optimizer.param_groups))
    yield from (
        (m.training, [id(v) for v in vars(m).values()], list(vars(m))) for m in net.modules()
    )
    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        yield from (id(hooks), list(hooks.items()))


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back_to_the_bit_and_in_place(kind: str, fails: bool) -> None:
    seeded()
    net = Remembering()
    optimizer = ALL[kind]([p for p in net.parameters() if p.requires_grad])
    step = conv_step(net, optimizer)
    target = copy.deepcopy(net)
    draws, numbers, stream = torch.Generator(), np.random.default_rng(0), random.Random(0)
    count, also = {"n": [0]}, nn.Linear(2, 2)
    for _ in range(3):
        step()
    net.net.value.weight.grad = None
    optimizer.register_step_post_hook(lambda *_: None)
    calls = 0

    def changing() -> None:
        nonlocal calls
        calls += 1
        step()
        torch.rand((), generator=draws)
        numbers.random(), stream.random()
        count["n"][0] += 1
        net.net.conv1.weight.requires_grad_(False)
        with torch.no_grad():
            for old, new in zip(target.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 0.1)
        also.requires_grad_(False).eval()
        if fails and calls == 8:
            raise KeyboardInterrupt

    def seen() -> list[Any]:
        return [
            *everything([net, target], [optimizer]),
            *gradients(net),
            draws.get_state(),
            numbers.bit_generator.state,
            stream.getstate(),
            copy.deepcopy(count),
            also.training,
            *[p.requires_grad for p in also.parameters()],
        ]

    before = seen(), list(identities(net, optimizer))

    def run() -> PlasticityReport:
        return pruning_plasticity(
            net,
            optimizer,
            changing,
            conv_score(net),
            rates=[0.5, 0.9],
            updates=4,
            regenerate=[None, "zero-cost"],
            also=[target, draws, numbers, stream, count, also],
        )

    if fails:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        # conv1 is trainable at the beginning of each, and frozen after the first update.
        assert len(run().records) == 4
    after = seen(), list(identities(net, optimizer))
    assert identical(before[0], after[0])
    assert before[1] == after[1]
    module = vars(sys.modules["torch.optim.optimizer"])
    assert module["_global_optimizer_pre_hooks"] is _global_optimizer_pre_hooks
    assert module["_global_optimizer_post_hooks"] is _global_optimizer_post_hooks
    step()


def test_an_optimizer_without_state_has_none_afterwards() -> None:
    of = task(OPTIMIZERS["Adam"], updates=0)
    report = measure(of, rates=[0.2, 0.4])
    assert not of.optimizer.state
    assert all(p.grad is None for p in of.net.parameters())
    plain = of.copied()
    assert report.at(0.4).curve.scores == curve_by_hand(
        plain, by_torch(plain.net, 0.4, "global"), 4
    )


def test_a_graph_that_was_recorded_before_can_still_be_used() -> None:
    of = task()
    loss = of.loss()
    expected = torch.autograd.grad(loss, list(of.net.parameters()), retain_graph=True)
    measure(of)
    found = torch.autograd.grad(loss, list(of.net.parameters()))
    assert identical(list(expected), list(found))


def test_gradients_left_by_the_loop_do_not_enter_the_first_update() -> None:
    of = task()
    clean = measure(of)

    def step() -> None:  # zeroes after its step
        of.loss().backward()
        of.optimizer.step()
        of.optimizer.zero_grad()

    of.loss().backward()
    of.data.manual_seed(1)
    first = measure(of)
    of.step = step  # type: ignore[method-assign]
    assert measure(of) == first
    assert clean.before == first.before
    assert any(p.grad is not None and p.grad.any() for p in of.net.parameters())


def test_a_watch_neither_counts_nor_reads_these_updates() -> None:
    runs = []
    for measured in (False, True):
        of = task()
        probes = [dp.Dormancy(every=3), dp.Gradients(every=3, updates=2), dp.Updates(every=2)]
        with dp.watch(of.net, of.optimizer, probes, on_error="raise") as watch:
            for update in range(9):
                of.optimizer.zero_grad()
                of.loss().backward()
                if measured and update in (0, 4):
                    measure(of, regenerate="zero-cost")
                of.optimizer.step()
        assert watch.step == 9
        tags = watch.history.tags()
        runs.append({tag: [a.tolist() for a in watch.history.series(tag)] for tag in tags})
    assert runs[0] == runs[1]
    assert "gradients/norm_before_clipping" in runs[0]


def test_a_watch_does_not_take_these_forward_passes_for_the_first_of_the_training() -> None:
    runs = []
    for measured in (False, True):
        of = task()
        with dp.watch(of.net, of.optimizer, dp.Rank(every=2), on_error="raise") as watch:
            if measured:
                measure(of, also=[of.data])
                assert not watch.history.tags()
            for _ in range(4):
                of.step()
        tags = watch.history.tags()
        runs.append({tag: [a.tolist() for a in watch.history.series(tag)] for tag in tags})
    assert runs[0] == runs[1]
    assert runs[0]


def test_hooks_of_the_user_on_modules_work_and_those_on_steps_are_silent_unless_kept() -> None:
    of, forwards, steps = task(), [], []
    of.net.register_forward_hook(lambda *_: forwards.append(1))
    of.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    measure(of, updates=4)
    assert forwards and not steps
    measure(of, updates=4, keep_hooks=True)
    assert len(steps) == 8
    of.step()
    assert len(steps) == 9


# --- gradient scalers -----------------------------------------------------------------------------


def scaled(of: Task, scaler: torch.amp.GradScaler, spoil: Callable[[], bool]) -> None:
    of.optimizer.zero_grad()
    loss = of.loss() * (float("inf") if spoil() else 1.0)
    scaler.scale(loss).backward()
    scaler.step(of.optimizer)
    scaler.update()


@pytest.mark.parametrize("kind", ["SGD", "fused Adam"])
def test_steps_that_a_scaler_skips_do_not_count(kind: str) -> None:
    of = task(ALL[kind])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaled(of, scaler, lambda: False)
    calls = {"n": 0}

    def third() -> bool:
        calls["n"] += 1
        return calls["n"] % 3 == 2

    before = scaler.state_dict()
    report = pruning_plasticity(
        of.net,
        of.optimizer,
        lambda: scaled(of, scaler, third),
        of.score,
        rates=[0.0],
        updates=4,
        also=[of.data, scaler, calls],
    )
    plain = of.copied()
    for batch in range(1, 7):
        if batch % 3 == 2:
            plain.loss()
        else:
            plain.step()
    assert report.control.scores[-1] == pytest.approx(plain.score(), rel=1e-6)
    assert report.at(0.0).curve == report.control
    assert scaler.state_dict() == before
    scaled(of, scaler, lambda: False)
    with pytest.raises(Unmeasurable, match="without a step"):
        pruning_plasticity(
            of.net,
            of.optimizer,
            lambda: scaled(of, scaler, lambda: True),
            of.score,
            rates=[0.0],
            updates=4,
            also=[of.data, scaler],
        )
    scaled(of, scaler, lambda: False)


def test_a_scaler_that_could_not_be_put_back_is_refused() -> None:
    of = task()
    scaler = torch.amp.GradScaler("cpu")
    before = everything([of.net], [of.optimizer])
    with pytest.raises(ValueError, match="also="):
        pruning_plasticity(
            of.net,
            of.optimizer,
            lambda: scaled(of, scaler, lambda: False),
            of.score,
            rates=[0.5],
            updates=2,
            also=[of.data],
        )
    assert identical(before, everything([of.net], [of.optimizer]))
    scaled(of, scaler, lambda: False)


# --- what is refused, and what cannot be measured -------------------------------------------------


def test_what_train_step_has_to_do() -> None:
    of = task()
    before = everything([of.net], [of.optimizer])
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)

    def twice() -> None:
        of.step()
        of.step()

    def with_other() -> None:
        of.step()
        other.step()

    def caught() -> None:
        of.step()
        try:
            other.step()
        except ValueError:
            pass

    for step, message in (
        (lambda: of.loss().backward(), "did not step"),
        (twice, "2 times"),
        (with_other, "another optimizer"),
        (caught, "another optimizer"),
    ):
        with pytest.raises(ValueError, match=message):
            pruning_plasticity(of.net, of.optimizer, step, of.score, rates=[0.5], updates=2)
    assert identical(before[:-4], everything([of.net], [of.optimizer])[:-4])


def test_several_optimizers_are_put_back_and_have_to_step() -> None:
    of = task()
    first = torch.optim.SGD(of.net[0].parameters(), 0.1, momentum=0.9)  # type: ignore[index]
    second = torch.optim.Adam([*of.net[2].parameters(), *of.net[4].parameters()], 0.01)  # type: ignore[index]
    extra = torch.zeros(1, requires_grad=True)
    third = torch.optim.SGD([extra], 0.1)
    optimizers: list[Optimizer] = [first, second, third]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        (of.loss() + extra.square().sum() + extra.sum()).backward()
        for optimizer in optimizers:
            optimizer.step()

    step()
    before = [*everything([of.net], optimizers), extra.detach().clone()]
    report = pruning_plasticity(
        of.net, optimizers, step, of.score, rates=[0.5], updates=3, also=[of.data]
    )
    assert report.learning_rates == (0.1, 0.01, 0.1)
    assert identical(before, [*everything([of.net], optimizers), extra.detach().clone()])

    def lazy() -> None:
        optimizers[0].zero_grad()
        of.loss().backward()
        first.step()

    with pytest.raises(ValueError, match="never stepped Adam"):
        pruning_plasticity(of.net, optimizers, lazy, of.score, rates=[0.5], updates=3)
    pruning_plasticity(
        of.net, optimizers, lazy, of.score, rates=[0.5], updates=3, exclude=["2", "4"]
    )


@pytest.mark.parametrize(
    "keywords",
    [
        {"rates": []},
        {"rates": [1.0]},
        {"rates": [-0.1]},
        {"rates": [0.5, 0.5]},
        {"updates": 0},
        {"curve_every": 0},
        {"scope": "layer"},
        {"regenerate": "all"},
        {"regenerate": []},
        {"growth": "momentum"},
        {"turnover": 0.0},
        {"mask_grads": "never"},
        {"include": ["nothing"]},
        {"exclude": ["*"]},
        {"masks": {"0.weight": torch.ones(3, 3, dtype=torch.bool)}},
        {"masks": {"0.weight": torch.zeros(24, 6, dtype=torch.bool)}},
        {"masks": {"nothing": torch.ones(1, dtype=torch.bool)}},
    ],
)
def test_arguments_out_of_range_are_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        measure(task(updates=1), **keywords)


def test_arguments_of_another_kind_are_refused() -> None:
    of = task(updates=1)
    with pytest.raises(TypeError, match="cannot be put back"):
        measure(of, also=[iter([1])])
    with pytest.raises(TypeError, match="give a torch.optim.Optimizer"):
        pruning_plasticity(of.net, of.net, of.step, of.score, rates=[0.5], updates=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="functions"):
        pruning_plasticity(of.net, of.optimizer, 3, of.score, rates=[0.5], updates=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="evaluate returned a"):
        pruning_plasticity(of.net, of.optimizer, of.step, lambda: None, rates=[0.5], updates=1)


def test_a_score_that_is_not_finite_is_never_reported() -> None:
    of = task()
    scores = iter([1.0, 1.0, 1.0, float("nan"), 1.0, 2.0])
    report = pruning_plasticity(
        of.net, of.optimizer, of.step, lambda: next(scores), rates=[0.5, 0.9], updates=1
    )
    assert [record.rate for record in report.records] == [0.9]
    assert "nan at rate=0.5" in report.skipped["rate=0.5"]
    assert "not measured: rate=0.5: evaluate returned nan" in str(report)
    with pytest.raises(KeyError, match="nan"):
        report.at(0.5)
    with pytest.raises(Unmeasurable, match="inf before pruning"):
        pruning_plasticity(
            of.net, of.optimizer, of.step, lambda: float("inf"), rates=[0.5], updates=1
        )


def test_regeneration_without_a_gradient_to_go_by_is_skipped_with_the_reason() -> None:
    of = task()
    of.net.add_module("unused", nn.Linear(3, 3))
    of.net.forward = lambda x: of.net[4](of.net[3](of.net[2](of.net[1](of.net[0](x)))))  # type: ignore[method-assign,index]
    of.optimizer.add_param_group({"params": list(of.net.unused.parameters())})  # type: ignore[union-attr]
    report = measure(of, regenerate=[None, "zero-cost"])
    assert report.skipped == {
        "rate=0.5/regenerate=zero-cost": "unused.weight got no gradient, by which to regenerate"
    }
    assert len(report.records) == 1
    assert len(measure(of, regenerate="zero-cost", growth="random").records) == 1


def test_the_table_says_what_was_measured() -> None:
    of = task()
    report = measure(of, rates=[0.5, 0.9], regenerate=[None, "zero-cost"])
    text = str(report)
    assert "learning rate frozen at 0.1" in text
    assert f"{report.at(0.9, 'zero-cost').plasticity:+.4f}" in text
    assert text.count("zero-cost by gradient") == 2


def test_it_works_on_a_network_whose_forward_is_compiled() -> None:
    of = task()
    plain = measure(of, regenerate=[None, "zero-cost"])
    net = of.net
    of.net = torch.compile(net, backend="aot_eager")  # type: ignore[assignment]
    found = pruning_plasticity(
        of.net,
        of.optimizer,
        of.step,
        of.score,
        rates=[0.5],
        updates=4,
        curve_every=1,
        regenerate=[None, "zero-cost"],
        also=[of.data],
    )
    assert found.at(0.5).curve.scores == pytest.approx(plain.at(0.5).curve.scores, rel=1e-5)
    assert found.at(0.5).kept == plain.at(0.5).kept
