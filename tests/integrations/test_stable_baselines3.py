"""The Stable-Baselines3 callback in real agents: whose passes count, resume, no trace."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional import normalised_scores
from tests.training import everything, identical

sb3 = pytest.importorskip("stable_baselines3")

from dynamo_probe.integrations.stable_baselines3 import DynamoProbeCallback  # noqa: E402

SMALL: dict[str, Any] = {"net_arch": [16, 12], "activation_fn": nn.ReLU}
REPLAY: dict[str, Any] = {"learning_starts": 20, "batch_size": 8, "buffer_size": 500}


def dqn(**more: Any) -> Any:
    settings = REPLAY | {"train_freq": 1, "target_update_interval": 30} | more
    return sb3.DQN("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs=dict(SMALL), **settings)


def ppo(**more: Any) -> Any:
    settings = {"n_steps": 64, "batch_size": 16, "n_epochs": 2} | more
    return sb3.PPO(
        "MlpPolicy", "CartPole-v1", seed=0, policy_kwargs=dict(SMALL), device="cpu", **settings
    )


def sac(**more: Any) -> Any:
    return sb3.SAC("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL), **(REPLAY | more))


def td3(**more: Any) -> Any:
    return sb3.TD3("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL), **(REPLAY | more))


def watching(model: str | None = None, **more: Any) -> DynamoProbeCallback:
    return DynamoProbeCallback(dp.Dormancy(every=1), model=model, on_error="raise", **more)


def seen(callback: DynamoProbeCallback) -> dp.Watch:
    assert callback.watch is not None
    return callback.watch


def layers(callback: DynamoProbeCallback) -> list[str]:
    start = "dormancy/scores/"
    return [t.removeprefix(start) for t in seen(callback).history.tags() if t.startswith(start)]


SEQUENTIAL = ["0", "2"]


@pytest.mark.parametrize(
    ("make", "network", "steps", "updates", "batch", "expected"),
    [
        (dqn, None, 60, 40, 8, [f"q_net.{i}" for i in SEQUENTIAL]),
        (
            ppo,
            None,
            128,
            2 * 2 * 4,
            16,
            [f"mlp_extractor.{net}.{i}" for net in ("policy_net", "value_net") for i in SEQUENTIAL],
        ),
        (sac, None, 60, 40, 8, [f"qf{net}.{i}" for net in (0, 1) for i in SEQUENTIAL]),
        (sac, "actor", 60, 40, 8, [f"latent_pi.{i}" for i in SEQUENTIAL]),
        (td3, None, 60, 40, 8, [f"qf{net}.{i}" for net in (0, 1) for i in SEQUENTIAL]),
        (td3, "actor", 60, 20, 8, [f"mu.{i}" for i in SEQUENTIAL]),
    ],
)
def test_each_update_counts_the_batch_of_the_networks_own_loss_and_nothing_else(
    make: Any, network: str | None, steps: int, updates: int, batch: int, expected: list[str]
) -> None:
    callback = watching(network)
    make().learn(steps, callback)
    numbers, samples = seen(callback).history.series("dormancy/samples")
    assert numbers.tolist() == list(range(1, updates + 1))
    assert (samples == batch).all()
    assert layers(callback) == expected


@pytest.mark.parametrize("make", [sac, td3])
def test_scores_of_a_critic_are_those_of_the_batch_of_its_own_loss(make: Any) -> None:
    agent, callback = make(), watching()
    calls: list[tuple[Tensor, nn.Module]] = []

    def note(critic: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and critic is agent.critic:
            calls.append((torch.cat(args, dim=1).detach(), copy.deepcopy(critic.qf0)))

    agent.critic.register_forward_pre_hook(note)
    agent.learn(53, callback)  # an actor of TD3 learns after update 32, and not after 33
    assert seen(callback).step == 33
    # SAC's actor asks the whole critic after each update, TD3's only a part of it.
    assert len(calls) == 33 * (2 if make is sac else 1)
    inputs, network = calls[-2] if make is sac else calls[-1]
    h = inputs.double()
    for index, layer in enumerate(network.double()):
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            expected = normalised_scores(h.detach().abs().mean(0))
            scores = seen(callback).history.latest(f"dormancy/scores/qf0.{index - 1}")
            assert torch.allclose(torch.tensor(scores), expected, rtol=1e-5)


def state_of(agent: Any) -> list[Any]:
    networks = [agent.policy]
    parts = [getattr(agent.policy, name, None) for name in ("actor", "critic")]
    optimizers = [part.optimizer for part in parts if part is not None] or [agent.policy.optimizer]
    return everything(networks, optimizers)


@pytest.mark.parametrize(("make", "steps"), [(dqn, 100), (ppo, 128), (sac, 60), (td3, 60)])
def test_learning_with_probes_is_bit_identical_to_learning_without(make: Any, steps: int) -> None:
    plain = make()
    plain.learn(steps)
    expected = state_of(plain)
    watched = make()
    callback = DynamoProbeCallback([dp.Dormancy(every=1), dp.Rank(every=7)], on_error="raise")
    watched.learn(steps, callback)
    assert seen(callback).step > 10
    assert identical(expected, state_of(watched))
    for module in watched.policy.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        optimizer = getattr(module, "optimizer", None)
        assert optimizer is None or not optimizer._optimizer_step_post_hooks


def test_an_agent_that_is_saved_and_loaded_goes_on_with_its_watch(tmp_path: Path) -> None:
    agent, first = dqn(), watching()
    agent.learn(60, first)
    agent.save(tmp_path / "agent")
    torch.save(first.state_dict(), tmp_path / "watch.pt")

    loaded = sb3.DQN.load(tmp_path / "agent", env=agent.get_env())
    second = watching()
    second.load_state_dict(torch.load(tmp_path / "watch.pt", weights_only=True))
    loaded.learn(60, second, reset_num_timesteps=False)
    steps, samples = seen(second).history.series("dormancy/samples")
    assert steps.tolist() == list(range(1, len(steps) + 1))
    assert len(steps) > 40 + 20
    assert (samples == 8).all()
    firsts = seen(second).history.series("dormancy/first/tau=0.1")[1]
    assert (firsts == seen(first).history.series("dormancy/first/tau=0.1")[1][0]).all()


def test_learning_in_portions_is_one_run_and_another_agent_begins_anew() -> None:
    agent, callback = dqn(), watching()
    agent.learn(60, callback)
    agent.learn(30, callback, reset_num_timesteps=False)
    assert seen(callback).history.series("dormancy/samples")[0].tolist() == list(range(1, 71))
    dqn().learn(40, callback)
    assert seen(callback).history.series("dormancy/samples")[0].tolist() == list(range(1, 21))


def test_the_log_is_beside_the_agents_own_log(tmp_path: Path) -> None:
    dqn(tensorboard_log=str(tmp_path)).learn(30, watching())
    assert list((tmp_path / "DQN_1" / "q_net").glob("events*"))


def test_units_of_a_q_network_are_recycled_while_its_target_is_left_to_the_agent() -> None:
    agent = dqn(target_update_interval=10_000, tau=1.0)
    before = copy.deepcopy(agent.q_net_target.state_dict())
    callback = DynamoProbeCallback([dp.ReDo(every=10, tau=0.5)], on_error="raise")
    agent.learn(60, callback)
    assert any(event.kind == "recycled" for event in seen(callback).events)
    for name, value in agent.q_net_target.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_loop_in_the_style_of_cleanrl_counts_training_batches_alone() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    torch.manual_seed(0)
    env = gymnasium.make("CartPole-v1")

    class QNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(
                nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    q_network, target_network = QNetwork(), QNetwork()
    optimizer = torch.optim.Adam(q_network.parameters(), 1e-3)
    target_network.load_state_dict(q_network.state_dict())
    rows: list[tuple[Any, ...]] = []
    with dp.watch(q_network, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        state, _ = env.reset(seed=0)
        for step in range(120):
            q_values = q_network(torch.tensor(state)[None])  # with gradients on, as there
            action = int(q_values.argmax())
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((state, action, np.float32(reward), following, np.float32(terminated)))
            state = env.reset()[0] if terminated or truncated else following
            if step < 20:
                continue
            chosen = [rows[i] for i in torch.randint(len(rows), (8,))]
            states, actions, rewards, followings, ends = (
                torch.tensor(np.array(column)) for column in zip(*chosen, strict=True)
            )
            with torch.no_grad():
                best = target_network(followings).max(1).values
            q = q_network(states).gather(1, actions[:, None]).squeeze(1)
            optimizer.zero_grad()
            F.mse_loss(q, rewards + 0.99 * best * (1 - ends)).backward()
            optimizer.step()
            if step % 25 == 0:
                target_network.load_state_dict(q_network.state_dict())
    env.close()
    assert watch.step == 100
    assert (watch.history.series("dormancy/samples")[1] == 8).all()
    scores = [tag for tag in watch.history.tags() if tag.startswith("dormancy/scores/")]
    assert scores == ["dormancy/scores/network.0", "dormancy/scores/network.2"]
