"""DQN: its arithmetic, what enters the replay, the clock, resuming, and that it learns."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from agents import dqn
from agents.dqn import Args, epsilon, td_targets, train
from agents.networks import make_network
from agents.replay import Batch, updates_due
from agents.runs import flat_gradient

Quick = Callable[..., Args]
Equal = Callable[[Any, Any], bool]


def table(rows: list[list[float]]) -> nn.Module:
    """A network whose values at the n-th one-hot observation are the n-th row."""
    network = nn.Linear(len(rows), len(rows[0]), bias=False)
    network.weight.data = torch.tensor(rows).T.contiguous()
    return network


@pytest.mark.parametrize(
    ("double_q", "expected"),
    [
        # The target network's own best: 1 + .9 * 10, -1 + .9 * 6; nothing follows a termination.
        (False, [10.0, 4.4, 0.5]),
        # Its value of the network's best action: 1 + .9 * 4, -1 + .9 * 2.
        (True, [4.6, 0.8, 0.5]),
    ],
)
def test_td_targets_equal_a_hand_computation(double_q: bool, expected: list[float]):
    network = table([[1.0, 2.0], [5.0, 3.0], [0.0, -1.0]])
    target = table([[10.0, 4.0], [2.0, 6.0], [-3.0, -2.0]])
    batch = Batch(
        observations=torch.zeros(3, 3),
        actions=torch.zeros(3, dtype=torch.int64),
        rewards=torch.tensor([1.0, -1.0, 0.5]),
        next_observations=torch.eye(3),
        continues=torch.tensor([1.0, 1.0, 0.0]),
    )
    targets = td_targets(batch, network, target, gamma=0.9, double_q=double_q)
    assert targets.tolist() == pytest.approx(expected, abs=1e-6)
    assert not targets.requires_grad


def test_epsilon_is_one_until_learning_starts_and_then_falls_in_a_line():
    args = Args(learning_starts=1000, epsilon_start=0.9, epsilon_end=0.1, epsilon_steps=400)
    steps = [0, 999, 1000, 1100, 1300, 1400, 9999]
    expected = [1.0, 1.0, 0.9, 0.7, 0.3, 0.1, 0.1]
    assert [epsilon(step, args) for step in steps] == pytest.approx(expected)
    assert epsilon(1000, replace(args, epsilon_steps=0)) == pytest.approx(0.9)
    assert epsilon(1001, replace(args, epsilon_steps=0)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("replay_ratio", "num_envs", "expected"),
    [(0.25, 1, 50), (1, 1, 200), (4, 1, 800), (0.25, 8, 50), (4, 8, 800), (0, 1, 0)],
)
def test_updates_are_replay_ratio_times_steps_since_learning_started(
    replay_ratio: float, num_envs: int, expected: int, quick: Quick
):
    args = quick(replay_ratio=replay_ratio, num_envs=num_envs, total_steps=296)
    assert train(replace(args, learning_starts=96)).updates == expected


@example(steps=100, percent=29)
@given(steps=st.integers(-1000, 10**6), percent=st.integers(1, 1000))
def test_updates_due_equal_integer_arithmetic(steps: int, percent: int):
    assert updates_due(steps, percent / 100) == max(steps, 0) * percent // 100


def test_target_network_is_a_copy_from_the_last_multiple_of_its_interval(
    tmp_path: Path, quick: Quick, equal: Equal
):
    path = tmp_path / "checkpoint.pt"
    args = quick(target_interval=150, checkpoint=path, checkpoint_every=50)
    networks, targets = {}, {}
    for steps in (100, 150, 250, 300, 350):
        train(replace(args, total_steps=steps))
        states = torch.load(path, weights_only=True)["states"]
        networks[steps], targets[steps] = states["network"], states["target"]
    assert equal(targets[150], networks[150])
    assert equal(targets[250], networks[150])
    assert not equal(targets[250], networks[250])
    assert equal(targets[350], networks[300])


def test_target_network_may_follow_as_a_running_average(tmp_path: Path, quick: Quick):
    path = tmp_path / "checkpoint.pt"
    args = quick(target_rate=0.25, target_interval=1, checkpoint=path)
    train(replace(args, total_steps=100))
    before = torch.load(path, weights_only=True)["states"]["target"]
    train(replace(args, total_steps=101))  # one update
    states = torch.load(path, weights_only=True)["states"]
    for name, old in before.items():
        expected = 0.75 * old.double() + 0.25 * states["network"][name].double()
        assert torch.allclose(states["target"][name].double(), expected, atol=1e-7)
    assert not torch.equal(states["target"]["fc1.weight"], before["fc1.weight"])


def test_the_learning_rate_falls_in_a_line_where_asked(tmp_path: Path, quick: Quick):
    path = tmp_path / "checkpoint.pt"
    args = replace(quick(), anneal=True, total_steps=400, learning_starts=100, replay_ratio=0.1)
    train(replace(args, checkpoint=path))
    groups = torch.load(path, weights_only=True)["states"]["optimizer"]["param_groups"]
    assert groups[0]["lr"] == 0.0  # the last update comes with the last step
    train(replace(args, learning_starts=105, checkpoint=path))
    groups = torch.load(path, weights_only=True)["states"]["optimizer"]["param_groups"]
    assert groups[0]["lr"] == pytest.approx(args.learning_rate * 5 / 400)
    with pytest.raises(ValueError, match="total_steps=400"):
        train(replace(args, learning_starts=105, resume=path, total_steps=800))


def test_clipping_the_flat_gradient_equals_clip_grad_norm():
    torch.manual_seed(0)
    for scale in (0.01, 100.0):
        network, twin = nn.Linear(5, 3), nn.Linear(5, 3)
        twin.load_state_dict(network.state_dict())
        row = flat_gradient(list(network.parameters()))
        inputs = scale * torch.randn(7, 5)
        for model in (network, twin):
            model(inputs).square().mean().backward()
        row.renorm_(2, 0, 1.0)
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        for left, right in zip(network.parameters(), twin.parameters(), strict=True):
            assert left.grad is not None and right.grad is not None
            torch.testing.assert_close(left.grad, right.grad)


def test_weights_are_kaiming_uniform_and_biases_zero():
    network = make_network(gym.spaces.Box(-1, 1, (30,)), 4, (400, 300), seed=0)
    linears = [module for module in network if isinstance(module, nn.Linear)]
    assert [(linear.in_features, linear.out_features) for linear in linears] == [
        (30, 400),
        (400, 300),
        (300, 4),
    ]
    for linear in linears:
        bound = (6 / linear.in_features) ** 0.5
        assert linear.weight.abs().max() <= bound
        # Uniform on -bound..bound: the mean size is half the bound.
        assert linear.weight.abs().mean().item() == pytest.approx(bound / 2, rel=0.1)
        assert not linear.bias.any()


@pytest.mark.parametrize("shape", [(10, 10, 4), (10, 10, 10), (4, 12, 12)])
def test_images_meet_a_convolution_over_their_rows_and_columns(shape: tuple[int, ...]):
    network = make_network(gym.spaces.Box(0, 255, shape, np.uint8), 3, None, seed=0)
    convolution = next(module for module in network if isinstance(module, nn.Conv2d))
    assert convolution.in_channels == min(shape)
    image = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    channels_first = image if shape[0] == 4 else image.transpose(0, 3, 1, 2)
    bytes_as_floats = torch.from_numpy(channels_first.astype(np.float32) / 255)
    expected = network[2:](convolution(bytes_as_floats))
    torch.testing.assert_close(network(torch.from_numpy(image)), expected)


def test_a_seed_gives_the_same_run_bit_for_bit_and_another_seed_another(quick: Quick, equal: Equal):
    args = quick(total_steps=400, double_q=True, num_envs=2)
    first, again, other = (train(replace(args, seed=seed)) for seed in (5, 5, 6))
    assert equal(first.network.state_dict(), again.network.state_dict())
    assert first.episode_returns.tolist() == again.episode_returns.tolist()
    assert not equal(first.network.state_dict(), other.network.state_dict())


def test_training_leaves_global_states_as_they_were(quick: Quick, equal: Equal):
    numbers = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    threads = torch.get_num_threads()
    train(quick(total_steps=105, threads=threads + 1))
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert str(np.random.get_state(legacy=False)) == str(numbers[1])
    assert random.getstate() == numbers[2]
    assert torch.get_num_threads() == threads
    assert sys.float_info.min * 0.5 > 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "Pendulum-v1"}, "this agent takes a Discrete; use sac or ppo"),
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"replay_ratio": -1.0}, "replay_ratio is -1.0; give 0 or more"),
        ({"num_envs": 8, "replay_capacity": 4}, "give num_envs or more"),
        ({"checkpoint_every": 10}, "needs a file"),
        ({"target_rate": 0.0}, "more than 0, at most 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(
    changes: dict[str, Any], message: str, quick: Quick
):
    with pytest.raises(ValueError, match=message):
        train(quick(**changes))


def test_log_has_the_fixed_tags_and_the_returns(tmp_path: Path, quick: Quick):
    args = quick(total_steps=300, log_dir=tmp_path / "{env_id}-{seed}", seed=4)
    result = train(args)
    assert result.log_dir == tmp_path / "CartPole-v1-4"
    log = EventAccumulator(str(result.log_dir))
    log.Reload()
    assert set(log.Tags()["scalars"]) == {
        "charts/episodic_return",
        "charts/epsilon",
        "charts/updates_per_second",
        "losses/q_values",
        "losses/td_loss",
    }
    returns = log.Scalars("charts/episodic_return")
    assert [event.value for event in returns] == result.episode_returns.tolist()
    assert [event.step for event in returns] == result.episode_steps.tolist()
    assert [event.step for event in log.Scalars("losses/td_loss")] == [200, 300]


def test_command_line_trains_and_is_quiet_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    arguments = "dqn --total-steps 300 --learning-starts 100 --hidden 16 --log-dir None"
    monkeypatch.setattr(sys, "argv", arguments.split())
    dqn.main()
    output, progress = capsys.readouterr()
    assert "200 updates" in output
    assert not progress


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_learns_cartpole(seed: int):
    result = train(Args(log_dir=None, seed=seed, replay_ratio=0.25, learning_rate=3e-3))
    # Random actions give 22.
    assert result.episode_returns[-20:].mean() > 60
