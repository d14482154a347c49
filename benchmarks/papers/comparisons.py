"""The comparisons by name, and how a set of them is run on several processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.papers import (
    cartpole,
    continual,
    digit_units,
    digits,
    dormant_growth,
    granet,
    granet_plasticity,
    granet_tables,
    label_shuffle,
    policy_agents,
    repeated_data,
    repeated_data_tables,
    treatment_tables,
    value_agents,
)
from benchmarks.papers.tables import Row, table
from dynamo_probe.sweeps.engines import outcomes
from dynamo_probe.sweeps.sweep import versions


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms that are run on the same seeds.

    Attributes:
        name: names it on the command line; up to a slash, it names a group there.
        run: the function that runs an arm: (arm, seed, setting=...).
        setting: what shapes the training.
        arms: which arms.
        table: makes Markdown of its rows and arms.
    """

    name: str
    run: Callable[..., Any]
    setting: Any
    arms: tuple[str, ...]
    table: Callable[[Sequence[Row], Sequence[str]], str] = table


COMPARISONS = (
    Comparison("digits", digits.run, digits.SETTING, continual.ARMS),
    Comparison(
        "treatments",
        digits.run,
        digits.SETTING,
        treatment_tables.ARMS,
        treatment_tables.table,
    ),
    *(
        Comparison(f"digit-units/{name}", digit_units.run, setting, arms, digit_units.table)
        for name, setting, arms in digit_units.EXPERIMENTS
    ),
    Comparison("label-shuffle", label_shuffle.run, label_shuffle.SETTING, continual.ARMS),
    Comparison(
        "label-shuffle-3e-3",
        label_shuffle.run,
        replace(label_shuffle.SETTING, learning_rate=3e-3),
        continual.ARMS,
    ),
    *(
        Comparison(f"cartpole-growth-{setting.replay_ratio:g}", cartpole.run, setting, ("base",))
        for setting in cartpole.GROWTH
    ),
    Comparison("cartpole-3e-3", cartpole.run, cartpole.MILD, cartpole.ARMS),
    Comparison("cartpole-1e-2", cartpole.run, cartpole.FAST, cartpole.ARMS),
    *(
        Comparison(f"value-agents/{name}", value_agents.run, setting, arms, value_agents.table)
        for name, setting, arms in value_agents.EXPERIMENTS
    ),
    Comparison(
        "policy-agents/cartpole",
        policy_agents.run,
        policy_agents.SETTING,
        policy_agents.ARMS,
        policy_agents.table,
    ),
    *(
        Comparison(
            f"redo-grid/tau {tau:g}, every {every}",
            digits.run,
            replace(digits.SETTING, redo_tau=tau, redo_every=every),
            ("redo live-mean", "redo zero", "redo live-mean xavier"),
        )
        for tau in (0.0, 0.025, 0.1)
        for every in (50, 200, 1000)
    ),
    Comparison("granet/digits", granet.run, granet.DIGITS, granet.ARMS, granet_tables.table),
    Comparison("granet/mnist1d", granet.run, granet.MNIST1D, granet.ARMS, granet_tables.table),
    Comparison(
        "granet/mnist1d-turnover-0.1",
        granet.run,
        granet.LITTLE_TURNOVER,
        granet.TURNOVER_ARMS,
        granet_tables.table,
    ),
    Comparison(
        "granet/plasticity",
        granet_plasticity.run,
        granet_plasticity.SETTING,
        granet_plasticity.ARMS,
        granet_plasticity.table,
    ),
    Comparison(
        "dormant-growth",
        dormant_growth.run,
        granet.MNIST1D,
        dormant_growth.ARMS,
        dormant_growth.table,
    ),
    *(
        Comparison(
            f"repeated-data/{name}",
            repeated_data.run,
            setting,
            arms,
            repeated_data_tables.table,
        )
        for name, setting, arms in repeated_data.EXPERIMENTS
    ),
)


def one(comparison: Comparison, arm: str, seed: int) -> dict[str, Any]:
    """Run one arm on one seed; return a row for the file."""
    figures = comparison.run(arm, seed, setting=comparison.setting)
    return {
        "name": comparison.name,
        "setting": asdict(comparison.setting),
        "versions": versions(),
        **asdict(figures),
    }


def key(row: Row) -> str:
    """Return what tells a run from all others: name, setting, arm and seed."""
    parts = [row["name"], row["setting"], row["arm"], row["seed"]]
    return json.dumps(parts, sort_keys=True)


def rows(
    comparisons: Sequence[Comparison],
    seeds: Sequence[int],
    workers: int,
    *,
    engine: str = "process",
    done: Sequence[Row] = (),
) -> Iterator[dict[str, Any]]:
    """Run everything on several processes; yield the rows as they come.

    Args:
        comparisons: what to run.
        seeds: of each arm.
        workers: processes, one thread each.
        engine: see `dynamo_probe.sweeps.engines.outcomes`.
        done: rows of runs that are not made again.

    Yields:
        A row for each run; one that failed twice has its traceback as `error`.
    """
    known = {key(row) for row in done}
    jobs = []
    for comparison in comparisons:
        row = {"name": comparison.name, "setting": asdict(comparison.setting)}
        for seed in seeds:
            for arm in comparison.arms:
                if key({**row, "arm": arm, "seed": seed}) not in known:
                    jobs.append((comparison, arm, seed))
    for outcome in outcomes(one, [(job, {}) for job in jobs], workers, engine):
        if outcome.error is None:
            yield outcome.value
            continue
        comparison, arm, seed = jobs[outcome.index]
        yield {
            "name": comparison.name,
            "setting": asdict(comparison.setting),
            "versions": versions(),
            "arm": arm,
            "seed": seed,
            "error": outcome.error,
        }
