"""Treatments on two ranks with halves of a batch do what they do on one rank with the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dynamo_probe as dp
from dynamo_probe.anatomy.shards import whole
from tests.distributed import RANKS, on_two_ranks

MAKE: dict[str, Callable[[], dp.Treatment]] = {
    "continual backprop": lambda: dp.ContinualBackprop(0.1, maturity=3),
    "regrama": lambda: dp.ReGraMa(0.8, 4),
    "shrink and perturb": lambda: dp.ShrinkAndPerturb(0.7, every=4),
    "layer reset": lambda: dp.LayerReset(2, 4),
    "l2 init": lambda: dp.L2Init(0.1, 4),
    "normalize and project": lambda: dp.NormalizeAndProject(1, 4),
    "plasticity injection": lambda: dp.PlasticityInjection(4),
}
UPDATES = 7


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 12),
        nn.LayerNorm(12),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.ReLU(),
        dp.Injectable(nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 2))),
    )


def run(name: str, model: nn.Module, share: Callable[[Tensor], Tensor]) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(1)
    with dp.watch(model, optimizer, MAKE[name](), on_error="raise"):
        for _ in range(UPDATES):
            x = share(torch.randn(16, 4, generator=generator))
            optimizer.zero_grad()
            (model(x) - x[:, :2].sin()).square().mean().backward()
            optimizer.step()
    return [whole(p.detach()).clone() for p in model.parameters()]


def on_a_rank(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in MAKE:
        model = DistributedDataParallel(network())
        found[name] = run(name, model, lambda batch: batch.chunk(RANKS)[rank])
        sharded = fully_shard(network(), mesh=init_device_mesh("cpu", (RANKS,)))
        try:
            weights = run(name, sharded, lambda batch: batch.chunk(RANKS)[rank])
        except ValueError as refusal:
            weights = str(refusal)
        found[name, "sharded"] = weights
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return on_two_ranks(on_a_rank)


@pytest.mark.parametrize("name", MAKE)
def test_ranks_agree_to_the_bit_and_equal_one_rank_on_the_whole(ranks, name: str) -> None:
    first, second = (result[name] for result in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    expected = run(name, network(), lambda batch: batch)
    for ours, theirs in zip(first, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKE)
def test_sharded_parameters_are_treated_alike_or_refused_by_name(ranks, name: str) -> None:
    first, second = (result[name, "sharded"] for result in ranks)
    if isinstance(first, str):
        assert "sharded parameters" in first
        return
    assert name in ("continual backprop", "regrama", "l2 init")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    expected = run(name, network(), lambda batch: batch)
    for ours, theirs in zip(first, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
