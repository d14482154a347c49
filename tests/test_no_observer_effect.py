"""A run with probes is bit-identical to the run without, and nothing is left behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from tests.models import GPT, ConvNet, mlp
from tests.training import everything, identical, seeded, train


def mlp_loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 6)
    return F.mse_loss(model(x), x[:, :2].sin())


def conv_loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(torch.randn(4, 2, 10, 10)), torch.randint(3, (4,)))


def gpt_loss(model: nn.Module) -> Tensor:
    tokens = torch.randint(11, (2, 17))
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "mlp": (lambda: mlp(6, 32, 32, 2), mlp_loss),
    "conv net with batchnorm and dropout": (ConvNet, conv_loss),
    "gpt": (GPT, gpt_loss),
    "gpt with swiglu": (lambda: GPT(gated=True), gpt_loss),
}


def every_probe(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[nn.Module], Tensor]
) -> list[dp.Probe]:
    def score() -> float:
        with torch.no_grad():
            return -float(loss(model))

    language = isinstance(model, GPT)
    return [
        *([dp.Induction(every=40, period=5, dense=0)] if language else []),
        *([dp.Repetition(every=1, ngram=8)] if language else []),
        dp.Dormancy(every=1, companions=True),
        dp.Dormancy(every=1, on="probe"),
        dp.Rank(every=1, layers="all"),
        dp.Gradients(every=1),
        dp.Gradients(every=3, updates=2, before_clipping=False),
        dp.Updates(every=1),
        dp.Saturation(every=1),
        dp.ContinualBackpropUtility(every=1),
        dp.Trainability(every=50, updates=5, learning_rate=1e-2),
        dp.Trainability(every=100, updates=2, targets="labels", fresh="recorded"),
        dp.Topology(every=1),
        dp.PruningPlasticity(
            every=50,
            train_step=lambda: train(model, optimizer, loss, 1),
            evaluate=score,
            updates=3,
            regenerate=[None, "restore", "zero-cost"],
        ),
    ]


@pytest.mark.parametrize("case", CASES)
def test_200_updates_with_every_probe_are_bit_identical(case: str, tmp_path: Path) -> None:
    make, loss = CASES[case]
    runs = []
    for watched in (False, True):
        seeded()
        model = make()
        keys = list(model.state_dict())
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        if watched:
            before = [set(vars(module)) for module in model.modules()]
            with dp.watch(
                model,
                optimizer,
                every_probe(model, optimizer, loss),
                log_dir=tmp_path,
                on_error="raise",
            ) as watch:
                train(model, optimizer, loss, 200)
            assert watch.step == 200
            for tag in ("dormancy/tau=0.1", "gradients/norm_before_clipping", "updates/distance"):
                assert len(watch.history.series(tag)[0]) == 200
            assert len(watch.history.series("topology/density")[0]) == 200
            if case.startswith("gpt"):
                assert len(watch.history.series("induction/top")[0]) == 6
                assert len(watch.history.series("induction/ablation/induction")[0]) == 6
                assert len(watch.history.series("repetition/loss/fresh")[0]) == 200
            assert len(watch.history.series("pruning_plasticity/before")[0]) == 4
            for tag in ("trainability/ratio", "trainability-2/ratio"):
                assert len(watch.history.series(tag)[0]) >= 3
            assert [set(vars(module)) for module in model.modules()] == before
            for module in model.modules():
                assert not module._forward_hooks and not module._forward_pre_hooks
            assert not optimizer._optimizer_step_post_hooks
            assert not optimizer._optimizer_step_pre_hooks
            assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
            assert list(model.state_dict()) == keys
        else:
            train(model, optimizer, loss, 200)
        runs.append(everything([model], [optimizer]))
    assert identical(*runs)


def test_the_comparison_itself_sees_one_changed_bit() -> None:
    seeded()
    model = mlp(2, 3, 1)
    first = everything([model], [])
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))
    assert not identical(first, everything([model], []))


def test_buffers_that_a_forward_pass_changes_even_in_evaluation_are_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(3, 4, 1)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x.detach()[0, :1]
            return self.net(x + 0 * torch.rand(()))

    runs = []
    for watched in (False, True):
        seeded()
        model = Counting()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        probes = [dp.Dormancy(every=1, on="probe"), dp.Rank(every=1)]
        watch = dp.watch(model, optimizer, probes, on_error="raise") if watched else None
        train(model, optimizer, lambda m: m(torch.randn(5, 3)).square().mean(), 10)
        if watch is not None:
            watch.close()
        runs.append(everything([model], [optimizer]))
    assert identical(*runs)
