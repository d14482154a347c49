"""Two ranks on halves of a batch give what one rank gives on the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining.stage import _PipelineStageBase
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import dynamo_probe as dp
from dynamo_probe.anatomy.shards import whole
from dynamo_probe.functional import dormancy_scores
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
        return [torch.randint(11, (8, 12), generator=generator) for _ in range(UPDATES)]
    return [torch.randn(16, 6, generator=generator) for _ in range(UPDATES)]


def instruments(kind: str) -> list[dp.Instrument]:
    treatment = [dp.ReDo(tau=0.0, every=3, updates=2)] if kind == "mlp" else []
    further = [
        dp.Gradients(every=2, before_clipping=False),
        dp.Updates(every=2),
        dp.Saturation(every=2),
        dp.ContinualBackpropUtility(every=2),
    ]
    language = [dp.Induction(every=2, period=5, dense=0), dp.Repetition(every=1, ngram=8)]
    return [
        dp.Dormancy(every=2, updates=2, companions=True),
        dp.Dormancy(every=3, on="probe"),
        dp.Rank(every=3),
        *further,
        *(language if kind == "gpt" else []),
        *treatment,
    ]


def run(
    kind: str,
    model: nn.Module,
    share: Callable[[Tensor], Tensor],
    log_dir: Path | None,
):
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[list[dict[Any, Any]], Path]:
    """Everything that two ranks are needed for, done once: results by rank, and the log folder."""
    folder = tmp_path_factory.mktemp("ranks")
    return on_two_ranks(all_on_a_rank, folder), folder


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["mlp", "gpt"])
def test_two_ranks_on_halves_equal_one_rank_on_the_whole(ranks, kind: str, wrapper: str) -> None:
    results, folder = ranks
    found = [result[kind, wrapper] for result in results]
    readings, recycled, weights = run(kind, make(kind), lambda batch: batch, None)
    assert kind == "gpt" or recycled
    for rank_readings, rank_recycled, rank_weights in found:
        assert rank_recycled == recycled
        assert rank_readings.keys() == readings.keys()
        for tag, (steps, values, samples) in readings.items():
            if tag.endswith("zero_fraction"):
                continue  # an exact zero of a sum is a rounding error of the sum of its halves
            assert rank_readings[tag][0] == steps, tag
            assert rank_readings[tag][2] == samples, tag
            assert torch.allclose(rank_readings[tag][1], values, rtol=1e-4, atol=1e-6), tag
        for ours, expected in zip(rank_weights, weights, strict=True):
            assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-6)
    # Recycling draws the same weights everywhere: the ranks agree to the bit.
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))
    assert list((folder / "0").glob("events*"))
    assert not (folder / "1").exists(), "only the first rank writes"


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


def test_one_sum_and_one_max_for_each_logged_update_and_none_on_others(ranks) -> None:
    assert [result["reductions"] for result in ranks[0]] == [[2, 0, 2, 0, 0, 2]] * 2


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


def all_on_a_rank(rank: int, folder: Path) -> dict[Any, Any]:
    """Do everything for which the ranks are started."""
    pairs = [(kind, wrapper) for kind in ("mlp", "gpt") for wrapper in ("ddp", "fsdp")]
    found: dict[Any, Any] = {pair: on_a_rank(rank, *pair, folder) for pair in pairs}
    return found | {"reductions": count_reductions(rank), "failing": on_a_failing_rank(rank)}


def test_a_probe_that_fails_on_one_rank_does_not_leave_the_other_waiting(ranks) -> None:
    first, second = (result["failing"] for result in ranks[0])
    assert first == ([], UPDATES)
    assert second == (["disabled"], UPDATES)


SCRIPT = """
import json, os, sys, time, torch, torch.distributed as dist
import dynamo_probe as dp
from tests.models import mlp

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(mlp(6, 15, 2))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
batch = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
with dp.watch(model, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
    model(batch.chunk(2)[dist.get_rank()]).square().mean().backward()
    optimizer.step()
scores = watch.history.latest("dormancy/scores/0").tolist()
with open(f"{sys.argv[1]}/rank{dist.get_rank()}", "w") as file:
    json.dump([watch.history.samples("dormancy/tau=0.1"), scores], file)
while not all(os.path.exists(f"{sys.argv[1]}/rank{rank}") for rank in range(2)):
    time.sleep(0.01)
os._exit(0)  # torch's own threads sometimes abort a process that takes its group down
"""


def test_the_same_under_torchrun(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    net = mlp(6, 15, 2)
    batch = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    expected = dormancy_scores(net, batch)["0"]
    for rank in range(RANKS):
        samples, scores = json.loads((tmp_path / f"rank{rank}").read_text())
        assert samples == 16
        assert torch.allclose(torch.tensor(scores), expected.float(), rtol=1e-5)


def goes_on_alone(rank: int, folder: str) -> None:
    """Two ranks that only our reductions connect; the second one dies in the middle."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    limit = timedelta(seconds=10)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=limit)
    model = make("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    group = dist.group.WORLD
    with dp.watch(model, optimizer, dp.Dormancy(every=1), process_group=group) as watch:
        for update, batch in enumerate(batches("mlp")):
            if rank == 1 and update == 3:
                os._exit(0)
            model(batch).square().mean().backward()
            optimizer.step()
    kinds = [e.kind for e in watch.events]
    torch.save((kinds, watch.step, len(watch.history.series("dormancy/dead")[0])), f"{folder}/0")
    os._exit(0)  # without a farewell to the rank that is gone


def test_a_rank_that_dies_does_not_take_the_others_training_with_it(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    ranks = [context.Process(target=goes_on_alone, args=(r, str(tmp_path))) for r in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(90)
        assert process.exitcode == 0
    kinds, step, readings = torch.load(tmp_path / "0")
    assert (kinds, step, readings) == (["disabled"], UPDATES, 3)


def test_tensor_parallelism_is_refused_at_attach(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = mlp(6, 8, 2)
        mesh = init_device_mesh("cpu", (1,))
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(ValueError, match="data parallelism alone"):
            dp.watch(model, optimizer, dp.Dormancy())
    finally:
        dist.destroy_process_group()


def test_a_stage_of_a_pipeline_is_refused_at_attach() -> None:
    class Stage(_PipelineStageBase):
        """What a user holds of a pipeline, without the ranks that it takes to make one."""

        def __init__(self) -> None: ...

    Stage.__abstractmethods__ = frozenset()
    net = mlp(6, 8, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(ValueError, match="without pipelining"):
        dp.watch(Stage(), optimizer, dp.Dormancy())  # type: ignore[arg-type]
