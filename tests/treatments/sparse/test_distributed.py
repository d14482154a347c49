"""Two ranks have the masks that one rank has on the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dynamo_probe as dp
from dynamo_probe.anatomy.shards import stored, whole
from tests.distributed import on_two_ranks
from tests.models import mlp

UPDATES = 26
METHODS: dict[str, Callable[[], dp.SparseTraining]] = {
    "granet": lambda: dp.GraNet(0.2, 0.6, end=20, every=5, accumulate=2),
    "set": lambda: dp.SET(0.3, every=5),
    "snfs": lambda: dp.SNFS(0.3, stop=20, every=5),
    "snip": lambda: dp.StaticSparse(0.3, "snip"),
    "2:4": lambda: dp.RigL(0.5, stop=20, every=5, granularity="2:4"),
}


def make() -> nn.Module:
    torch.manual_seed(0)
    return mlp(8, 15, 12, 2).double()


def run(
    model: nn.Module, method: str, share: Callable[[Tensor], Tensor], cut: bool
) -> dict[str, Any]:
    """Train; with a cut, save in the middle and go on in a fresh watch."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    data = torch.randn(
        UPDATES, 16, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    treatment, state, found = METHODS[method](), None, []
    for part in (data[:13], data[13:]) if cut else (data,):
        with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
            if state is not None:
                watch.load_state_dict(state)
            for batch in part:
                optimizer.zero_grad()
                x = share(batch)
                F.mse_loss(model(x), x[:, :2].sin()).backward()
                optimizer.step()
                names = treatment.connections.weights
                for name, weight in names.items():
                    off = ~treatment.connections.mask_of(name)
                    values = [weight.parameter, *optimizer.state[weight.parameter].values()]
                    for value in values:
                        if isinstance(value, Tensor) and value.shape == weight.shape:
                            assert not whole(value.detach())[off].count_nonzero()
            state = watch.state_dict()
            found = {name: treatment.connections.mask_of(name).clone() for name in names}
        last, treatment = treatment, METHODS[method]()
    bytes_of = {n: last._network.masks.factor(n).numel() for n in found}  # type: ignore
    local = {n: stored(w.parameter).numel() for n, w in last.connections.weights.items()}
    assert bytes_of == local  # a byte for each weight that is stored here
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    weights = {name: whole(p.detach()).clone() for name, p in inner.named_parameters()}
    return {"masks": found, "weights": weights, "regrown": last.regrown}


def on_a_rank(rank: int) -> dict[tuple[str, str], Any]:
    found = {}
    for method in METHODS:
        for wrapper in ("ddp", "fsdp", "fsdp root"):
            model = make()
            if wrapper == "ddp":
                model = DistributedDataParallel(model)
            else:
                mesh = init_device_mesh("cpu", (2,))
                for part in list(model.children()):
                    if isinstance(part, nn.Linear) and wrapper == "fsdp":
                        fully_shard(part, mesh=mesh)
                model = fully_shard(model, mesh=mesh)
            cut = method == "granet"
            found[method, wrapper] = run(model, method, lambda b: b.chunk(2)[rank], cut)
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[tuple[str, str], Any]]:
    return on_two_ranks(on_a_rank)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "fsdp root"])
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_on_halves_have_the_masks_of_one_rank_on_the_whole(
    method: str, wrapper: str, ranks: list[dict[tuple[str, str], Any]]
) -> None:
    alone = run(make(), method, lambda batch: batch, cut=False)
    first, second = (rank[method, wrapper] for rank in ranks)
    for name, mask in alone["masks"].items():
        assert torch.equal(first["masks"][name], second["masks"][name])
        assert torch.equal(first["masks"][name], mask)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-7, atol=1e-9)
    assert method == "snip" or alone["regrown"] > 0
