"""Two ranks on halves of a batch give what one rank gives on the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dynamo_probe as dp
from dynamo_probe.anatomy.shards import whole
from tests.distributed import RANKS, on_two_ranks
from tests.models import GPT, mlp, plant_dead

UPDATES = 6


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "gpt":
        gpt = GPT(gated=True, depth=1)
        gpt.drop.p = 0.0  # the ranks draw other masks than one rank does
        return gpt
    net = mlp(6, 15, 12, 2)
    plant_dead(net[0], 3, 7)
    plant_dead(net[2], 5)
    return net


def batches(kind: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind == "gpt":
        return [torch.randint(11, (8, 6), generator=generator) for _ in range(UPDATES)]
    return [torch.randn(16, 6, generator=generator) for _ in range(UPDATES)]


def instruments(kind: str) -> list[dp.Instrument]:
    treatment = [dp.ReDo(tau=0.0, every=3, updates=2)] if kind == "mlp" else []
    return [
        dp.Dormancy(every=2, updates=2, companions=True),
        dp.Dormancy(every=3, on="probe"),
        dp.Rank(every=3),
        *treatment,
    ]


def run(kind: str, model: nn.Module, share: Callable[[Tensor], Tensor], log_dir: Path | None):
    """Train on this rank's share of each batch; SGD, so that the mean loss is all that counts."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    optimizer = torch.optim.SGD(inner.parameters(), 0.05, momentum=0.9)
    probe_batch = share(batches(kind)[0])
    with dp.watch(
        model,
        optimizer,
        instruments(kind),
        probe_batch=probe_batch,
        log_dir=log_dir,
        on_error="raise",
    ) as watch:
        for batch in batches(kind):
            optimizer.zero_grad()
            x = share(batch)
            out = model(x)
            target = x if kind == "gpt" else x[:, :2].sin()
            value = (
                F.cross_entropy(out.flatten(0, 1), target.flatten())
                if kind == "gpt"
                else F.mse_loss(out, target)
            )
            value.backward()
            optimizer.step()
    readings: dict[str, Any] = {}
    for tag in watch.history.tags():
        steps, values = watch.history.series(tag)
        readings[tag] = steps.tolist(), torch.tensor(values), watch.history.samples(tag)
    recycled = [
        (e.step, e.subject, e.detail["units"]) for e in watch.events if e.kind == "recycled"
    ]
    weights = [whole(p.detach()).clone() for p in inner.parameters()]
    return readings, recycled, weights


def sharded(model: nn.Module) -> nn.Module:
    """Shard every block by itself and the rest with the root; uneven on purpose."""
    mesh = init_device_mesh("cpu", (RANKS,))
    parts = model.blocks if isinstance(model, GPT) else [model[0]]
    for part in parts:
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def on_a_rank(rank: int, kind: str, wrapper: str, folder: Path) -> Any:
    model = make(kind)
    model = DistributedDataParallel(model) if wrapper == "ddp" else sharded(model)
    return run(kind, model, lambda batch: batch.chunk(RANKS)[rank], folder / str(rank))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["mlp", "gpt"])
def test_two_ranks_on_halves_equal_one_rank_on_the_whole(
    kind: str, wrapper: str, tmp_path: Path
) -> None:
    ranks = on_two_ranks(on_a_rank, kind, wrapper, tmp_path)
    readings, recycled, weights = run(kind, make(kind), lambda batch: batch, None)
    assert kind == "gpt" or recycled
    for rank_readings, rank_recycled, rank_weights in ranks:
        assert rank_recycled == recycled
        assert rank_readings.keys() == readings.keys()
        for tag, (steps, values, samples) in readings.items():
            assert rank_readings[tag][0] == steps, tag
            assert rank_readings[tag][2] == samples, tag
            assert torch.allclose(rank_readings[tag][1], values, rtol=1e-4, atol=1e-6), tag
        for ours, expected in zip(rank_weights, weights, strict=True):
            assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-6)
    # Recycling draws the same weights everywhere: the ranks agree to the bit.
    assert all(torch.equal(a, b) for a, b in zip(ranks[0][2], ranks[1][2], strict=True))
    assert list((tmp_path / "0").glob("events*"))
    assert not (tmp_path / "1").exists(), "only the first rank writes"


def count_reductions(rank: int) -> list[int]:
    calls: list[str] = []
    plain = torch.distributed.all_reduce
    model = DistributedDataParallel(make("mlp"))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    probes = [
        dp.Dormancy(every=3, companions=True),
        dp.Dormancy(every=3, tau=0.5),
        dp.ReDo(tau=0.0, every=3),
    ]

    def counted(tensor: Tensor, op: Any, group: Any = None) -> Any:
        calls.append(str(op))
        return plain(tensor, op, group=group)

    found = []
    with dp.watch(model, optimizer, probes, on_error="raise"):
        for batch in batches("mlp"):
            model(batch).square().mean().backward()
            torch.distributed.all_reduce = counted
            optimizer.step()
            torch.distributed.all_reduce = plain
            found.append(len(calls))
            calls.clear()
    return found


def test_one_sum_and_one_max_for_each_logged_update_and_none_on_others() -> None:
    assert on_two_ranks(count_reductions) == [[2, 0, 2, 0, 0, 2]] * 2


def on_a_failing_rank(rank: int) -> tuple[list[str], int]:
    class FailsOnOneRank(dp.Probe):
        name = "fails"

        def attach(self, site: dp.Site) -> None:
            from dynamo_probe.observation.statistics import MAGNITUDE

            self.source = site.observe(self, (MAGNITUDE,))

        def fire(self, site: dp.Site) -> None:
            self.source.read()
            if rank == 1 and site.step == 2:
                raise RuntimeError("only here")

    model = DistributedDataParallel(make("mlp"))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with dp.watch(model, optimizer, [FailsOnOneRank(1), dp.Dormancy(every=1)]) as watch:
        for batch in batches("mlp"):
            model(batch).square().mean().backward()
            optimizer.step()
    return [e.kind for e in watch.events], len(watch.history.series("dormancy/tau=0.1")[0])


def test_a_probe_that_fails_on_one_rank_does_not_leave_the_other_waiting() -> None:
    first, second = on_two_ranks(on_a_failing_rank)
    assert first == ([], UPDATES)
    assert second == (["disabled"], UPDATES)
