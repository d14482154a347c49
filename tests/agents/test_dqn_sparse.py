"""A sparse agent: schedules counted in updates, a target network that follows, resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dynamo_probe as dp
from agents.dqn import Args, train

Quick = Callable[..., Args]
Equal = Callable[[Any, Any], bool]


def gradual(args: Args, target: nn.Module) -> list[dp.Instrument]:
    return [dp.GradualMagnitudePruning.for_agents(updates=400, mirror=target), dp.Topology(50)]


def static(args: Args, target: nn.Module) -> list[dp.Instrument]:
    return [dp.StaticSparse(0.1, mirror=target)]


def regrown(args: Args, target: nn.Module) -> list[dp.Instrument]:
    return [dp.GraNet(0.1, 0.5, end=200, every=20, mirror=target)]


@pytest.mark.parametrize("make", [gradual, static, regrown])
def test_agent_and_target_are_sparse_and_the_output_layer_is_not(
    tmp_path: Path, quick: Quick, make: Callable[..., list[dp.Instrument]]
) -> None:
    path = tmp_path / "checkpoint.pt"
    args = quick(total_steps=500, target_interval=10_000, checkpoint=path)
    result = train(args, make)
    states = torch.load(path, weights_only=True)["states"]
    density = 0.05 if make is gradual else 0.1
    sizes = [states["network"][f"fc{i}.weight"].numel() for i in (1, 2)]
    for network in ("network", "target"):
        there = [int((states[network][f"fc{i}.weight"] != 0).sum()) for i in (1, 2)]
        assert 0 < sum(there) <= round(density * sum(sizes))
    output = next(
        n for n in states["network"] if n.endswith("weight") and n[:3] not in ("fc1", "fc2")
    )
    assert torch.count_nonzero(states["network"][output]) == states["network"][output].numel()
    steps, found = result.readings["sparsity/density"]
    assert found[-1] == pytest.approx(round(density * sum(sizes)) / sum(sizes))
    assert steps[-1] <= 400  # updates, not environment steps


def test_a_sparse_agent_resumes_bit_for_bit(tmp_path: Path, quick: Quick, equal: Equal) -> None:
    whole, half, rest = (tmp_path / name for name in ("whole.pt", "half.pt", "rest.pt"))
    train(quick(total_steps=330, checkpoint=whole), regrown)
    train(quick(total_steps=231, checkpoint=half), regrown)
    train(quick(total_steps=330, checkpoint=rest, resume=half), regrown)
    first, second = (torch.load(path, weights_only=True)["states"] for path in (whole, rest))
    assert equal(first["network"], second["network"])
    assert equal(first["target"], second["target"])
    assert equal(first["optimizer"], second["optimizer"])
