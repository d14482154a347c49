"""DQN (Mnih et al. 2015): `python -m agents.dqn --help`.

Environments run in Gymnasium's SAME_STEP autoreset mode (`agents/environments.py`): every step is a
transition. A truncated episode bootstraps from its last observation, a terminated one does not.

While it trains, `train` changes two settings of the process and puts them back at the end: torch's
threads, and denormal floats count as zero on the processor.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import dynamo_probe as dp
from agents.environments import (
    last_observations,
    make_environments,
    restore_environments,
    save_environments,
)
from agents.networks import make_network
from agents.runs import (
    Result,
    fill_in,
    flat_gradient,
    load_checkpoint,
    processor_settings,
    progress_bar,
    progress_figures,
    save_checkpoint,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Args:
    """Train a DQN agent; watch its network and recycle its dormant units, if asked to."""

    env_id: str = "CartPole-v1"
    """Gymnasium environment with Discrete actions and Box observations."""
    num_envs: int = 1
    """Environments stepped together; a step of each counts."""
    total_steps: int = 8_000
    """Environment steps to train for."""
    seed: int = 1
    """Seed of network, replay, exploration and environments."""
    device: str = "cpu"
    """Where the network lives: cpu, cuda, ..."""
    threads: int = 1
    """Processor threads of torch; one is fastest for networks as small as these."""

    hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers; None is 128 128, and 128 behind the convolution for images."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
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

    probe: bool = False
    """Measure the dormant units."""
    probe_every: int = 100
    """Updates between two measurements."""
    redo: bool = False
    """Recycle the dormant units (ReDo, Sokar et al. 2023)."""
    redo_every: int = 1_000
    """Updates between two recyclings."""
    redo_tau: float = 0.1
    """Units with a score of at most this are recycled; 1 is the mean of the layer."""

    log_dir: Path | None = Path("runs/dqn/{env_id}-seed{seed}-{time}")
    """Directory of the TensorBoard log, these three names filled in; None writes none."""
    log_every: int = 100
    """Environment steps between two rows of the log."""
    checkpoint: Path | None = None
    """File to keep all in that is needed to go on; written at the end of the training, too."""
    checkpoint_every: int | None = None
    """Environment steps between two checkpoints; None writes one at the end only."""
    resume: Path | None = None
    """Checkpoint to go on from; the settings that shape the training have to be the same."""
    progress: bool = True
    """Show a progress bar, on a terminal only."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("num_envs", "threads", "batch_size", "target_interval", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("total_steps", "replay_ratio", "learning_starts", "epsilon_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")
        if self.replay_capacity < self.num_envs:
            raise ValueError(f"replay_capacity is {self.replay_capacity}; give num_envs or more")
        if self.checkpoint_every is not None and (
            self.checkpoint is None or self.checkpoint_every < 1
        ):
            raise ValueError("checkpoint_every needs a file in checkpoint and 1 step or more")


DORMANT = "dormancy/tau=0.1"
# Every other setting shapes the training: to resume, it has to be as the checkpoint was made.
FREE = "total_steps threads device log_dir log_every checkpoint checkpoint_every resume progress"


class Batch(NamedTuple):
    """Transitions; all `[batch]`, observations `[batch, *observation]`."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    continues: Tensor
    """0 where the step terminated the episode, else 1."""


class Replay:
    """Uniform replay in preallocated host memory; uint8 and bool observations keep their type."""

    def __init__(self, capacity: int, num_envs: int, space: gym.Space, seed: int) -> None:
        """Make room for `capacity` transitions, rounded down to whole steps of the environments."""
        self.capacity, self.position, self.filled = capacity // num_envs * num_envs, 0, 0
        shape = (self.capacity, *(space.shape or ()))
        kind = {"uint8": torch.uint8, "bool": torch.bool}.get(str(space.dtype), torch.float32)
        self.stored = Batch(
            observations=torch.zeros(shape, dtype=kind),
            actions=torch.zeros(self.capacity, dtype=torch.int64),
            rewards=torch.zeros(self.capacity),
            next_observations=torch.zeros(shape, dtype=kind),
            continues=torch.zeros(self.capacity),
        )
        # The same memory: NumPy writes a few numbers ten times as fast as torch.
        self.arrays = [tensor.numpy() for tensor in self.stored]
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, *transitions: np.ndarray) -> None:
        """Store one step of all environments; the arrays come in the order of `Batch`."""
        end = self.position + len(transitions[0])
        for array, new in zip(self.arrays, transitions, strict=True):
            array[self.position : end] = new
        self.position, self.filled = end % self.capacity, max(self.filled, end)

    def sample(self, batch_size: int, device: str) -> Batch:
        """Draw transitions uniformly, with replacement."""
        rows = torch.randint(self.filled, (batch_size,), generator=self.generator)
        return Batch(*(tensor.index_select(0, rows).to(device) for tensor in self.stored))

    def state_dict(self) -> dict[str, Any]:
        """Return the filled rows and the state of the generator."""
        # Without the clone, the whole preallocated tensor would be saved.
        filled = {name: x[: self.filled].clone() for name, x in self.stored._asdict().items()}
        return {"filled": filled, "position": self.position, "random": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name, stored in self.stored._asdict().items():
            self.filled = len(state["filled"][name])
            stored[: self.filled] = state["filled"][name]
        self.position = state["position"]
        self.generator.set_state(state["random"])


def epsilon(step: int, args: Args) -> float:
    """Return the share of random actions at an environment step."""
    if step < args.learning_starts:
        return 1.0
    done = min((step - args.learning_starts) / max(args.epsilon_steps, 1), 1.0)
    return args.epsilon_start + done * (args.epsilon_end - args.epsilon_start)


def updates_due(step: int, args: Args) -> int:
    """Return the number of updates that belong to the environment steps so far."""
    # The small term keeps 100 steps at a ratio of 0.29 from giving 28 updates.
    return int(max(step - args.learning_starts, 0) * args.replay_ratio + 1e-6)


@torch.no_grad()
def td_targets(
    batch: Batch, network: nn.Module, target: nn.Module, gamma: float, double_q: bool
) -> Tensor:
    """Return reward + gamma * value of the next observation, `[batch]`; no value after the end."""
    next_values = target(batch.next_observations)
    if double_q:
        best = network(batch.next_observations).argmax(1, keepdim=True)
        next_value = next_values.gather(1, best).squeeze(1)
    else:
        next_value = next_values.amax(1)
    return torch.addcmul(batch.rewards, next_value, batch.continues, value=gamma)


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


def train(args: Args, instruments: Instruments = make_instruments) -> Result:
    """Train an agent.

    Args:
        args: what shapes the training.
        instruments: makes what the watch carries, from the arguments and the target network.

    Raises:
        ValueError: when DQN has no use for the environment's spaces, or when `args.resume` was
            made with other settings.
    """
    started, update_started = time.perf_counter(), None
    with processor_settings(args.threads), ExitStack() as stack:
        environments = make_environments(args.env_id, args.num_envs)
        stack.callback(environments.close)
        space = environments.single_observation_space
        num_actions = int(cast(gym.spaces.Discrete, environments.single_action_space).n)

        network = make_network(space, num_actions, args.hidden, args.seed).to(args.device)
        target = copy.deepcopy(network).requires_grad_(False)
        gradient = flat_gradient(list(network.parameters()))
        optimizer = torch.optim.Adam(network.parameters(), args.learning_rate, fused=True)
        # Not the seed alone: the first environment draws from that stream.
        exploration = np.random.default_rng([args.seed, 1])
        replay_seed = int(exploration.integers(2**31))
        replay = Replay(args.replay_capacity, args.num_envs, space, replay_seed)
        parts = {"network": network, "target": target, "optimizer": optimizer, "replay": replay}

        log_dir, writer, watch = fill_in(args.log_dir, args.env_id, args.seed), None, None
        if log_dir is not None:
            writer = SummaryWriter(log_dir)
            stack.callback(writer.close)
        if carried := instruments(args, target):
            sinks = [] if writer is None else [writer]
            watch = dp.watch(network, optimizer, carried, sinks=sinks, seed=args.seed)
            parts["watch"] = stack.enter_context(watch)

        # Begin, or go on from a checkpoint.
        settings = {name: x for name, x in asdict(args).items() if name not in FREE.split()}
        clock: dict[str, Any] = {"step": 0, "updates": 0, "episodes": []}
        if args.resume is not None:
            clock = load_checkpoint(args.resume, settings, parts)
            exploration.bit_generator.state = clock["exploration"]
        step, updates, episodes = clock["step"], clock["updates"], clock["episodes"]
        returns = np.zeros(args.num_envs)
        observations, _ = environments.reset(seed=args.seed + step)
        if clock.get("environments") is not None:
            restore_environments(environments, clock["environments"])
            returns, observations = clock["returns"].numpy(), clock["observations"].numpy()
        elif args.resume is not None:
            logger.warning("%s cannot give its state: new episodes begin", args.env_id)

        bar = stack.enter_context(progress_bar(args.progress))
        task = bar.add_task(args.env_id, total=args.total_steps, completed=step, figures="")
        row_updates, row_time = updates, time.perf_counter()
        loss = chosen = torch.zeros(1)

        while step < args.total_steps:
            # Act.
            actions = exploration.integers(num_actions, size=args.num_envs)
            greedy = exploration.random(args.num_envs) >= epsilon(step, args)
            if greedy.any():
                with torch.no_grad():
                    values = network(torch.from_numpy(observations).to(args.device))
                actions[greedy] = values.argmax(1).cpu().numpy()[greedy]
            following, rewards, terminated, truncated, infos = environments.step(actions)
            done = terminated | truncated
            last = last_observations(following, done, infos)
            replay.add(observations, actions, rewards, last, ~terminated)
            observations = following
            step += args.num_envs
            returns += rewards
            for index in np.flatnonzero(done):
                episodes.append((step, float(returns[index])))
                if writer is not None:
                    writer.add_scalar("charts/episodic_return", returns[index], step)
            returns[done] = 0.0

            # Learn.
            while updates < updates_due(step, args):
                update_started = update_started or time.process_time()
                batch = replay.sample(args.batch_size, args.device)
                targets = td_targets(batch, network, target, args.gamma, args.double_q)
                values = network(batch.observations)
                chosen = values.gather(1, batch.actions.unsqueeze(1)).squeeze(1)
                loss = F.huber_loss(chosen, targets)
                gradient.zero_()
                loss.backward()
                if args.max_grad_norm is not None:
                    gradient.renorm_(2, 0, args.max_grad_norm)
                optimizer.step()
                updates += 1
            if step % args.target_interval < args.num_envs:
                target.load_state_dict(network.state_dict())

            # Show and keep.
            if step % args.log_every < args.num_envs:
                speed = (updates - row_updates) / (time.perf_counter() - row_time)
                row_updates, row_time = updates, time.perf_counter()
                if writer is not None and speed > 0:
                    writer.add_scalar("charts/updates_per_second", speed, step)
                    writer.add_scalar("charts/epsilon", epsilon(step, args), step)
                    writer.add_scalar("losses/td_loss", loss.item(), step)
                    writer.add_scalar("losses/q_values", chosen.mean().item(), step)
                dormant = None
                if watch is not None and DORMANT in watch.history:
                    dormant = float(watch.history.latest(DORMANT))
                line = progress_figures(episodes, speed, dormant)
                bar.update(task, completed=step, figures=line)
            if args.checkpoint is not None and (
                step >= args.total_steps
                or (args.checkpoint_every and step % args.checkpoint_every < args.num_envs)
            ):
                clock = {
                    "step": step,
                    "updates": updates,
                    "episodes": episodes,
                    "returns": torch.from_numpy(returns),
                    "observations": torch.from_numpy(observations),
                    "environments": save_environments(environments),
                    "exploration": exploration.bit_generator.state,
                }
                save_checkpoint(args.checkpoint, settings, clock, parts)

        readings = {tag: watch.history.series(tag) for tag in watch.history.tags()} if watch else {}
        finished = time.process_time()
        return Result(
            episode_steps=np.array([episode[0] for episode in episodes], dtype=np.int64),
            episode_returns=np.array([episode[1] for episode in episodes], dtype=np.float64),
            readings=readings,
            network=network,
            updates=updates,
            seconds=time.perf_counter() - started,
            update_seconds=finished - (update_started or finished),
            log_dir=log_dir,
        )


def main() -> None:
    """Train from the command line."""
    logging.basicConfig(format="%(message)s")
    result = train(tyro.cli(Args))
    if len(result.episode_returns):
        mean = result.episode_returns[-20:].mean()
        print(f"mean return of the last 20 episodes: {mean:.1f}")
    print(f"{result.updates} updates in {result.seconds:.0f} s")
    if result.log_dir is not None:
        print(f"tensorboard --logdir {result.log_dir}")


if __name__ == "__main__":
    main()
