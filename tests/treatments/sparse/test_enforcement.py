"""What is masked is 0 to the bit, in weight and state, whatever the optimizer and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import dynamo_probe as dp
from tests.models import GPT, ConvNet, mlp
from tests.training import everything, identical, seeded, train


class Lion(Optimizer):
    """Sign of an interpolated momentum (Chen et al. 2023, algorithm 2)."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (0.9 * m + 0.1 * p.grad).sign())
                m.mul_(0.99).add_(p.grad, alpha=0.01)


class Centred(Optimizer):
    """Moves weights by more than their own gradient: not entry by entry."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
                    p.sub_(group["lr"] * (p.grad - p.grad.mean()))


Make = Callable[[Iterable[Tensor]], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, weight_decay=1e-2),
    "sgd momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "sgd nesterov foreach": lambda p: torch.optim.SGD(
        p, 0.05, momentum=0.9, nesterov=True, foreach=True
    ),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, foreach=False),
    "adam amsgrad": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, weight_decay=1e-2),
    "adam foreach": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p, 1e-2),
    "lion": Lion,
    "not entry by entry": Centred,
}


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 6)
    return F.mse_loss(model(x), x[:, :2].sin())


def granet(**options: Any) -> dp.GraNet:
    given = {"final_density": 0.2, "initial_density": 0.6, "end": 30, "every": 5} | options
    return dp.GraNet(**given)


def off_mask(treatment: dp.SparseTraining, optimizer: Optimizer) -> list[Tensor]:
    """Return what weights and states hold where there is no connection, and where there is."""
    found = []
    for name, weight in treatment.connections.weights.items():
        off = ~treatment.connections.mask_of(name)
        state = optimizer.state.get(weight.parameter, {})
        tensors = [weight.parameter.detach(), *state.values()]
        found += [t[off] for t in tensors if isinstance(t, Tensor) and t.shape == off.shape]
    assert sum(t.numel() for t in found)
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_masked_is_zero_to_the_bit_after_every_update(name: str) -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    optimizer = OPTIMIZERS[name](model.parameters())
    treatment = granet()
    with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
        for _ in range(40):
            train(model, optimizer, loss, 1)
            for tensor in off_mask(treatment, optimizer):
                assert torch.count_nonzero(tensor) == 0
    assert watch.history.latest("sparsity/density") == pytest.approx(0.2, abs=1e-3)
    assert treatment.regrown > 0
    moved = [w.parameter for w in treatment.connections.weights.values()]
    assert all(torch.count_nonzero(p) > 0 for p in moved)


def test_without_the_masks_on_gradients_the_test_would_see_stale_state() -> None:
    """The planted bug: weights are masked and gradients are not."""
    seeded()
    model = mlp(6, 32, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    treatment = granet()
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        train(model, optimizer, loss, 1)
        treatment._network.before = lambda optimizer: None  # type: ignore
        train(model, optimizer, loss, 3)
        assert any(torch.count_nonzero(t) > 0 for t in off_mask(treatment, optimizer))


def test_what_has_no_state_of_zero_is_as_fresh() -> None:
    seeded()
    for make, key, value in (
        (lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.3), "sum", 0.3),
        (lambda p: torch.optim.Rprop(p, 0.02), "step_size", 0.02),
    ):
        model = mlp(6, 32, 32, 2)
        optimizer = make(model.parameters())
        treatment = dp.GradualMagnitudePruning(0.2, end=20, every=5)
        with dp.watch(model, optimizer, treatment, on_error="raise"):
            train(model, optimizer, loss, 20)
        for name, weight in treatment.connections.weights.items():
            off = ~treatment.connections.mask_of(name)
            state = optimizer.state[weight.parameter][key]
            torch.testing.assert_close(state[off], torch.full_like(state[off], value))
            assert torch.count_nonzero(weight.parameter[off]) == 0


def test_convolutions_transformers_and_channels_last_hold_too() -> None:
    seeded()
    x = torch.randn(4, 2, 10, 10).contiguous(memory_format=torch.channels_last)
    conv = ConvNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tokens = torch.randint(11, (2, 8))
    for model, step in (
        (conv, lambda m: m(x).square().mean()),
        (GPT(), lambda m: F.cross_entropy(m(tokens).flatten(0, 1), tokens.flatten())),
    ):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        treatment = granet()
        with dp.watch(model, optimizer, treatment, on_error="raise"):
            train(model, optimizer, step, 35)
            for tensor in off_mask(treatment, optimizer):
                assert torch.count_nonzero(tensor) == 0
        assert treatment.regrown > 0


def test_accumulated_gradients_give_the_run_of_the_whole_batch() -> None:
    data = torch.randn(40, 16, 6, dtype=torch.float64)
    runs = []
    for parts in (1, 4):
        seeded()
        model = mlp(6, 32, 32, 2).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        treatment = granet()
        with dp.watch(model, optimizer, treatment, on_error="raise"):
            for batch in data:
                optimizer.zero_grad()
                for part in batch.chunk(parts):
                    (F.mse_loss(model(part), part[:, :2].sin()) / parts).backward()
                optimizer.step()
        runs.append([treatment.connections.mask_of(n) for n in treatment.connections.weights])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_gradients_masked_in_the_backward_pass_are_not_in_the_norm_that_clips() -> None:
    norms: dict[str, list[float]] = {}
    for how in ("step", "backward"):
        seeded()
        model = mlp(6, 32, 32, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        treatment = granet(mask_grads=how)
        norms[how] = []
        with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
            for update in range(1, 13):
                optimizer.zero_grad()
                loss(model).backward()
                gathers = update % 5 == 0
                off = 0
                for name, weight in treatment.connections.weights.items():
                    grad = weight.parameter.grad
                    assert grad is not None
                    off += int(grad[~treatment.connections.mask_of(name)].count_nonzero())
                assert (off == 0) is (how == "backward" and not gathers)
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                norms[how].append(float(norm))
                optimizer.step()
        assert watch.step == 12
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert norms["backward"][0] < norms["step"][0]


def test_a_scaler_that_skips_a_step_changes_no_mask() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
    treatment = granet(every=1, end=20)
    with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
        for update in range(12):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                out = loss(model)
            scaler.scale(out * (float("inf") if update == 6 else 1.0)).backward()
            masks = {n: treatment.connections.mask_of(n).clone() for n in _names(treatment)}
            scaler.step(optimizer)
            scaler.update()
            if update == 6:
                for name, mask in masks.items():
                    assert torch.equal(mask, treatment.connections.mask_of(name))
    assert watch.step == 11
    for tensor in off_mask(treatment, optimizer):
        assert torch.count_nonzero(tensor) == 0


def _names(treatment: dp.SparseTraining) -> list[str]:
    return list(treatment.connections.weights)


def test_a_fused_optimizer_under_a_scaler_grows_by_the_unscaled_gradient() -> None:
    masks = []
    for scale in (1.0, 2.0**12):
        seeded()
        model = mlp(6, 32, 32, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # type: ignore[attr-defined]
        treatment = granet(accumulate=3)
        with dp.watch(model, optimizer, treatment, on_error="raise"):
            for _ in range(12):
                optimizer.zero_grad()
                scaler.scale(loss(model)).backward()
                scaler.step(optimizer)
                scaler.update()
        masks.append([treatment.connections.mask_of(n).clone() for n in _names(treatment)])
    for first, second in zip(*masks, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["adam", "sgd momentum", "lbfgs"])
def test_a_closure_whose_gradients_are_made_inside_the_step_is_masked_after_it(name: str) -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    make = OPTIMIZERS.get(name, lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3))
    optimizer = make(model.parameters())
    treatment = granet()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
        for _ in range(12):
            optimizer.step(closure)
            for tensor in off_mask(treatment, optimizer):
                assert torch.count_nonzero(tensor) == 0
    assert watch.step == 12 and treatment.regrown > 0


def test_two_optimizers_each_mask_their_own_weights() -> None:
    seeded()
    model = mlp(6, 32, 32, 32, 2)
    first = torch.optim.SGD(model[:2].parameters(), 0.05, momentum=0.9)
    second = torch.optim.Adam(model[2:].parameters(), 1e-2)
    treatment = granet()
    with dp.watch(model, [first, second], treatment, on_error="raise"):
        for _ in range(20):
            model.zero_grad()
            loss(model).backward()
            first.step()
            second.step()
            for tensor in (*off_mask(treatment, first), *off_mask(treatment, second)):
                assert torch.count_nonzero(tensor) == 0
    assert {"0.weight", "2.weight", "4.weight"} == set(treatment.connections.weights)


def test_tied_weights_have_one_mask() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(F.relu(self.a(x)))))

    seeded()
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    treatment = granet()
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        train(model, optimizer, loss, 30)
    assert _names(treatment) == ["a.weight"]
    assert int(treatment.connections.mask_of("a.weight").sum()) == round(0.2 * 36)
    assert torch.count_nonzero(model.b.weight) <= round(0.2 * 36)


def test_recycling_puts_nothing_where_no_connection_is() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    treatment, redo = granet(), dp.ReDo(tau=0.5, every=3)
    with dp.watch(model, optimizer, [treatment, redo], on_error="raise"):
        for _ in range(15):
            train(model, optimizer, loss, 1)
            for tensor in off_mask(treatment, optimizer):
                assert torch.count_nonzero(tensor) == 0
    assert redo.total > 0


def test_a_target_network_loses_the_same_connections() -> None:
    seeded()
    online, target = mlp(6, 32, 32, 2), mlp(6, 32, 32, 2)
    optimizer = torch.optim.Adam(online.parameters(), 1e-2)
    treatment = granet(mirror=target)
    with dp.watch(online, optimizer, treatment, on_error="raise"):
        for _ in range(33):
            train(online, optimizer, loss, 1)
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)
            copies = dict(target.named_parameters())
            if _ % 5 == 4:
                continue  # masks change after the step, and Polyak averaging follows at the next
            for name in _names(treatment):
                off = ~treatment.connections.mask_of(name)
                assert torch.count_nonzero(copies[name][off]) == 0


def test_a_compiled_model_is_not_compiled_again_when_masks_change() -> None:
    torch._dynamo.reset()
    seeded()
    model = mlp(6, 32, 32, 2)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    treatment = granet()
    with dp.watch(compiled, optimizer, treatment, on_error="raise"):
        train(compiled, optimizer, loss, 40)
        for tensor in off_mask(treatment, optimizer):
            assert torch.count_nonzero(tensor) == 0
    torch._dynamo.reset()
    assert len(graphs) == 1 and treatment.regrown > 0


def test_nothing_is_left_behind_and_no_key_of_the_state_changes() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    keys = list(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with dp.watch(model, optimizer, granet(mask_grads="backward"), on_error="raise"):
        train(model, optimizer, loss, 7)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert list(model.state_dict()) == keys
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_switched_off_it_changes_nothing() -> None:
    runs = []
    for treated in (False, True):
        seeded()
        model = mlp(6, 32, 32, 2)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        treatment = granet()
        treatment.enabled = False
        if treated:
            with dp.watch(model, optimizer, treatment, on_error="raise"):
                train(model, optimizer, loss, 12)
        else:
            train(model, optimizer, loss, 12)
        runs.append(everything([model], [optimizer]))
    assert identical(*runs)
