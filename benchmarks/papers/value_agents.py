"""DQN on CartPole and MinAtar: what makes units dormant, what it costs, what helps.

An arm is a change of one thing: a target network that never moves, another replay ratio or width,
ReDo or one of its controls, sparse training. Everything else is as in `Setting`.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from agents import dqn
from agents.environments import Environments
from agents.evaluation import evaluate
from agents.replay import updates_due
from benchmarks.papers.intervals import with_interval
from benchmarks.papers.lives import Lives, of_score, persistence
from benchmarks.papers.tables import Row, mean_and_error
from dynamo_probe.anatomy.wiring import Wiring, wire
from dynamo_probe.functional import dormancy_scores, dormant_fraction

TAUS = (0.0, 0.025, 0.1)
NEVER = 10**9
EPISODES = 50


@dataclass(frozen=True, slots=True)
class Setting:
    """What shapes the training; everything else is as in `dqn.Args`.

    Attributes:
        env_id: Gymnasium's name.
        steps: of the environment; the first 1,000 go without updates.
        learning_rate: of Adam.
        replay_ratio: updates for each step.
        target_interval: environment steps between two copies to the target network.
        redo_every: updates between two recyclings.
        redo_tau: ReDo recycles units with a score of at most this.
        read_every: updates between two readings.
        read_updates: a reading takes the batches, of 32, of so many updates.
        prune_episodes: of each evaluation with pruned units; 0 leaves that out.
    """

    env_id: str
    steps: int
    learning_rate: float
    replay_ratio: float = 1.0
    target_interval: int = 500
    redo_every: int = 1_000
    redo_tau: float = 0.1
    read_every: int = 250
    read_updates: int = 16
    prune_episodes: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        arm: which arm.
        seed: of network, environment, exploration and replay.
        updates: made.
        dormant: {tau: dormant fraction before training, on observations of random actions, and at
            each reading, before anything is recycled}.
        overlap: {tau: (overlap of each reading's dormant units with the last ones, by chance)}.
        rank: effective rank of the last hidden layer on a fixed batch, at each reading.
        recycled: units recycled in all.
        density: share of the weights of hidden layers that are left.
        last_return: mean return of the last 50 episodes.
        mean_return: mean return of all episodes after the first 1,000 steps.
        pruned: {what was pruned: (share of units, mean return without exploration)}.
        seconds: processor time.
    """

    arm: str
    seed: int
    updates: int
    dormant: dict[float, tuple[float, ...]]
    overlap: dict[float, tuple[tuple[float, float], ...]]
    rank: tuple[float, ...]
    recycled: int
    density: float
    last_return: float
    mean_return: float
    pruned: dict[str, tuple[float, float]]
    seconds: float


Treat = Callable[[Setting, int, nn.Module], list[Any]]


@dataclass(frozen=True, slots=True)
class Arm:
    """A change of one thing.

    Attributes:
        changes: of `dqn.Args`.
        treat: makes treatments from the setting, the number of updates and the target network.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    treat: Treat = lambda setting, updates, target: []


def redo(score: Any = "dormancy") -> Treat:
    """Recycle by a score."""
    return lambda setting, updates, target: [
        dp.ReDo(setting.redo_tau, setting.redo_every, score=score, updates=8, mirror=[target])
    ]


def _gradual(setting: Setting, updates: int, target: nn.Module) -> list[Any]:
    return [dp.GradualMagnitudePruning.for_agents(updates, mirror=target)]


def _static(density: float) -> Treat:
    return lambda setting, updates, target: [dp.StaticSparse(density, mirror=target)]


ARMS: Mapping[str, Arm] = {
    "base": Arm(),
    "frozen target": Arm({"target_interval": NEVER}),
    "replay ratio 0.25": Arm({"replay_ratio": 0.25}),
    "replay ratio 4": Arm({"replay_ratio": 4.0}),
    "width 0.5": Arm({"width": 0.5}),
    "width 2": Arm({"width": 2.0}),
    "width 4": Arm({"width": 4.0}),
    "redo": Arm(treat=redo()),
    "redo random": Arm(treat=redo("random")),
    "redo inverted": Arm(treat=redo("inverted")),
    "gradual pruning 95": Arm(treat=_gradual),
    "static 90": Arm(treat=_static(0.1)),
    "static 95": Arm(treat=_static(0.05)),
}

CARTPOLE = Setting("CartPole-v1", 8_000, 1e-2, prune_episodes=20)
CARTPOLE_MILD = Setting("CartPole-v1", 8_000, 3e-3, prune_episodes=20)
ASTERIX = Setting("MinAtar/Asterix-v1", 6_000, 1e-3, target_interval=1_000)
ASTERIX_LONG = Setting(
    "MinAtar/Asterix-v1", 60_000, 3e-4, 0.25, target_interval=1_000, read_every=1_000
)
BREAKOUT_LONG = Setting(
    "MinAtar/Breakout-v1", 60_000, 3e-4, 0.25, target_interval=1_000, read_every=1_000
)
EXPERIMENTS: tuple[tuple[str, Setting, tuple[str, ...]], ...] = (
    ("cartpole", CARTPOLE, ("base", "redo", "redo random", "redo inverted")),
    ("cartpole-width", CARTPOLE_MILD, ("width 0.5", "base", "width 2", "width 4")),
    (
        "asterix",
        ASTERIX,
        ("base", "frozen target", "replay ratio 0.25", "replay ratio 4", "redo", "redo random"),
    ),
    ("sparse-cartpole", CARTPOLE_MILD, ("base", "gradual pruning 95", "static 90", "static 95")),
    ("sparse-asterix", ASTERIX_LONG, ("base", "gradual pruning 95", "static 90")),
    ("sparse-breakout", BREAKOUT_LONG, ("base", "gradual pruning 95", "static 90")),
)


def run(arm: str, seed: int, *, setting: Setting) -> Run:
    """Train one arm."""
    if arm not in ARMS:
        raise ValueError(f"the arm is {arm!r}; give one of {', '.join(ARMS)}")
    started = time.process_time()
    settings: dict[str, Any] = {
        "env_id": setting.env_id,
        "total_steps": setting.steps,
        "learning_rate": setting.learning_rate,
        "replay_ratio": setting.replay_ratio,
        "target_interval": setting.target_interval,
        "seed": seed,
        "log_dir": None,
        "progress": False,
    }
    args = dqn.Args(**settings | dict(ARMS[arm].changes))
    updates = updates_due(args.total_steps - args.learning_starts, args.replay_ratio)
    lives = Lives(setting.read_every, setting.read_updates)
    observations = seen(args)

    def instruments(args: dqn.Args, target: nn.Module) -> list[Any]:
        return [
            dp.Dormancy(TAUS, setting.read_every, updates=setting.read_updates),
            dp.Rank(setting.read_every, batch=observations),
            dp.Topology(setting.read_every),
            lives,
            *ARMS[arm].treat(setting, updates, target),
        ]

    result = dqn.train(args, instruments)
    readings = result.readings
    untrained = make_untrained(args)
    initial = dormancy_scores(untrained, observations)
    learning = result.episode_returns[result.episode_steps > args.learning_starts]
    total = readings.get("redo/recycled_total")
    density = readings.get("sparsity/density")
    ranks = [v for tag, (_, v) in readings.items() if tag.startswith("rank/") and "effec" in tag]
    return Run(
        arm=arm,
        seed=seed,
        updates=result.updates,
        dormant={
            tau: (
                dormant_fraction(initial, tau),
                *map(float, readings[f"dormancy/tau={tau}"][1][1:]),
            )
            for tau in TAUS
        },
        overlap={tau: persistence(lives.dormant(tau)) for tau in TAUS},
        rank=tuple(map(float, ranks[0])),
        recycled=0 if total is None else int(total[1][-1]),
        density=1.0 if density is None else float(density[1][-1]),
        last_return=float(result.episode_returns[-EPISODES:].mean()),
        mean_return=float(learning.mean()),
        pruned=returns_when_pruned(result.network, args, setting.prune_episodes),
        seconds=time.process_time() - started,
    )


def make_untrained(args: dqn.Args) -> nn.Module:
    """Return the network as it is before training."""
    return dqn.train(replace(args, total_steps=0)).network


def seen(args: dqn.Args, observations: int = 512) -> Tensor:
    """Return observations of random actions, `[observations, ...]`."""
    environments = Environments(args.env_id, 1, ["discrete"])
    environments.reset(args.seed)
    random, rows = np.random.default_rng(args.seed), []
    actions: Any = environments.action_space
    while len(rows) < observations:
        rows.append(environments.observations[0])
        environments.step(random.integers(actions.n, size=1))
    environments.close()
    return torch.from_numpy(np.stack(rows))


def returns_when_pruned(
    network: nn.Module, args: dqn.Args, episodes: int
) -> dict[str, tuple[float, float]]:
    """Return {what was pruned: (share of units, mean return)}, on the same episodes each.

    A pruned unit's outgoing weights are zero. The controls are as many units of each layer, random
    ones and the most active ones.
    """
    if not episodes:
        return {}
    observations = visited(network, args)
    scores = dormancy_scores(network, observations)
    wirings = wire(network, (observations,), {}, list(scores))
    arms: dict[str, Mapping[str, Tensor]] = {"nothing": {}}
    for tau in TAUS:
        dormant = {name: layer <= tau for name, layer in scores.items()}
        arms[f"dormant, tau {tau:g}"] = dormant
        arms[f"as many random, tau {tau:g}"] = of_score(scores, dormant, args.seed)
        arms[f"as many most active, tau {tau:g}"] = of_score(scores, dormant, None)
    units = sum(len(layer) for layer in scores.values())
    found = {}
    for name, masks in arms.items():
        pruned = without(network, wirings, masks)
        result = evaluate(
            lambda shown, pruned=pruned: pruned(shown).argmax(1).numpy(),
            args.env_id,
            actions=["discrete"],
            episodes=episodes,
            seed=args.seed + 10_000,
        )
        share = sum(int(mask.sum()) for mask in masks.values()) / units
        found[name] = (share, statistics.fmean(result.returns))
    return found


def without(network: nn.Module, wirings: Mapping[str, Any], masks: Mapping[str, Tensor]) -> Any:
    """Return a copy of a network whose units of the masks reach nothing."""
    pruned = copy.deepcopy(network)
    own = dict(pruned.named_parameters())
    for layer, mask in masks.items():
        wiring = wirings[layer]
        assert isinstance(wiring, Wiring)
        for entries in wiring.outgoing:
            index = entries.index[mask.cpu()].flatten()
            own[entries.name].detach().index_fill_(entries.dim, index, 0.0)
    return pruned


def visited(network: nn.Module, args: dqn.Args, observations: int = 2_000) -> Tensor:
    """Return what a trained network shows itself, with a random action in twenty."""
    environments = Environments(args.env_id, 1, ["discrete"])
    environments.reset(args.seed + 20_000)
    random, rows = np.random.default_rng(args.seed), []
    actions: Any = environments.action_space
    with torch.no_grad():
        while len(rows) < observations:
            shown = environments.observations
            rows.append(shown[0])
            chosen = network(torch.from_numpy(shown)).argmax(1).numpy()
            if random.random() < 0.05:
                chosen = random.integers(actions.n, size=1)
            environments.step(chosen)
    environments.close()
    return torch.from_numpy(np.stack(rows))


COLUMNS: dict[str, Callable[[Row], float]] = {
    "dormant, tau 0.025: start": lambda row: 100 * row["dormant"]["0.025"][0],
    "0.025: end": lambda row: 100 * row["dormant"]["0.025"][-1],
    "0.1: end": lambda row: 100 * row["dormant"]["0.1"][-1],
    "0: end": lambda row: 100 * row["dormant"]["0.0"][-1],
    "rank: end": lambda row: row["rank"][-1],
    "density": lambda row: 100 * row["density"],
    "recycled": lambda row: row["recycled"],
    "return without exploration": lambda row: _evaluated(row),
    f"return, last {EPISODES}": lambda row: row["last_return"],
    "mean return": lambda row: row["mean_return"],
    "overlap with the end, from the middle, tau 0.025": lambda row: _overlap(row, 0),
    "by chance": lambda row: _overlap(row, 1),
    "CPU s": lambda row: row["seconds"],
}


def _evaluated(row: Row) -> float:
    """Return the mean return of the evaluation at the end; NaN where there was none.

    On CartPole, where an episode is as long as its return, 50 episodes are most of a run: their
    mean says little about the end of training, and its standard error is that of a bounded figure.
    """
    return row["pruned"]["nothing"][1] if row["pruned"] else math.nan


def _overlap(row: Row, which: int) -> float:
    series = row["overlap"]["0.025"]
    return 100 * series[len(series) // 2][which] if series else math.nan


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return a table with a line for each arm, and one of what pruning units does to the return."""
    last = f"return, last {EPISODES}: IQM [95 %]"
    lines = ["| " + " | ".join(["arm", "seeds", *COLUMNS, last]) + " |"]
    lines.append("|---|" + "---:|" * (2 + len(COLUMNS)))
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        figures = []
        for figure in COLUMNS.values():
            values = [x for x in map(figure, mine) if not math.isnan(x)]
            figures.append(mean_and_error(values) if values else "-")
        figures.append(with_interval([row["last_return"] for row in mine]))
        lines.append("| " + " | ".join([arm, str(len(mine)), *figures]) + " |")
    base = [row for row in rows if row["arm"] == "base" and row["pruned"]]
    if base:
        lines += ["", "| pruned from base | seeds | share of units | return |"]
        lines += ["|---|---:|---:|---:|"]
        for what in base[0]["pruned"]:
            share = mean_and_error([100 * row["pruned"][what][0] for row in base])
            figure = mean_and_error([row["pruned"][what][1] for row in base])
            lines.append(f"| {what} | {len(base)} | {share} | {figure} |")
    return "\n".join(lines)
