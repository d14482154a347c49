"""Half precision: what is accumulated, and which steps count."""

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional import normalised_scores
from tests.models import mlp


def made(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp(4, 64, 32, 1)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_activations_are_summed_in_single_precision(kind: torch.dtype) -> None:
    net = made()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    x = torch.randn(4096, 4)
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        with torch.autocast("cpu", kind):
            net(x).float().square().mean().backward()
        optimizer.step()
    assert seen[0].dtype == kind
    expected = normalised_scores(seen[0].double().mean(0))
    scores = torch.tensor(watch.history.latest("dormancy/scores/0"))
    # A sum of 4,096 terms in bfloat16 itself would be off by some per cent.
    assert torch.allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_skips_does_not_count(fused: bool) -> None:
    net = made()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        for update in range(5):
            optimizer.zero_grad()
            value = net(torch.randn(8, 4)).square().mean()
            if update == 2:
                value = value * float("inf")
            scaler.scale(value).backward()
            before = net[0].weight.detach().clone()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(before, net[0].weight) == (update == 2)
    assert watch.step == 4
    # The samples of the skipped step are those of no update: their gradients were cleared.
    assert watch.history.series("dormancy/samples")[1].tolist() == [8, 8, 8, 8]


def test_gradient_clipping_and_accumulation_give_the_statistics_of_the_one_big_batch() -> None:
    x = torch.randn(32, 4)
    found = []
    for parts in (1, 4):
        net = made()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
            for part in x.chunk(parts):
                (net(part).square().mean() / parts).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
        assert watch.history.samples("dormancy/tau=0.1") == 32
        found.append(torch.tensor(watch.history.latest("dormancy/scores/2")))
    assert torch.allclose(*found, rtol=1e-6)


def test_optimizers_that_step_inside_the_backward_pass() -> None:
    net = made()
    optimizers = {p: torch.optim.SGD([p], 0.01) for p in net.parameters()}
    for parameter, one in optimizers.items():

        def step(p: Tensor, one: torch.optim.SGD = one) -> None:
            one.step()
            one.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
    listed = list(optimizers.values())
    with dp.watch(net, listed, dp.Dormancy(every=1), on_error="raise") as watch:
        for _ in range(3):
            net(torch.randn(8, 4)).square().mean().backward()
    assert watch.step == 3
    assert watch.history.series("dormancy/samples")[1].tolist() == [8, 8, 8]
