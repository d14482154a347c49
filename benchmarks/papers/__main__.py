"""Run the comparisons: `python -m benchmarks.papers [name] --seeds 5 --workers 2 --out FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.papers.comparisons import COMPARISONS, Comparison, key, rows
from benchmarks.papers.tables import Row
from dynamo_probe.sweeps.engines import ENGINES
from dynamo_probe.sweeps.records import appending, read_rows, write_row


def main() -> None:
    """Run, write a row for each run, print the table."""
    names = [comparison.name for comparison in COMPARISONS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name", nargs="*", help=f"any of {', '.join(names)}; or cartpole*, or granet"
    )
    parser.add_argument("--arms", nargs="+", help="only these arms, such as base 'redo zero'")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/papers.jsonl"), help="a row a run")
    parser.add_argument("--resume", action="store_true", help="skip the runs that the file has")
    parser.add_argument("--table", action="store_true", help="only print what the file has")
    parser.add_argument("--engine", choices=ENGINES, default="process", help="what runs them")
    options = parser.parse_args()
    wanted = options.name or ["*"]
    chosen = [
        one
        for one in COMPARISONS
        if any(fnmatch(one.name, n) or one.name.startswith(f"{n}/") for n in wanted)
    ]
    if not chosen:
        parser.error(f"there is no {' or '.join(wanted)}; the names are {', '.join(names)}")
    if options.arms:
        chosen = [
            replace(one, arms=tuple(a for a in one.arms if a in options.arms)) for one in chosen
        ]
        chosen = [one for one in chosen if one.arms]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    done: list[Row] = []
    failed: list[Row] = []
    if options.resume or options.table:
        done = finished(options.out, chosen, seeds)
    if not options.table:
        total = sum(len(comparison.arms) for comparison in chosen) * len(seeds)
        with appending(options.out) as file:
            for row in rows(chosen, seeds, options.workers, engine=options.engine, done=done):
                write_row(file, row)
                (failed if "error" in row else done).append(json.loads(json.dumps(row)))
                state = "FAILED " if "error" in row else ""
                count = f"{len(done) + len(failed)}/{total}"
                print(f"{count} {state}{row['name']}, {row['arm']}, seed {row['seed']}")
    for comparison in chosen:
        mine = [row for row in done if row["name"] == comparison.name]
        if mine:
            print(f"\n### {comparison.name}\n")
            print(comparison.table(mine, [a for a in comparison.arms if made(mine, a)]))
    for row in failed:
        print(f"\n{row['name']}, {row['arm']}, seed {row['seed']} failed:\n{row['error']}")
    if failed:
        sys.exit(f"{len(failed)} runs failed; --resume makes them again")


def made(rows: Sequence[Row], arm: str) -> bool:
    """Whether there is a run of an arm."""
    return any(row["arm"] == arm for row in rows)


def finished(path: Path, chosen: Sequence[Comparison], seeds: Sequence[int]) -> list[Row]:
    """Return a row for each of the wanted runs that a file has."""
    rows = {key(row): row for row in read_rows(path) if "error" not in row}
    wanted = [
        key({"name": one.name, "setting": asdict(one.setting), "arm": arm, "seed": seed})
        for one in chosen
        for arm in one.arms
        for seed in seeds
    ]
    return [rows[run] for run in wanted if run in rows]


if __name__ == "__main__":
    main()
