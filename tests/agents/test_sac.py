"""SAC: its formulas against torch.distributions and by hand, probes, resume, learning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform

import dynamo_probe as dp
from agents import sac
from agents.replay import Batch
from agents.sac import Args, Twins, Watched, squashed, td_targets, train
from dynamo_probe.functional.dormancy import normalised_scores

Equal = Callable[[Any, Any], bool]
QUICK = Args(
    log_dir=None, learning_starts=60, hidden=(16, 16), batch_size=8, total_steps=160, progress=False
)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 4), size=st.integers(1, 3), seed=st.integers(0, 999))
def test_log_probabilities_equal_those_of_torch_distributions(rows: int, size: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, 2 * size, generator=generator, dtype=torch.float64).clamp(-2, 2)
    noise = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    actions, found = squashed(outputs, noise)
    mean, log_std = outputs[:, :size], outputs[:, size:]
    before = mean + log_std.exp() * noise
    normal = Normal(mean, log_std.exp()).log_prob(before)
    expected = (normal - TanhTransform().log_abs_det_jacobian(before, before.tanh())).sum(1)
    assert torch.allclose(found, expected, rtol=1e-9)
    assert torch.allclose(actions, before.tanh())


def test_log_probabilities_stay_exact_where_tanh_saturates():
    # tanh(20) is 1 in float32; log(1 - tanh(u)^2) is 2 (log 2 - u) to 16 digits there.
    outputs = torch.tensor([[20.0, 0.0]])
    _, found = squashed(outputs, torch.zeros(1, 1))
    expected = -0.5 * np.log(2 * np.pi) - 2 * (np.log(2) - 20.0)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_deviation_is_kept_within_bounds():
    _, found = squashed(torch.tensor([[0.0, 9.0], [0.0, -99.0]]), torch.zeros(2, 1))
    peak = -0.5 * np.log(2 * np.pi)
    assert found.tolist() == pytest.approx([peak - 2.0, peak + 20.0])


def test_gradients_reach_mean_and_deviation_through_action_and_log_probability():
    outputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(3, 2, dtype=torch.float64)

    def both(outputs: Tensor) -> Tensor:
        actions, log_probabilities = squashed(outputs, noise)
        return actions.sum() + log_probabilities.sum()

    assert torch.autograd.gradcheck(both, (outputs,))


class FixedTwins(Twins):
    """Two critics with known values."""

    def __init__(self, values: list[list[float]]) -> None:
        nn.Module.__init__(self)
        self.given = torch.tensor(values)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.given


def test_td_targets_equal_a_hand_computation():
    batch = Batch(
        observations=torch.zeros(2, 3),
        actions=torch.zeros(2, 1),
        rewards=torch.tensor([1.0, 2.0]),
        next_observations=torch.zeros(2, 3),
        continues=torch.tensor([1.0, 0.0]),
    )
    outputs = torch.zeros(2, 2)  # mean 0, std 1
    found = td_targets(
        batch, outputs, torch.zeros(2, 1), FixedTwins([[5.0, 9.0], [3.0, 9.0]]),
        torch.tensor(0.5), gamma=0.9,
    )  # fmt: skip
    # At u = 0 the log-probability is that of the Gaussian's peak.
    log_probability = -0.5 * np.log(2 * np.pi)
    assert found.tolist() == pytest.approx([1 + 0.9 * (3 - 0.5 * log_probability), 2.0])


def test_critics_see_observation_and_action_and_do_not_share_weights():
    twins = Twins(4, (8,), seed=1)
    values = twins(torch.randn(5, 3), torch.randn(5, 1))
    assert values.shape == (2, 5)
    assert not torch.equal(values[0], values[1])
    inputs = torch.cat((torch.ones(2, 3), torch.zeros(2, 1)), 1)
    assert torch.equal(twins(inputs[:, :3], inputs[:, 3:])[0], twins.first(inputs).squeeze(1))


class Lopsided(gym.Env):
    """Bounds that are not symmetric; the reward is the action, and it is checked."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(
        np.array([-1.0, 2.0], np.float32), np.array([3.0, 2.5], np.float32)
    )
    taken: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.taken.append(action)
        return self.observation_space.sample(), float(action[0]), False, False, {}


def test_actions_fill_the_bounds_of_the_space_and_never_leave_them():
    gym.register("Lopsided-v0", lambda **_: Lopsided(), max_episode_steps=20)
    Lopsided.taken.clear()
    try:
        train(replace(QUICK, env_id="Lopsided-v0", total_steps=120, learning_starts=100))
    finally:
        del gym.registry["Lopsided-v0"]
    taken = np.stack(Lopsided.taken)
    assert (taken >= Lopsided.action_space.low).all() and (
        taken <= Lopsided.action_space.high
    ).all()
    first = taken[:100]  # uniform
    assert first[:, 0].min() < -0.8 and first[:, 0].max() > 2.8
    assert first[:, 1].min() < 2.03 and first[:, 1].max() > 2.47


def test_targets_follow_as_a_running_average_and_never_ask_for_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "checkpoint.pt"
    targets: list[nn.Module] = []

    def noting(*args: Any, **keywords: Any) -> Tensor:
        targets.append(args[3])
        return td_targets(*args, **keywords)

    monkeypatch.setattr(sac, "td_targets", noting)
    train(replace(QUICK, total_steps=60, checkpoint=path))
    before = torch.load(path, weights_only=True)["states"]["target"]
    train(replace(QUICK, total_steps=61, checkpoint=path, target_rate=0.25))
    after = torch.load(path, weights_only=True)["states"]
    for name, old in before.items():
        expected = 0.75 * old.double() + 0.25 * after["critic"][name].double()
        assert torch.allclose(after["target"][name].double(), expected, atol=1e-7)
    assert not any(p.requires_grad or p.grad_fn for p in targets[-1].parameters())


def test_temperature_rises_where_entropy_is_below_its_target_and_falls_above(tmp_path: Path):
    for target, rises in ((50.0, True), (-50.0, False)):
        path = tmp_path / "checkpoint.pt"
        train(replace(QUICK, target_entropy=target, checkpoint=path))
        logarithm = torch.load(path, weights_only=True)["states"]["temperature"]["logarithm"]
        assert bool(logarithm > 0) is rises


@pytest.mark.parametrize("watched", ["critic", "both"])
def test_scores_of_the_critics_are_those_of_the_batch_of_their_own_loss(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
):
    calls: list[tuple[Tensor, Twins]] = []
    original = Twins.forward

    def noting(twins: Twins, observations: Tensor, actions: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not actions.requires_grad:
            inputs = torch.cat((observations, actions), 1).detach()
            if next(twins.parameters()).requires_grad:
                calls.append((inputs, copy.deepcopy(twins)))
        return original(twins, observations, actions)

    monkeypatch.setattr(Twins, "forward", noting)
    dormancy = dp.Dormancy(every=1)
    found: dict[str, Any] = {}

    class Keep(dp.Probe):
        name = "keep"

        def fire(self, site: dp.Site) -> None:
            found.update({r.tag: r.value for r in site.readings if "scores" in r.tag})
            found["samples"] = [r.value for r in site.readings if r.tag == "dormancy/samples"]

    train(replace(QUICK, watched=watched), lambda args, mirror: [dormancy, Keep(1)])
    inputs, twins = calls[-1]
    prefix = "critic." if watched == "both" else ""
    for name, network in (("first", twins.first), ("second", twins.second)):
        h = inputs.double()
        for part, module in network.double().named_children():
            h = module(h)
            if isinstance(module, nn.ReLU):
                layer = part.replace("relu", "fc")
                expected = normalised_scores(h.detach().abs().mean(0))
                scores = found[f"dormancy/scores/{prefix}{name}.{layer}"]
                assert torch.allclose(torch.tensor(scores), expected, rtol=1e-5), name
    if watched == "both":
        assert {"dormancy/scores/actor.fc1", "dormancy/scores/actor.fc2"} <= set(found)


@pytest.mark.parametrize("watched", ["actor", "critic", "both"])
def test_a_probed_run_equals_the_unprobed_one_bit_for_bit(
    tmp_path: Path, watched: Watched, equal: Equal
):
    args = replace(QUICK, num_envs=2)
    plain = train(args)
    probed = train(replace(args, probe=True, probe_every=3, watched=watched))
    assert equal(plain.network.state_dict(), probed.network.state_dict())
    assert plain.episode_returns.tolist() == probed.episode_returns.tolist()
    assert len(probed.readings["dormancy/tau=0.1"][1]) > 10


@pytest.mark.parametrize("watched", ["actor", "critic", "both"])
def test_recycling_reaches_the_targets_of_both_critics(tmp_path: Path, watched: Watched):
    path = tmp_path / "checkpoint.pt"
    # The last update is the one that recycles, and the targets hardly follow.
    args = replace(
        QUICK, total_steps=160, redo=True, redo_every=100, redo_tau=0.6, watched=watched,
        target_rate=1e-9, checkpoint=path,
    )  # fmt: skip
    train(args)
    states = torch.load(path, weights_only=True)["states"]
    for network in ("first", "second"):
        weight = states["critic"][f"{network}.fc2.weight"]
        cut_off = (weight == 0).all(0)
        assert bool(cut_off.any()) is (watched != "actor")
        target = states["target"][f"{network}.fc2.weight"]
        assert torch.equal((target == 0).all(0), cut_off)
        fresh = states["critic"][f"{network}.fc1.weight"][cut_off]
        # One update of the average follows, of a share that float32 does not see.
        assert torch.allclose(states["target"][f"{network}.fc1.weight"][cut_off], fresh)
    cut_off = (states["actor"]["fc2.weight"] == 0).all(0)
    assert bool(cut_off.any()) is (watched != "critic")


@pytest.mark.filterwarnings("ignore:.*settotalmass")
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, env_id: str, equal: Equal
):
    if env_id == "Hopper-v5":
        pytest.importorskip("mujoco")
    whole, half, rest = (tmp_path / name for name in ("whole.pt", "half.pt", "rest.pt"))
    args = replace(
        QUICK, env_id=env_id, num_envs=2, redo=True, redo_every=20, redo_tau=0.3, watched="both",
        probe=True, probe_every=7, replay_capacity=150,
    )  # fmt: skip
    uninterrupted = train(replace(args, total_steps=300, checkpoint=whole))
    train(replace(args, total_steps=134, checkpoint=half))
    resumed = train(replace(args, total_steps=300, resume=half, checkpoint=rest))
    assert equal(torch.load(whole, weights_only=True), torch.load(rest, weights_only=True))
    assert resumed.episode_returns.tolist() == uninterrupted.episode_returns.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "CartPole-v1"}, "a bounded Box; use dqn, c51 or ppo"),
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"target_rate": 0.0}, "more than 0, at most 1"),
        ({"temperature": 0.0}, "cannot be tuned"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train(replace(QUICK, **changes))


def test_log_has_the_fixed_tags_and_the_command_line_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    line = f"sac --total-steps 300 --learning-starts 200 --hidden 8 --log-dir {tmp_path}"
    monkeypatch.setattr("sys.argv", [*line.split(), "--evaluate-every", "300"])
    sac.main()
    assert "100 updates" in capsys.readouterr().out
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    assert set(log.Tags()["scalars"]) == {
        "charts/episodic_return",
        "charts/evaluation_return",
        "charts/updates_per_second",
        "losses/actor_loss",
        "losses/critic_loss",
        "losses/entropy",
        "losses/q_values",
        "losses/temperature",
    }


def test_learns_pendulum():
    # Random actions give about -1,200.
    args = Args(
        log_dir=None, total_steps=3_600, hidden=(64, 64), batch_size=64, learning_starts=600,
        actor_learning_rate=1e-3, evaluate_every=3_600, evaluate_episodes=10, progress=False,
    )  # fmt: skip
    assert np.mean(train(args).evaluations[3_600]) > -600
