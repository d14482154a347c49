"""DQN (Mnih et al. 2015): `python -m agents.dqn --help`.

Environments run in Gymnasium's SAME_STEP autoreset mode (`agents/environments.py`): every step is a
transition. A truncated episode bootstraps from its last observation, a terminated one does not.

While it trains, `train` changes two settings of the process and puts them back at the end: torch's
threads, and denormal floats count as zero on the processor.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import dynamo_probe as dp
from agents.environments import Environments
from agents.networks import Kind, make_network
from agents.replay import Batch, Replay, updates_due
from agents.runs import Result, Run, flat_gradient, processor_settings, say_result
from agents.settings import RunArgs


@dataclass(frozen=True)
class Args(RunArgs):
    """Train a DQN agent; watch its network and recycle its dormant units, if asked to."""

    network: Kind = "auto"
    """What looks at the observations."""
    width: float = 1.0
    """Factor of the channels of convolutions, and of the usual hidden widths."""
    hidden: tuple[int, ...] | None = None
    """Widths of the linear layers; None is 128 128, and 128 behind the convolution for images."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    anneal: bool = False
    """Let the learning rate fall to 0 in a straight line over the environment steps."""
    gamma: float = 0.99
    """Discount."""
    batch_size: int = 32
    """Transitions in an update."""
    replay_ratio: float = 1.0
    """Updates for each environment step; 0.25 is one update in four steps."""
    replay_capacity: int = 50_000
    """Transitions in the replay; the oldest make room."""
    learning_starts: int = 1_000
    """Environment steps before the first update; their actions are random."""
    target_interval: int = 500
    """Environment steps between two copies of the network to the target network."""
    target_rate: float | None = None
    """Share of the network that goes into the target network at each update (Lillicrap et al.
    2016), in place of copies; None copies."""
    double_q: bool = False
    """The network chooses the next action, the target network judges it (van Hasselt 2016)."""
    max_grad_norm: float | None = 10.0
    """Largest norm of an update's gradient; None does not clip."""
    epsilon_start: float = 1.0
    """Share of random actions when learning starts."""
    epsilon_end: float = 0.05
    """Share of random actions later on."""
    epsilon_steps: int = 1_000
    """Environment steps from the first share to the last, in a straight line."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        self.check_at_least(1, "batch_size target_interval")
        self.check_at_least(0, "replay_ratio learning_starts epsilon_steps")
        if self.replay_capacity < self.num_envs:
            raise ValueError(f"replay_capacity is {self.replay_capacity}; give num_envs or more")
        if self.target_rate is not None and not 0 < self.target_rate <= 1:
            raise ValueError(f"target_rate is {self.target_rate}; give more than 0, at most 1")

    def shaping(self) -> dict[str, Any]:
        """Return the settings that shape the training; its length is one where it sets the rate."""
        return super().shaping() | ({"total_steps": self.total_steps} if self.anneal else {})


def epsilon(step: int, args: Args) -> float:
    """Return the share of random actions at an environment step."""
    if step < args.learning_starts:
        return 1.0
    done = min((step - args.learning_starts) / max(args.epsilon_steps, 1), 1.0)
    return args.epsilon_start + done * (args.epsilon_end - args.epsilon_start)


@torch.no_grad()
def td_targets(
    batch: Batch, network: nn.Module, target: nn.Module, gamma: float, double_q: bool
) -> Tensor:
    """Return reward + gamma * value of the next observation; no value after the end.

    `[batch]`, or `[replicas, batch]` where a network holds several.
    """
    next_values = target(batch.next_observations)
    if double_q:
        best = network(batch.next_observations).argmax(-1, keepdim=True)
        next_value = next_values.gather(-1, best).squeeze(-1)
    else:
        next_value = next_values.amax(-1)
    return torch.addcmul(batch.rewards, next_value, batch.continues, value=gamma)


class Rule(Protocol):
    """How the values of actions are read from the network's outputs, and how they are learned."""

    @property
    def name(self) -> str:
        """Names the agent in logs and checkpoints."""
        ...

    @property
    def outputs(self) -> int:
        """How many outputs of the network belong to an action."""
        ...

    def values(self, network: nn.Module, observations: Tensor) -> Tensor:
        """Return the value of each action, `[batch, actions]`."""
        ...

    def loss(self, batch: Batch, network: nn.Module, target: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the loss, and the value of the action taken in each transition, `[batch]`."""
        ...


@dataclass(frozen=True, slots=True)
class QLearning:
    """An output is a value; Huber loss to `td_targets` (Mnih et al. 2015).

    Attributes:
        gamma: discount.
        double_q: see `Args`.
    """

    gamma: float
    double_q: bool
    name: str = "dqn"
    outputs: int = 1

    def values(self, network: nn.Module, observations: Tensor) -> Tensor:
        """Return the value of each action, `[batch, actions]`."""
        return network(observations)

    def loss(self, batch: Batch, network: nn.Module, target: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the loss, and the value of the action taken in each transition, `[batch]`."""
        targets = td_targets(batch, network, target, self.gamma, self.double_q)
        values = network(batch.observations)
        chosen = values.gather(1, batch.actions.unsqueeze(1)).squeeze(1)
        return F.huber_loss(chosen, targets), chosen


Instruments = Callable[["Args", nn.Module], list[dp.Instrument]]
"""Makes the instruments of an agent's watch from its arguments and its target network."""


def make_instruments(args: Args, target: nn.Module) -> list[dp.Instrument]:
    """Return what the watch carries."""
    # Scores of 256 samples at the usual batch: with 32, a unit that seldom fires looks dead.
    gathered = -(-256 // args.batch_size)
    instruments: list[dp.Instrument] = []
    if args.probe:
        instruments.append(dp.Dormancy(every=args.probe_every, updates=gathered))
    if args.redo:
        instruments.append(
            dp.ReDo(args.redo_tau, args.redo_every, updates=gathered, mirror=[target])
        )
    return instruments


def train(
    args: Args, instruments: Instruments = make_instruments, rule: Rule | None = None
) -> Result:
    """Train an agent.

    Args:
        args: what shapes the training.
        instruments: makes what the watch carries, from the arguments and the target network.
        rule: how values are learned; None for Q-learning.

    Raises:
        ValueError: when DQN has no use for the environment's spaces, or `args.resume` was made with
            other settings or by another agent.
        ModuleNotFoundError: when the environment is not installed; names the extra.
        EnvironmentFailed: when the environment raises, or gives a reward that is no number; the log
            and the last checkpoint are whole.
    """
    learning: Rule = rule or QLearning(args.gamma, args.double_q)
    environments = Environments(
        args.env_id, args.num_envs, ["discrete"], clip_rewards=args.clip_rewards
    )
    with processor_settings(args.threads), closing(environments):
        space = environments.observation_space
        num_actions = int(cast(gym.spaces.Discrete, environments.action_space).n)
        network = make_network(
            space,
            num_actions * learning.outputs,
            args.hidden,
            args.seed,
            kind=args.network,
            width=args.width,
        ).to(args.device)
        target = copy.deepcopy(network).requires_grad_(False)
        # For a target that follows without a gradient.
        weights = [parameter.detach() for parameter in network.parameters()]
        target_weights = [parameter.detach() for parameter in target.parameters()]
        gradient = flat_gradient(list(network.parameters()))
        optimizer = torch.optim.Adam(network.parameters(), args.learning_rate, fused=True)
        # Not the seed alone: the first environment draws from that stream.
        exploration = np.random.default_rng([args.seed, 1])
        replay_seed = int(exploration.integers(2**31))
        replay = Replay(args.replay_capacity, args.num_envs, space, replay_seed)

        def greedy(observations: Tensor) -> np.ndarray:
            return learning.values(network, observations).argmax(1).cpu().numpy()

        parts = {
            "network": network,
            "target": target,
            "optimizer": optimizer,
            "replay": replay,
            "exploration": exploration,
        }
        with Run(
            learning.name,
            args,
            environments,
            parts,
            watched=network,
            optimizer=optimizer,
            instruments=instruments(args, target),
            policy=greedy,
            actions=["discrete"],
        ) as run:
            loss = chosen = torch.zeros(1)
            while run.step < args.total_steps:
                # Act.
                observations = environments.observations
                actions = exploration.integers(num_actions, size=args.num_envs)
                exploit = exploration.random(args.num_envs) >= epsilon(run.step, args)
                if exploit.any():
                    with torch.no_grad():
                        best = greedy(torch.from_numpy(observations).to(args.device))
                    actions[exploit] = best[exploit]
                step = run.act(actions)
                replay.add(observations, actions, step.rewards, step.last, ~step.terminated)

                # Learn.
                while run.updates < updates_due(run.step - args.learning_starts, args.replay_ratio):
                    run.begin_update()
                    batch = replay.sample(args.batch_size, args.device)
                    loss, chosen = learning.loss(batch, network, target)
                    gradient.zero_()
                    loss.backward()
                    if args.max_grad_norm is not None:
                        gradient.renorm_(2, 0, args.max_grad_norm)
                    if args.anneal:
                        left = max(1 - run.step / args.total_steps, 0.0)
                        optimizer.param_groups[0]["lr"] = args.learning_rate * left
                    optimizer.step()
                    if args.target_rate is not None:
                        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                            target_weights, weights, args.target_rate
                        )
                if args.target_rate is None and run.due("target", args.target_interval):
                    target.load_state_dict(network.state_dict())

                # Show and keep.
                if run.due("log", args.log_every):
                    run.log(
                        {
                            "charts/epsilon": epsilon(run.step, args),
                            "losses/td_loss": loss.detach(),
                            "losses/q_values": chosen.detach().mean(),
                        }
                    )
                run.keep()
            return run.result(network)


def main() -> None:
    """Train from the command line."""
    logging.basicConfig(format="%(message)s")
    say_result(train(tyro.cli(Args)))


if __name__ == "__main__":
    main()
