"""Every way to run a model against every other: the same scores, and no observer effect.

Each cell trains three updates twice, watched and bare, and compares the weights bit for bit. Its
scores at the first update are compared with those of the plainest cell. `pytest -s` prints the
matrix; a cell that torch itself cannot run is listed with torch's own error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
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
from tests.models import GPT, mlp

MODELS = ("MLP", "CNN", "GPT")
WAYS = ("eager", "compiled")
PRECISIONS = ("fp32", "bf16")
MICRO_BATCHES = (1, 4)
CELLS = list(itertools.product(WAYS, PRECISIONS, MICRO_BATCHES, MODELS))
ROWS = 8 * RANKS
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
"""Of a score, relative to its layer's mean of 1; bfloat16 keeps 8 bits of an activation."""


class Backend:
    """Counts the graphs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]):
        self.graphs += 1
        return module.forward


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "MLP":
        return mlp(8, 16, 12, 3)
    if kind == "GPT":
        gpt = GPT(depth=1)
        gpt.drop.p = 0.0  # ranks and micro-batches would draw other masks
        return gpt
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(5 * 16, 12), nn.ReLU(), nn.Linear(12, 3)),
    )


def inputs(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "GPT":
        return torch.randint(11, (ROWS, 6), generator=generator)
    return torch.randn(ROWS, *((8,) if kind == "MLP" else (2, 8, 8)), generator=generator)


def wrapped(model: nn.Module, wrapper: str) -> nn.Module:
    if wrapper == "DDP-2":
        return DistributedDataParallel(model)
    if wrapper == "FSDP2-2":
        return fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    return model


def backward(called: Callable, part: Tensor, kind: str, precision: str, parts: int) -> None:
    """Run one part of a batch forward and backward."""
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        out = called(part).float()
    target = part if kind == "GPT" else part.flatten(1)[:, :3].sin()
    loss = (
        F.cross_entropy(out.flatten(0, 1), target.flatten())
        if kind == "GPT"
        else F.mse_loss(out, target)
    )
    (loss / parts).backward()


def run(cell: tuple[str, str, int, str], wrapper: str, share: Callable, watched: bool):
    """Train three updates: weights, scores at the first one, number of graphs."""
    way, precision, parts, kind = cell
    torch._dynamo.reset()
    backend = Backend()
    model = wrapped(make(kind), wrapper)
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    optimizer = torch.optim.SGD(inner.parameters(), 0.1)
    called = torch.compile(model, backend=backend) if way == "compiled" else model
    probe = dp.Dormancy(every=100)
    watch = dp.watch(called, optimizer, probe, on_error="raise") if watched else None
    for _ in range(3):
        optimizer.zero_grad()
        for number in range(parts):
            part = share(inputs(kind)).chunk(parts)[number]
            # As one accumulates: the gradients are averaged over ranks with the last part only.
            waits = isinstance(model, DistributedDataParallel) and number < parts - 1
            synced = model.no_sync() if waits else nullcontext()
            with synced:
                backward(called, part, kind, precision, parts)
        optimizer.step()
    weights = [whole(p.detach()).clone() for p in inner.parameters()]
    scores: dict[str, Tensor] = {}
    if watch is not None:
        watch.close()
        assert watch.history.samples("dormancy/tau=0.1") is not None, str(watch.doctor())
        scores = {
            tag: torch.tensor(watch.history.latest(tag))
            for tag in watch.history.tags()
            if "/scores/" in tag
        }
    return weights, scores, backend.graphs


def cells_of(rank: int, wrapper: str) -> list[dict[str, Any]]:
    """Run every cell of one wrapper on this rank."""
    torch.set_num_threads(1)
    found = []
    for cell in CELLS:
        alone = wrapper == "plain"

        def share(batch: Tensor, alone: bool = alone) -> Tensor:
            return batch if alone else batch.chunk(RANKS)[rank]

        try:
            bare, _, _ = run(cell, wrapper, share, watched=False)
        except Exception as error:  # what torch cannot run is no fault of the probe
            found.append({"torch": f"{type(error).__name__}: {error}"})
            continue
        weights, scores, graphs = run(cell, wrapper, share, watched=True)
        identical = all(torch.equal(a, b) for a, b in zip(bare, weights, strict=True))
        found.append({"identical": identical, "scores": scores, "graphs": graphs})
    return found


@pytest.fixture(scope="module")
def plainest() -> dict[str, dict[str, Tensor]]:
    """Scores of each model run eagerly in float32 on the whole batch."""
    return {
        kind: run(("eager", "fp32", 1, kind), "plain", lambda batch: batch, True)[1]
        for kind in MODELS
    }


def both_wrappers(rank: int) -> dict[str, list[dict[str, Any]]]:
    return {wrapper: cells_of(rank, wrapper) for wrapper in ("DDP-2", "FSDP2-2")}


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, list[dict[str, Any]]]]:
    """The cells of both wrappers, from two ranks that are started once."""
    return on_two_ranks(both_wrappers)


@pytest.mark.parametrize("wrapper", ["plain", "DDP-2", "FSDP2-2"])
def test_the_matrix(wrapper: str, plainest: dict[str, dict[str, Tensor]], request) -> None:
    if wrapper == "plain":
        ranks = [cells_of(0, wrapper)]
    else:
        ranks = [found[wrapper] for found in request.getfixturevalue("on_ranks")]
    wrong = []
    for number, cell in enumerate(CELLS):
        way, precision, _, kind = cell
        for result in (rank[number] for rank in ranks):
            if "torch" in result:
                print(wrapper, *cell, "torch cannot:", result["torch"].splitlines()[0])
                continue
            expected = plainest[kind]
            distance = max(
                float((result["scores"][tag] - expected[tag]).abs().max()) for tag in expected
            )
            print(wrapper, *cell, f"distance {distance:.1e}, {result['graphs']} graphs")
            if not result["identical"]:
                wrong.append((cell, "the probe changed the training"))
            if not distance <= TOLERANCE[precision]:
                wrong.append((cell, f"the scores are off by {distance}"))
            if wrapper == "plain" and way == "compiled" and result["graphs"] != 2:
                wrong.append((cell, f"{result['graphs']} graphs"))
    assert wrong == []
    # So that a matrix that torch cannot run at all does not pass for one that holds.
    assert sum("torch" not in result for result in ranks[0]) >= len(CELLS) // 2
