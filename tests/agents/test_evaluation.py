"""Evaluation: beside the training, without exploration, and shown."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from agents.dqn import Args, train
from agents.evaluation import evaluate

Quick = Callable[..., Args]
Equal = Callable[[Any, Any], bool]


def always(action: int) -> Callable[[Tensor], np.ndarray]:
    return lambda observations: np.full(len(observations), action)


def test_returns_are_those_of_whole_episodes():
    found = evaluate(always(1), "Corridor-v0", actions=["discrete"], episodes=4, seed=5)
    # 1 + 2 + 3 when terminated, 1 + ... + 5 when truncated, in turn.
    assert found.returns == (6.0, 15.0, 6.0, 15.0)
    assert found.frames == () and found.cut == 0


def test_an_endless_episode_is_cut_off_and_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agents.evaluation.MOST_STEPS", 2)
    found = evaluate(always(0), "Corridor-v0", actions=["discrete"], episodes=3, seed=5)
    assert found.returns == (3.0, 3.0, 3.0)
    assert found.cut == 3


def test_evaluation_leaves_the_training_bit_for_bit_as_it_was(quick: Quick, equal: Equal):
    args = quick(total_steps=400, probe=True, probe_every=20)
    plain = train(args)
    evaluated = train(replace(args, evaluate_every=100, evaluate_episodes=2))
    assert equal(plain.network.state_dict(), evaluated.network.state_dict())
    assert plain.episode_returns.tolist() == evaluated.episode_returns.tolist()
    for tag, (updates, values) in plain.readings.items():
        assert evaluated.readings[tag][0].tolist() == updates.tolist()
        assert evaluated.readings[tag][1].tolist() == values.tolist()
    assert list(evaluated.evaluations) == [100, 200, 300, 400]
    assert all(len(returns) == 2 for returns in evaluated.evaluations.values())


def test_evaluations_survive_a_resume(tmp_path: Path, quick: Quick):
    path = tmp_path / "checkpoint.pt"
    args = quick(evaluate_every=100, evaluate_episodes=1, checkpoint=path)
    whole = train(replace(args, total_steps=300, checkpoint=None))
    train(replace(args, total_steps=150))
    resumed = train(replace(args, total_steps=300, resume=path))
    assert resumed.evaluations == whole.evaluations


@pytest.mark.parametrize(
    ("env_id", "package"), [("CartPole-v1", "pygame"), ("MinAtar/Breakout-v1", "minatar")]
)
def test_the_first_episode_of_an_evaluation_is_shown_as_an_animation(
    tmp_path: Path, quick: Quick, env_id: str, package: str, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip(package)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    result = train(
        quick(
            env_id=env_id,
            total_steps=100,
            log_dir=tmp_path,
            evaluate_every=100,
            evaluate_episodes=1,
            video=True,
        )
    )
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    (event,) = log.Images("evaluation/episode")
    assert event.step == 100
    animation = Image.open(io.BytesIO(event.encoded_image_string))
    assert animation.n_frames > 1
    shown = 0.0
    for index in range(animation.n_frames):
        animation.seek(index)
        shown += animation.info["duration"]
    # CartPole's reward is 1 a step, and each of its frames is shown for 40 ms.
    if env_id == "CartPole-v1":
        assert shown == 40 * result.evaluations[100][0]
    assert log.Scalars("charts/evaluation_return")[0].value == pytest.approx(
        np.mean(result.evaluations[100])
    )


def test_a_video_without_an_evaluation_is_refused(quick: Quick):
    with pytest.raises(ValueError, match="give evaluate_every and log_dir"):
        quick(video=True)


@pytest.mark.parametrize("what", ["cut off", "not a checkpoint", "missing"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, quick: Quick, what: str):
    path = tmp_path / "checkpoint.pt"
    if what == "cut off":
        train(quick(total_steps=10, checkpoint=path))
        path.write_bytes(path.read_bytes()[:500])
    elif what == "not a checkpoint":
        torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises((ValueError, FileNotFoundError), match=str(path)):
        train(quick(total_steps=20, resume=path))
