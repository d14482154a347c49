"""Checkpoints: going on from one is the same as never having stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.dqn import Args, train

Quick = Callable[..., Args]
Equal = Callable[[Any, Any], bool]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, env_id: str, quick: Quick, equal: Equal
):
    whole, half, rest = (tmp_path / name for name in ("whole.pt", "half.pt", "rest.pt"))
    args = quick(env_id=env_id, num_envs=2, replay_capacity=300, replay_ratio=0.5)
    uninterrupted = train(replace(args, total_steps=700, checkpoint=whole))
    # 334 is in the middle of an episode, and the replay wraps after it.
    train(replace(args, total_steps=334, checkpoint=half))
    resumed = train(replace(args, total_steps=700, resume=half, checkpoint=rest))
    assert resumed.updates == uninterrupted.updates == 300
    assert resumed.episode_steps.tolist() == uninterrupted.episode_steps.tolist()
    assert resumed.episode_returns.tolist() == uninterrupted.episode_returns.tolist()
    assert equal(torch.load(whole, weights_only=True), torch.load(rest, weights_only=True))


def test_resuming_where_the_environment_has_no_state_begins_an_episode_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, quick: Quick
):
    path = tmp_path / "checkpoint.pt"
    args = quick(env_id="Corridor-v0", checkpoint=path)
    train(replace(args, total_steps=2))
    result = train(replace(args, total_steps=5, resume=path))
    assert "new episodes begin" in caplog.text
    assert result.episode_steps.tolist() == [5]
    assert result.episode_returns.tolist() == [6.0]


def test_resuming_with_another_setting_is_refused_and_names_it(tmp_path: Path, quick: Quick):
    path = tmp_path / "checkpoint.pt"
    train(quick(total_steps=10, checkpoint=path))
    with pytest.raises(ValueError, match=r"gamma=0\.99; set the same"):
        train(quick(total_steps=20, resume=path, gamma=0.5))
