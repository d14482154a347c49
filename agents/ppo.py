"""PPO (Schulman et al. 2017), discrete and continuous actions: `python -m agents.ppo --help`.

A truncated episode bootstraps from its last observation, not from the next episode's first one.
The hidden units are ReLU by default: tanh units saturate instead of going dormant, and their
dormancy scores hardly ever come near 0. Look at `dp.Saturation` where `activation` is tanh.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn

import dynamo_probe as dp
from agents.environments import Environments
from agents.networks import Kind, make_network
from agents.normalisation import RunningMoments
from agents.rollout import Rollout, advantages, values_after
from agents.runs import Result, Run, flat_gradient, processor_settings, say_result
from agents.settings import RunArgs

Watched = Literal["actor", "critic", "both"]
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Args(RunArgs):
    """Train a PPO agent; watch its networks and recycle their dormant units, if asked to."""

    num_envs: int = 4
    """Environments stepped together; a step of each counts."""
    total_steps: int = 50_000
    """Environment steps to train for; whole rollouts are made."""
    network: Kind = "auto"
    """What looks at the observations, in actor and critic alike; they share no weights."""
    width: float = 1.0
    """Factor of the channels of convolutions, and of the usual hidden widths."""
    hidden: tuple[int, ...] | None = (64, 64)
    """Widths of the linear layers; None is what is usual for the network."""
    activation: Literal["relu", "tanh"] = "relu"
    """Of the hidden units."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    anneal: bool = False
    """Let the learning rate fall to 0 in a straight line."""
    rollout: int = 128
    """Steps of each environment between two rounds of updates."""
    epochs: int = 10
    """How often a round goes through the rollout."""
    batch_size: int = 64
    """Transitions in an update; the last batch of an epoch may be smaller."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of the generalised advantage estimate (Schulman et al. 2016)."""
    clip: float = 0.2
    """How far the ratio of probabilities may move from 1 (eq. 7)."""
    clip_values: bool = False
    """Also clip how far values move, by as much."""
    value_coefficient: float = 0.5
    """Weight of the values' loss."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy."""
    max_grad_norm: float | None = 0.5
    """Largest norm of an update's gradient; None does not clip."""
    target_kl: float | None = None
    """End a round after an epoch whose last batch the policy has moved by so much (KL)."""
    normalise_advantages: bool = True
    """Bring each batch's advantages to mean 0 and deviation 1."""
    normalise_observations: bool = False
    """Bring observations to running mean 0 and deviation 1, clipped at 10; for vectors."""
    normalise_rewards: bool = False
    """Divide rewards by the running deviation of the discounted return, clipped at 10."""
    log_std: float = 0.0
    """Initial logarithm of the standard deviation of continuous actions, before scaling."""
    watched: Watched = "both"
    """What probes and ReDo look at: the actor, the critic, or both."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        self.check_at_least(1, "rollout epochs batch_size")
        self.check_at_least(0, "clip value_coefficient entropy_coefficient target_kl")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 to 1")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}; give more than 0, or None")
        if self.watched not in ("actor", "critic", "both"):
            raise ValueError(f"watched is {self.watched!r}; give 'actor', 'critic' or 'both'")
        if self.rollout * self.num_envs < 2:
            raise ValueError("a rollout of one transition has no advantages to compare")

    def shaping(self) -> dict[str, Any]:
        """Return the settings that shape the training; the length does where the rate falls."""
        return super().shaping() | ({"total_steps": self.total_steps} if self.anneal else {})


class Policy(nn.Module):
    """Distribution of actions: a categorical one, or a Gaussian with a deviation of its own."""

    def __init__(self, network: nn.Module, continuous: int, log_std: float) -> None:
        """Put a distribution behind a network.

        Args:
            network: gives logits, or means.
            continuous: dimensions of a continuous action; 0 for discrete ones.
            log_std: initial logarithm of the standard deviation.
        """
        super().__init__()
        self.network = network
        if continuous:
            self.log_std = nn.Parameter(torch.full((continuous,), log_std))
        self.continuous = continuous

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of actions and entropies of their distributions, `[batch]`."""
        outputs = self.network(observations)
        if self.continuous:
            entropy = (0.5 + 0.5 * _LOG_2PI + self.log_std).sum()
            return self._gaussian(outputs, actions), entropy.expand(len(outputs))
        log_probabilities = outputs.log_softmax(1)
        chosen = log_probabilities.gather(1, actions.unsqueeze(1)).squeeze(1)
        return chosen, -(log_probabilities.exp() * log_probabilities).sum(1)

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random actions and their log-probabilities."""
        outputs = self.network(observations)
        if self.continuous:
            noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
            actions = torch.addcmul(outputs, self.log_std.exp(), noise)
            return actions, self._gaussian(outputs, actions)
        log_probabilities = outputs.log_softmax(1)
        # The largest of independent exponential races: a draw from the categorical distribution.
        races = torch.empty(outputs.shape).exponential_(generator=generator).to(outputs.device)
        actions = (log_probabilities.exp() / races).argmax(1)
        return actions, log_probabilities.gather(1, actions.unsqueeze(1)).squeeze(1)

    def best(self, observations: Tensor) -> Tensor:
        """Return the most likely actions."""
        outputs = self.network(observations)
        return outputs if self.continuous else outputs.argmax(1)

    def _gaussian(self, means: Tensor, actions: Tensor) -> Tensor:
        scaled = (actions - means) * (-self.log_std).exp()
        return (-0.5 * (scaled.square() + _LOG_2PI) - self.log_std).sum(1)


def policy_loss(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return the clipped objective, negated: its mean over the batch (eq. 7)."""
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def value_loss(values: Tensor, before: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Return half the mean squared error; with `clip` the larger one of values moved at most so."""
    error = (values - returns).square()
    if clip is not None:
        moved = before + (values - before).clamp(-clip, clip)
        error = torch.maximum(error, (moved - returns).square())
    return 0.5 * error.mean()


Instruments = Callable[["Args"], list[dp.Instrument]]
"""Makes the instruments of an agent's watch from its arguments."""


def make_instruments(args: Args) -> list[dp.Instrument]:
    """Return what the watch carries."""
    gathered = -(-256 // args.batch_size)
    instruments: list[dp.Instrument] = []
    if args.probe:
        instruments.append(dp.Dormancy(every=args.probe_every, updates=gathered))
    if args.redo:
        instruments.append(dp.ReDo(args.redo_tau, args.redo_every, updates=gathered))
    return instruments


def make_agent(args: Args, environments: Environments) -> nn.ModuleDict:
    """Return actor and critic, Kaiming-uniform, with a policy that begins close to uniform."""
    space, actions = environments.observation_space, environments.action_space
    continuous = 0 if isinstance(actions, gym.spaces.Discrete) else int(actions.shape[0])  # type: ignore[index]
    outputs = continuous or int(cast(gym.spaces.Discrete, actions).n)
    networks = []
    for index, size in enumerate((outputs, 1)):
        network = make_network(
            space,
            size,
            args.hidden,
            2 * args.seed + index,
            kind=args.network,
            width=args.width,
            activation=args.activation,
        )
        networks.append(network)
    with torch.no_grad():
        networks[0].get_parameter("values.weight").mul_(0.01)
    return nn.ModuleDict(
        {"actor": Policy(networks[0], continuous, args.log_std), "critic": networks[1]}
    )


def train(args: Args, instruments: Instruments = make_instruments) -> Result:
    """Train an agent.

    Args:
        args: what shapes the training.
        instruments: makes what the watch carries, from the arguments.

    Raises:
        ValueError: when PPO has no use for the environment's spaces, or `args.resume` was made with
            other settings or by another agent.
        ModuleNotFoundError: when the environment is not installed; names the extra.
        EnvironmentFailed: when the environment raises, or gives a reward that is no number; the log
            and the last checkpoint are whole.
    """
    environments = Environments(
        args.env_id, args.num_envs, ["discrete", "continuous"], clip_rewards=args.clip_rewards
    )
    with processor_settings(args.threads), closing(environments):
        space, box = environments.observation_space, environments.action_space
        if args.normalise_observations and len(space.shape) != 1:
            raise ValueError("normalise_observations is for vectors; bytes are scaled anyway")
        device = args.device
        agent = make_agent(args, environments).to(device)
        actor, critic = cast(Policy, agent["actor"]), agent["critic"]
        gradient = flat_gradient(list(agent.parameters()))
        optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, eps=1e-5, fused=True)
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng([args.seed, 1]).integers(2**31))
        )
        seen = RunningMoments(space.shape)
        earned = RunningMoments(())
        discounted = np.zeros(args.num_envs)
        rollout = Rollout(args.rollout, environments)

        def shown(observations: np.ndarray) -> Tensor:
            if args.normalise_observations:
                observations = seen.normalised(observations)
            return torch.from_numpy(observations)

        def in_bounds(actions: np.ndarray) -> np.ndarray:
            if not isinstance(box, gym.spaces.Box):
                return actions
            # A mean of 0 is the middle, a deviation of 1 half the width.
            scaled = box.low + (actions.clip(-1.0, 1.0) + 1.0) * 0.5 * (box.high - box.low)
            return scaled.astype(np.float32)

        def policy(observations: Tensor) -> np.ndarray:
            seen_as = shown(observations.cpu().numpy()).to(device)
            return in_bounds(actor.best(seen_as).cpu().numpy())

        parts = {
            "agent": agent,
            "optimizer": optimizer,
            "random": generator,
            "seen": seen,
            "earned": earned,
        }
        with Run(
            "ppo",
            args,
            environments,
            parts,
            watched=agent if args.watched == "both" else agent[args.watched],
            optimizer=optimizer,
            instruments=instruments(args),
            policy=policy,
            actions=["discrete", "continuous"],
        ) as run:
            if "discounted" in run.resumed:
                discounted = np.array(run.resumed["discounted"])
            figures: dict[str, Tensor] = {}
            while run.step < args.total_steps:
                if args.anneal:
                    left = 1 - run.step / args.total_steps
                    optimizer.param_groups[0]["lr"] = args.learning_rate * left

                # Act.
                lasts = []
                for time in range(args.rollout):
                    if args.normalise_observations:
                        seen.update(environments.observations)
                    observations = shown(environments.observations)
                    with torch.no_grad():
                        actions, log_probabilities = actor.act(observations.to(device), generator)
                    step = run.act(in_bounds(actions.cpu().numpy()))
                    rewards = step.rewards
                    if args.normalise_rewards:
                        discounted = discounted * args.gamma + rewards
                        earned.update(discounted)
                        rewards = (rewards / earned.deviation).clip(-10, 10)
                        discounted[step.done] = 0.0
                    rollout.observations[time] = observations
                    rollout.actions[time] = actions
                    rollout.log_probabilities[time] = log_probabilities
                    rollout.rewards[time] = torch.from_numpy(rewards)
                    rollout.done[time] = torch.from_numpy(step.done)
                    rollout.next_values[time] = torch.from_numpy(~step.terminated)
                    last = step.last
                    if args.normalise_observations and (
                        step.done.any() or time + 1 == args.rollout
                    ):
                        last = seen.normalised(last)  # by what was seen until then
                    lasts.append((time, step.done, last))
                with torch.no_grad():
                    flat = rollout.observations.flatten(0, 1).to(device)
                    rollout.values = critic(flat).view(args.rollout, args.num_envs).cpu()
                    following = values_after(
                        rollout, lasts, lambda x: critic(torch.from_numpy(x).to(device))
                    )
                    rollout.next_values *= following
                    advantage = advantages(
                        rollout.rewards,
                        rollout.values,
                        rollout.next_values,
                        rollout.done,
                        args.gamma,
                        args.gae_lambda,
                    )

                # Learn.
                moved = torch.zeros(())
                for _ in range(args.epochs):
                    for batch in rollout.batches(args.batch_size, advantage, generator, device):
                        run.begin_update()
                        observed, taken, log_before, values_before, gained = batch
                        returns = gained + values_before
                        if args.normalise_advantages and len(gained) > 1:
                            gained = (gained - gained.mean()) / (gained.std() + 1e-8)
                        log_now, entropy = actor(observed, taken)
                        difference = log_now - log_before
                        ratio = difference.exp()
                        values = critic(observed).squeeze(1)
                        clip = args.clip if args.clip_values else None
                        losses = (
                            policy_loss(ratio, gained, args.clip),
                            value_loss(values, values_before, returns, clip),
                            entropy.mean(),
                        )
                        loss = (
                            losses[0]
                            + args.value_coefficient * losses[1]
                            - args.entropy_coefficient * losses[2]
                        )
                        gradient.zero_()
                        loss.backward()
                        if args.max_grad_norm is not None:
                            gradient.renorm_(2, 0, args.max_grad_norm)
                        optimizer.step()
                        # Schulman's estimate with low variance (r - 1) - log r.
                        moved = (ratio - 1 - difference).mean()
                        figures = dict(zip(("policy", "value", "entropy"), losses, strict=True))
                    if args.target_kl is not None and moved.item() > args.target_kl:
                        break

                # Show and keep.
                if run.due("log", args.log_every):
                    named = {f"losses/{name}": figure.detach() for name, figure in figures.items()}
                    run.log(named | {"losses/kl": moved.detach()})
                run.keep(discounted=discounted.tolist())
            return run.result(agent)


def main() -> None:
    """Train from the command line."""
    logging.basicConfig(format="%(message)s")
    say_result(train(tyro.cli(Args)))


if __name__ == "__main__":
    main()
