"""DQN on many seeds at once, as one stacked network: `python -m agents.replicas --help`.

The weights of a layer are `[replicas, inputs, units]`, and one batched product serves all replicas.
Replica r is the run of `agents.dqn` with the seed `seed + r`: the same initial weights, actions,
environment and replay; they differ by the rounding of other kernels only. For vectors and Discrete
actions. What a watch sees of each replica is told apart (`axes=` of `dp.watch`).
"""

from __future__ import annotations

import copy
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import dynamo_probe as dp
from agents import dqn
from agents.environments import Environments
from agents.networks import make_network
from agents.replay import Batch, updates_due
from agents.runs import fill_in, flat_gradient, processor_settings

AXES = {"fc*": "replica batch unit", "values": "replica batch unit"}


@dataclass(frozen=True)
class Args(dqn.Args):
    """Train DQN agents on consecutive seeds; `total_steps` and all else are of each of them."""

    replicas: int = 12
    """How many seeds, from `seed` on."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        self.check_at_least(1, "replicas")
        asked = (self.redo, self.checkpoint, self.resume, self.evaluate_every)
        if self.num_envs != 1 or any(asked):
            raise ValueError(
                "replicas have one environment each and no ReDo, checkpoints or evaluations; use "
                "agents.dqn for these"
            )


@dataclass(frozen=True, slots=True)
class Result:
    """What a training gave.

    Attributes:
        episodes: for each replica, (its environment step, undiscounted return) of each episode.
        readings: scalar readings of the watch, `{tag: (updates, values)}`; replica r's dormant
            fraction is `dormancy/replica/r/tau=0.1`.
        network: the stacked network.
        updates: made of each replica.
        seconds: wall-clock time.
        update_seconds: processor time from the first update on, acting included.
    """

    episodes: tuple[tuple[tuple[int, float], ...], ...]
    readings: Mapping[str, tuple[np.ndarray, np.ndarray]]
    network: nn.Module
    updates: int
    seconds: float
    update_seconds: float


class StackedLinear(nn.Module):
    """One linear layer of several networks: `[replicas, batch, inputs]` to `[.., .., units]`."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        """Stack the layers; their weights are copied."""
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        biases = [layer.bias.detach().unsqueeze(0) for layer in layers]
        self.bias = nn.Parameter(torch.stack(biases))

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply each replica's batch with its own weights."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class StackedReplay:
    """Uniform replays of several agents, each with a generator of its own."""

    def __init__(self, capacity: int, space: gym.Space, seeds: list[int]) -> None:
        """Make room for `capacity` transitions of each."""
        replicas, shape = len(seeds), space.shape or ()
        self.capacity, self.position, self.filled = capacity, 0, 0
        self.stored = Batch(
            observations=torch.zeros(replicas, capacity, *shape),
            actions=torch.zeros(replicas, capacity, dtype=torch.int64),
            rewards=torch.zeros(replicas, capacity),
            next_observations=torch.zeros(replicas, capacity, *shape),
            continues=torch.zeros(replicas, capacity),
        )
        self.arrays = [tensor.numpy() for tensor in self.stored]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._offsets = torch.arange(replicas).unsqueeze(1) * capacity
        self._flat = [tensor.flatten(0, 1) for tensor in self.stored]

    def add(self, *transitions: np.ndarray) -> None:
        """Store one step of each agent; the arrays come in the order of `Batch`."""
        for array, new in zip(self.arrays, transitions, strict=True):
            array[:, self.position] = new
        self.filled = max(self.filled, self.position + 1)
        self.position = (self.position + 1) % self.capacity

    def sample(self, batch_size: int) -> Batch:
        """Draw transitions of each agent, `[replicas, batch, ...]`."""
        size = (batch_size,)
        drawn = [torch.randint(self.filled, size, generator=g) for g in self.generators]
        rows = (torch.stack(drawn) + self._offsets).flatten()
        shape = (len(drawn), batch_size)
        return Batch(*(tensor.index_select(0, rows).unflatten(0, shape) for tensor in self._flat))


def stack(networks: list[nn.Sequential]) -> nn.Sequential:
    """Return one network that computes what each of several MLPs does, `[replicas, batch, ...]`."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in networks[0].named_children():
        layers = [network.get_submodule(name) for network in networks]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        modules[name] = StackedLinear(linear) if linear else module
    return nn.Sequential(modules)


def clip_each(gradients: list[Tensor], largest: float) -> None:
    """Clip the norm of each replica's gradient; `gradients` are `[replicas, ...]`."""
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    factors = (largest / (squares.sqrt() + 1e-7)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def train(args: Args) -> Result:
    """Train all replicas.

    Raises:
        ValueError: when DQN has no use for the environment's spaces, or observations are images.
    """
    started, update_started, updates = time.perf_counter(), 0.0, 0
    replicas, seeds = args.replicas, [args.seed + r for r in range(args.replicas)]
    environments = Environments(args.env_id, replicas, ["discrete"], clip_rewards=args.clip_rewards)
    with processor_settings(args.threads), closing(environments), ExitStack() as open_watch:
        space = environments.observation_space
        if len(space.shape) != 1:
            raise ValueError(f"{args.env_id} shows images; replicas are for vectors")
        num_actions = int(cast(gym.spaces.Discrete, environments.action_space).n)
        single = [make_network(space, num_actions, args.hidden, seed) for seed in seeds]
        network = stack(single)
        target = copy.deepcopy(network).requires_grad_(False)
        parameters = list(network.parameters())
        gradient = flat_gradient(parameters)
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        optimizer = torch.optim.Adam(parameters, args.learning_rate, fused=True)
        randoms = [np.random.default_rng([seed, 1]) for seed in seeds]
        draws = [int(random.integers(2**31)) for random in randoms]
        replay = StackedReplay(args.replay_capacity, space, draws)
        watch = None
        if args.probe:
            gathered = -(-256 // args.batch_size)
            probe = dp.Dormancy(every=args.probe_every, updates=gathered)
            log_dir = fill_in(args.log_dir, "replicas", args.env_id, args.seed)
            watch = open_watch.enter_context(
                dp.watch(network, optimizer, probe, log_dir=log_dir, seed=args.seed, axes=AXES)
            )
        episodes: list[list[tuple[int, float]]] = [[] for _ in seeds]
        environments.reset(args.seed)
        for step in range(1, args.total_steps + 1):
            # Act.
            observations = environments.observations
            actions = np.array([random.integers(num_actions, size=1)[0] for random in randoms])
            drawn = np.array([random.random(1)[0] for random in randoms])
            exploit = drawn >= dqn.epsilon(step - 1, args)
            if exploit.any():
                with torch.no_grad():
                    values = network(torch.from_numpy(observations).unsqueeze(1))
                actions[exploit] = values.argmax(2).squeeze(1).numpy()[exploit]
            after = environments.step(actions)
            replay.add(observations, actions, after.rewards, after.last, ~after.terminated)
            for index, figure in zip(np.flatnonzero(after.done), after.returns, strict=True):
                episodes[index].append((step, figure))

            # Learn.
            while updates < updates_due(step - args.learning_starts, args.replay_ratio):
                update_started = update_started or time.process_time()
                updates += 1
                batch = replay.sample(args.batch_size)
                targets = dqn.td_targets(batch, network, target, args.gamma, args.double_q)
                values = network(batch.observations)
                chosen = values.gather(2, batch.actions.unsqueeze(2)).squeeze(2)
                # Each replica's mean; in the sum none of them meets another's weights.
                loss = F.huber_loss(chosen, targets, reduction="none").mean(1).sum()
                gradient.zero_()
                loss.backward()
                if args.max_grad_norm is not None:
                    clip_each(gradients, args.max_grad_norm)
                optimizer.step()
            if step % args.target_interval == 0:
                target.load_state_dict(network.state_dict())
        readings = {t: watch.history.series(t) for t in watch.history.tags()} if watch else {}
        return Result(
            episodes=tuple(tuple(one) for one in episodes),
            readings=readings,
            network=network,
            updates=updates,
            seconds=time.perf_counter() - started,
            update_seconds=time.process_time() - (update_started or time.process_time()),
        )


def main() -> None:
    """Train from the command line."""
    logging.basicConfig(format="%(message)s")
    args = tyro.cli(Args)
    result = train(args)
    for seed, episodes in enumerate(result.episodes, args.seed):
        returns = [figure for _, figure in episodes[-20:]]
        print(f"seed {seed}: mean return of the last 20 episodes {np.mean(returns):.1f}")
    print(f"{result.updates} updates of {args.replicas} replicas in {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
