"""SAC, twin critics and a tuned temperature (Haarnoja et al. 2018): `python -m agents.sac --help`.

Actions are a squashed Gaussian, scaled to the bounds of the environment's Box. A truncated episode
bootstraps from its last observation, a terminated one does not. The hidden units are ReLU.

The actor's loss also runs through the critics. Their weights get no gradient from it here, and a
probe of the critics counts the batch of their own loss only.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import dynamo_probe as dp
from agents.environments import Environments
from agents.networks import make_network
from agents.replay import Batch, Replay, updates_due
from agents.runs import Result, Run, flat_gradient, processor_settings, say_result
from agents.settings import RunArgs

Watched = Literal["actor", "critic", "both"]

# Of the logarithm of the standard deviation, as in the authors' code.
LOG_STD = (-20.0, 2.0)


@dataclass(frozen=True)
class Args(RunArgs):
    """Train a SAC agent; watch its networks and recycle their dormant units, if asked to."""

    env_id: str = "Pendulum-v1"
    """Gymnasium environment with bounded continuous actions."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    learning_rate: float = 1e-3
    """Learning rate of Adam for the critics and the temperature."""
    actor_learning_rate: float = 3e-4
    """Learning rate of Adam for the actor."""
    gamma: float = 0.99
    """Discount."""
    batch_size: int = 256
    """Transitions in an update."""
    replay_ratio: float = 1.0
    """Updates for each environment step."""
    replay_capacity: int = 1_000_000
    """Transitions in the replay; the oldest make room."""
    learning_starts: int = 1_000
    """Environment steps before the first update; their actions are random."""
    target_rate: float = 0.005
    """Share of the critics that goes into their targets at each update."""
    temperature: float = 1.0
    """Weight of the entropy at the beginning."""
    tune_temperature: bool = True
    """Tune it so that the entropy becomes `target_entropy`."""
    target_entropy: float | None = None
    """Of the policy; None is minus the number of action dimensions."""
    watched: Watched = "critic"
    """What probes and ReDo look at: the actor, both critics, or everything but the targets."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        self.check_at_least(1, "batch_size")
        self.check_at_least(0, "replay_ratio learning_starts temperature")
        if self.replay_capacity < self.num_envs:
            raise ValueError(f"replay_capacity is {self.replay_capacity}; give num_envs or more")
        if not 0 < self.target_rate <= 1:
            raise ValueError(f"target_rate is {self.target_rate}; give more than 0, at most 1")
        if self.temperature == 0 and self.tune_temperature:
            raise ValueError("a temperature of 0 cannot be tuned; set tune_temperature to False")


class Twins(nn.Module):
    """Two critics that see the same."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], seed: int) -> None:
        """Make two MLPs with weights of their own."""
        super().__init__()
        space = gym.spaces.Box(-np.inf, np.inf, (inputs,), np.float32)
        self.first = make_network(space, 1, hidden, seed)
        self.second = make_network(space, 1, hidden, seed + 1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return both values, `[2, batch]`."""
        inputs = torch.cat((observations, actions), 1)
        return torch.cat((self.first(inputs), self.second(inputs)), 1).T


class Temperature(nn.Module):
    """The weight of the entropy, kept as its logarithm."""

    def __init__(self, value: float) -> None:
        """Set it; 0 leaves the entropy out."""
        super().__init__()
        self.logarithm = nn.Parameter(torch.tensor(math.log(value) if value > 0 else -math.inf))

    def forward(self) -> Tensor:
        """Return it, without a gradient."""
        return self.logarithm.detach().exp()


def squashed(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions in -1..1 and their log-probabilities.

    a = tanh(u) with u = mean + std * noise, and log p(a) = log N(u) - sum log(1 - tanh(u)^2)
    (Haarnoja et al. 2018, appendix C), where log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))
    stays exact where tanh saturates.

    Args:
        outputs: mean and unbounded log std of the policy, `[batch, 2 * dimensions]`.
        noise: standard normal, `[batch, dimensions]`.

    Returns:
        `[batch, dimensions]` and `[batch]`.
    """
    mean, log_std = outputs.chunk(2, 1)
    log_std = log_std.clamp(*LOG_STD)
    before = torch.addcmul(mean, log_std.exp(), noise)
    squash = 2 * (math.log(2) - before - F.softplus(-2 * before))
    each = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - squash
    return before.tanh(), each.sum(1)


@torch.no_grad()
def td_targets(
    batch: Batch, outputs: Tensor, noise: Tensor, target: Twins, temperature: Tensor, gamma: float
) -> Tensor:
    """Return r + gamma (min of the target critics - temperature * log-probability), `[batch]`.

    Args:
        batch: the transitions; no value after the end of an episode.
        outputs: of the actor for the next observations.
        noise: for the next actions.
        target: the target critics.
        temperature: weight of the entropy.
        gamma: discount.
    """
    actions, log_probabilities = squashed(outputs, noise)
    values = target(batch.next_observations, actions).amin(0)
    soft = values - temperature * log_probabilities
    return torch.addcmul(batch.rewards, soft, batch.continues, value=gamma)


Instruments = Callable[["Args", nn.Module | None], list[dp.Instrument]]
"""Makes the instruments of an agent's watch from its arguments and what mirrors the network."""


def make_instruments(args: Args, mirror: nn.Module | None) -> list[dp.Instrument]:
    """Return what the watch carries; `mirror` follows what is recycled."""
    gathered = -(-256 // args.batch_size)
    instruments: list[dp.Instrument] = []
    if args.probe:
        instruments.append(dp.Dormancy(every=args.probe_every, updates=gathered))
    if args.redo:
        followers = [] if mirror is None else [mirror]
        instruments.append(
            dp.ReDo(args.redo_tau, args.redo_every, updates=gathered, mirror=followers)
        )
    return instruments


def train(args: Args, instruments: Instruments = make_instruments) -> Result:
    """Train an agent.

    Args:
        args: what shapes the training.
        instruments: makes what the watch carries, from the arguments and what mirrors the network.

    Raises:
        ValueError: when SAC has no use for the environment's spaces, or `args.resume` was made with
            other settings or by another agent.
        ModuleNotFoundError: when the environment is not installed; names the extra.
        EnvironmentFailed: when the environment raises, or gives a reward that is no number; the log
            and the last checkpoint are whole.
    """
    environments = Environments(
        args.env_id, args.num_envs, ["continuous"], clip_rewards=args.clip_rewards
    )
    with processor_settings(args.threads), closing(environments):
        space, box = environments.observation_space, cast(gym.spaces.Box, environments.action_space)
        if len(space.shape) != 1:
            raise ValueError(
                f"{args.env_id} has observations of the shape {space.shape}; SAC takes one row: "
                "wrap it, for instance in gymnasium.wrappers.FlattenObservation"
            )
        size, device = int(box.shape[0]), args.device
        low, span = box.low.astype(np.float64), (box.high - box.low).astype(np.float64)
        actor = make_network(space, 2 * size, args.hidden, 3 * args.seed).to(device)
        critic = Twins(space.shape[0] + size, args.hidden, 3 * args.seed + 1).to(device)
        target = copy.deepcopy(critic).requires_grad_(False)
        temperature = Temperature(args.temperature).to(device)
        # For the targets, which follow without a gradient.
        critic_weights = [parameter.detach() for parameter in critic.parameters()]
        target_weights = [parameter.detach() for parameter in target.parameters()]
        actor_gradient = flat_gradient(list(actor.parameters()))
        critic_gradient = flat_gradient(list(critic.parameters()))
        critic_optimizer = torch.optim.Adam(critic.parameters(), args.learning_rate, fused=True)
        actor_optimizer = torch.optim.Adam(actor.parameters(), args.actor_learning_rate, fused=True)
        temperature_optimizer = torch.optim.Adam(temperature.parameters(), args.learning_rate)
        entropy = -float(size) if args.target_entropy is None else args.target_entropy
        # Not the seed alone: the first environment draws from that stream.
        exploration = np.random.default_rng([args.seed, 1])
        replay_seed, noise_seed = exploration.integers(2**31, size=2).tolist()
        replay = Replay(args.replay_capacity, args.num_envs, space, replay_seed, box)
        generator = torch.Generator().manual_seed(noise_seed)

        def noise(rows: int) -> Tensor:
            return torch.randn(rows, size, generator=generator).to(device)

        def in_bounds(actions: np.ndarray) -> np.ndarray:
            return (low + (actions + 1.0) * 0.5 * span).astype(np.float32)

        def policy(observations: Tensor) -> np.ndarray:
            mean = actor(observations)[:, :size]
            return in_bounds(mean.tanh().cpu().numpy())

        def act(observations: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                outputs = actor(torch.from_numpy(observations).to(device))
                return squashed(outputs, noise(args.num_envs))[0].cpu().numpy()

        parts = {
            "actor": actor,
            "critic": critic,
            "target": target,
            "temperature": temperature,
            "actor_optimizer": actor_optimizer,
            "critic_optimizer": critic_optimizer,
            "temperature_optimizer": temperature_optimizer,
            "replay": replay,
            "exploration": exploration,
            "noise": generator,
        }
        everything = nn.ModuleDict({"actor": actor, "critic": critic})
        # What is recycled in the actor has no target: it mirrors itself.
        watched: dict[Watched, tuple[nn.Module, list[torch.optim.Adam], nn.Module | None]] = {
            "actor": (actor, [actor_optimizer], None),
            "critic": (critic, [critic_optimizer], target),
            "both": (
                everything,
                [critic_optimizer, actor_optimizer],
                nn.ModuleDict({"actor": actor, "critic": target}),
            ),
        }
        network, optimizers, mirror = watched[args.watched]
        with Run(
            "sac",
            args,
            environments,
            parts,
            watched=network,
            optimizer=optimizers,
            instruments=instruments(args, mirror),
            policy=policy,
            actions=["continuous"],
        ) as run:
            figures: dict[str, Tensor] = {}
            while run.step < args.total_steps:
                # Act.
                observations = environments.observations
                if run.step < args.learning_starts:
                    shape = (args.num_envs, size)
                    actions = exploration.uniform(-1.0, 1.0, shape).astype(np.float32)
                else:
                    actions = act(observations)
                step = run.act(in_bounds(actions))
                replay.add(observations, actions, step.rewards, step.last, ~step.terminated)

                # Learn.
                while run.updates < updates_due(run.step - args.learning_starts, args.replay_ratio):
                    run.begin_update()
                    batch = replay.sample(args.batch_size, device)
                    with torch.no_grad():
                        outputs = actor(batch.next_observations)
                    targets = td_targets(
                        batch, outputs, noise(args.batch_size), target, temperature(), args.gamma
                    )
                    values = critic(batch.observations, batch.actions)
                    critic_loss = 0.5 * (values - targets).square().mean(1).sum()
                    critic_gradient.zero_()
                    critic_loss.backward()
                    critic_optimizer.step()

                    actions_now, log_probabilities = squashed(
                        actor(batch.observations), noise(args.batch_size)
                    )
                    critic.requires_grad_(False)
                    judged = critic(batch.observations, actions_now).amin(0)
                    actor_loss = (temperature() * log_probabilities - judged).mean()
                    actor_gradient.zero_()
                    actor_loss.backward()
                    critic.requires_grad_(True)
                    actor_optimizer.step()

                    if args.tune_temperature:
                        surplus = log_probabilities.detach().mean() + entropy
                        # Of -log(temperature) * surplus (Haarnoja et al. 2018b, eq. 18).
                        temperature.logarithm.grad = -surplus
                        temperature_optimizer.step()
                    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                        target_weights, critic_weights, args.target_rate
                    )
                    figures = {
                        "losses/critic_loss": critic_loss,
                        "losses/actor_loss": actor_loss,
                        "losses/q_values": values,
                        "losses/entropy": -log_probabilities,
                        "losses/temperature": temperature(),
                    }

                # Show and keep.
                if run.due("log", args.log_every):
                    run.log({tag: figure.detach().mean() for tag, figure in figures.items()})
                run.keep()
            return run.result(everything)


def main() -> None:
    """Train from the command line."""
    logging.basicConfig(format="%(message)s")
    say_result(train(tyro.cli(Args)))


if __name__ == "__main__":
    main()
