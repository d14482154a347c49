"""ReDo at the paper's replay ratios on MinAtar, for days: started by one command, stopped at will.

    python -m benchmarks.papers.long_run --cost          # what it would take on this machine
    python -m benchmarks.papers.long_run --workers 2     # starts, and goes on after any stop
    python -m benchmarks.papers.long_run --limit-hours 0.25 --games Breakout --ratios 0.25 1

Sokar et al. 2023 train DQN on Atari for 10 million frames at replay ratios of 0.25 to 2, with and
without ReDo (every 1,000 updates, tau 0.1 for DQN). Here it is MinAtar's five games, 2 million
steps each, 5 seeds: 200 runs. One core made about 400 updates a second of Breakout's network, so
that a run takes 0.4 h at a ratio of 0.25 and 2.8 h at 2, and all of it about 250 h of one core.

Every run keeps a checkpoint (`--keep-every` steps) with its replay, environment and watch, and goes
on from it bit for bit; a run that is done is a line in the results, and its checkpoint is deleted.
A line of a run that was stopped by the limit says how many steps it is of (`partial`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import dynamo_probe as dp
from agents import dqn
from benchmarks.papers.tables import Row, mean_and_error
from dynamo_probe.sweeps.engines import Job, outcomes
from dynamo_probe.sweeps.records import appending, read_rows, write_row
from dynamo_probe.sweeps.sweep import versions

GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
RATIOS = (0.25, 0.5, 1.0, 2.0)
STEPS = 2_000_000
TAUS = (0.0, 0.025, 0.1)


def arguments(game: str, ratio: float, treated: bool, seed: int, steps: int) -> dqn.Args:
    """Return the settings of a run; the exploration is that of Young & Tian 2019."""
    return dqn.Args(
        env_id=f"MinAtar/{game}-v1",
        total_steps=steps,
        seed=seed,
        learning_rate=2.5e-4,
        replay_ratio=ratio,
        replay_capacity=100_000,
        learning_starts=5_000,
        target_interval=1_000,
        epsilon_end=0.1,
        epsilon_steps=100_000,
        redo=treated,
        log_dir=None,
        progress=False,
    )


def instruments(args: dqn.Args, target: torch.nn.Module) -> list[dp.Instrument]:
    """Return the probe, and ReDo where it is asked for."""
    probe = dp.Dormancy(TAUS, every=5_000, updates=16)
    redo = dp.ReDo(args.redo_tau, args.redo_every, updates=8, mirror=[target])
    return [probe, redo] if args.redo else [probe]


def run(
    game: str, ratio: float, treated: bool, seed: int, *, steps: int, folder: str, keep_every: int,
    until: float | None,
) -> dict[str, Any] | None:  # fmt: skip
    """Train, or go on training, until it is done or the time is up.

    Args:
        game: of MinAtar.
        ratio: updates for each step.
        treated: with ReDo.
        seed: of everything.
        steps: of the environment.
        folder: where checkpoints are.
        keep_every: steps between two checkpoints; the least that a stop loses.
        until: time (`time.time()`) at which to stop; None for never.

    Returns:
        Settings, figures, and how many steps they are of; None where there was no time to begin.
    """
    name = f"{game}-{ratio:g}-{'redo' if treated else 'base'}-{seed}"
    path = Path(folder) / f"{name}.pt"
    started, done, result = time.process_time(), 0, None
    while done < steps and (until is None or time.time() < until):
        resume = path if path.exists() else None
        if resume is not None:
            clock = torch.load(resume, map_location="cpu", weights_only=True)["clock"]
            done = clock["environments"]["steps"]
        args = arguments(game, ratio, treated, seed, min(done + keep_every, steps))
        result = dqn.train(replace(args, checkpoint=path, resume=resume), instruments)
        done = args.total_steps
    if result is None:
        return None
    returns = result.episode_returns[-100:]
    if done >= steps:
        path.unlink(missing_ok=True)
    return {
        "game": game,
        "ratio": ratio,
        "redo": treated,
        "seed": seed,
        "steps": done,
        "partial": done < steps,
        "updates": result.updates,
        "last_return": float(returns.mean()) if len(returns) else None,
        "mean_return": float(result.episode_returns.mean()) if len(returns) else None,
        "dormant": {str(tau): float(result.readings[f"dormancy/tau={tau}"][1][-1]) for tau in TAUS},
        "seconds": time.process_time() - started,
    }


def cost(games: Sequence[str], ratios: Sequence[float], seeds: int, steps: int) -> str:
    """Measure a short run and say what everything would take."""
    lines, total = [], 0.0
    for ratio in ratios:
        args = arguments(games[0], ratio, False, 1, 6_500)
        result = dqn.train(args, instruments)
        hours = result.update_seconds / 1_500 * steps / 3600
        lines.append(f"ratio {ratio:g}: {hours:.1f} h a run")
        total += hours * len(games) * seeds * 2
    return "\n".join([*lines, f"everything: {total:.0f} h of one core"])


def table(rows: Sequence[Row]) -> str:
    """Return a table with a line for each game, ratio and treatment."""
    lines = [
        "| game | replay ratio | ReDo | seeds | steps | dormant 0.025 | 0.1 | last 100 episodes |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    groups = sorted({(r["game"], r["ratio"], r["redo"]) for r in rows})
    for game, ratio, treated in groups:
        mine = [r for r in rows if (r["game"], r["ratio"], r["redo"]) == (game, ratio, treated)]
        cells = [
            mean_and_error([100 * r["dormant"]["0.025"] for r in mine]),
            mean_and_error([100 * r["dormant"]["0.1"] for r in mine]),
            mean_and_error([r["last_return"] for r in mine if r["last_return"] is not None]),
        ]
        steps = f"{min(r['steps'] for r in mine):,}"
        what = [game, f"{ratio:g}", "yes" if treated else "no", str(len(mine)), steps, *cells]
        lines.append("| " + " | ".join(what) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not done, and print a table of everything that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--games", nargs="+", default=GAMES, choices=GAMES)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--keep-every", type=int, default=50_000, help="steps a checkpoint")
    parser.add_argument("--limit-hours", type=float, help="stop after about so long")
    parser.add_argument("--folder", type=Path, default=Path("runs/long_run"))
    parser.add_argument("--cost", action="store_true", help="say what it takes, and stop")
    options = parser.parse_args()
    if options.cost:
        print(cost(options.games, options.ratios, options.seeds, options.steps))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    until = None if options.limit_hours is None else time.time() + 3600 * options.limit_hours
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with appending(options.folder / f"results-{options.steps}.jsonl") as file:
        found = {key(row): row for row in read_rows(Path(file.name)) if "error" not in row}
        jobs: list[Job] = [
            ((game, ratio, treated, seed), {
                "steps": options.steps,
                "folder": str(options.folder),
                "keep_every": options.keep_every,
                "until": until,
            })
            for seed in seeds
            for game in options.games
            for ratio in options.ratios
            for treated in (False, True)
            if found.get((game, ratio, treated, seed), {"partial": True})["partial"]
        ]  # fmt: skip
        for outcome in outcomes(run, jobs, options.workers):
            names = ("game", "ratio", "redo", "seed")
            row = outcome.value
            if outcome.error is not None:
                row = {
                    **dict(zip(names, jobs[outcome.index][0], strict=True)),
                    "error": outcome.error,
                }
                print(f"failed: {row}")
            elif row is not None:
                found[key(row)] = row
                print(f"{row['steps']:,} steps of {key(row)}")
            if row is not None:
                write_row(file, {**row, "versions": versions()})
    print(table(list(found.values())))


def key(row: Row) -> tuple[Any, ...]:
    """Return what tells a run from all others."""
    return row["game"], row["ratio"], row["redo"], row["seed"]


if __name__ == "__main__":
    main()
