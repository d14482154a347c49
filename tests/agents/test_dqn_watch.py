"""The agent under watch: probes change nothing, ReDo acts, and both survive a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.dqn import Args, train

Quick = Callable[..., Args]
Equal = Callable[[Any, Any], bool]


RECYCLING = {"redo": True, "redo_every": 150, "redo_tau": 0.5}


def test_a_probed_run_equals_the_unprobed_one_bit_for_bit(quick: Quick, equal: Equal):
    args = quick(total_steps=400, num_envs=2, double_q=True)
    bare, probed = train(args), train(replace(args, probe=True, probe_every=1))
    assert equal(bare.network.state_dict(), probed.network.state_dict())
    assert bare.episode_returns.tolist() == probed.episode_returns.tolist()
    assert not bare.readings
    steps, dormant = probed.readings["dormancy/tau=0.1"]
    assert steps.tolist() == list(range(1, 301))
    assert ((dormant >= 0) & (dormant <= 1)).all()


def test_redo_recycles_on_its_schedule_and_changes_the_run(quick: Quick, equal: Equal):
    args = quick(total_steps=500)
    bare, recycled = train(args), train(replace(args, **RECYCLING))
    assert not equal(bare.network.state_dict(), recycled.network.state_dict())
    steps, units = recycled.readings["redo/recycled"]
    assert steps.tolist() == [150, 300]
    assert (units > 0).all()


def test_recycling_reaches_the_target_network(tmp_path: Path, quick: Quick):
    path = tmp_path / "checkpoint.pt"
    # The last update is the one that recycles, and the target was never copied.
    train(quick(total_steps=250, target_interval=10_000, checkpoint=path, **RECYCLING))
    states = torch.load(path, weights_only=True)["states"]
    network, target = states["network"]["fc2.weight"], states["target"]["fc2.weight"]
    cut_off = (network == 0).all(0)
    assert cut_off.any() and not cut_off.all()
    assert torch.equal((target == 0).all(0), cut_off)
    assert torch.equal(
        states["target"]["fc1.weight"][cut_off], states["network"]["fc1.weight"][cut_off]
    )


@pytest.mark.parametrize("steps", [240, 250, 334])
def test_a_watched_run_resumes_bit_for_bit(tmp_path: Path, quick: Quick, equal: Equal, steps: int):
    whole, half, rest = (tmp_path / name for name in ("whole.pt", "half.pt", "rest.pt"))
    args = quick(num_envs=2, probe=True, probe_every=7, **RECYCLING)
    uninterrupted = train(replace(args, total_steps=600, checkpoint=whole))
    train(replace(args, total_steps=steps, checkpoint=half))
    resumed = train(replace(args, total_steps=600, resume=half, checkpoint=rest))
    assert equal(uninterrupted.network.state_dict(), resumed.network.state_dict())
    for tag, (updates, values) in uninterrupted.readings.items():
        assert resumed.readings[tag][0].tolist() == updates.tolist()
        assert resumed.readings[tag][1].tolist() == values.tolist()
    assert equal(torch.load(whole, weights_only=True), torch.load(rest, weights_only=True))


def test_readings_and_charts_share_one_log(tmp_path: Path, quick: Quick):
    train(quick(total_steps=400, probe=True, log_dir=tmp_path, **RECYCLING))
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    tags = set(log.Tags()["scalars"])
    assert {
        "charts/episodic_return",
        "dormancy/tau=0.1",
        "dormancy/layer/fc1/tau=0.1",
        "redo/recycled",
    } <= tags
