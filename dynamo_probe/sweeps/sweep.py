"""One function over a grid of settings and seeds."""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from dynamo_probe.sweeps.engines import Outcome, outcomes
from dynamo_probe.sweeps.progress import Progress
from dynamo_probe.sweeps.records import (
    Row,
    appending,
    canonical,
    expand,
    name_of,
    plain,
    read_rows,
    run_key,
    write_row,
)


class SweepFailed(RuntimeError):
    """Runs of a sweep failed; the message has their tracebacks."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep gave, in the order of the grid and then of the seeds.

    Attributes:
        rows: one for each run that is done: `settings`, `seed`, `result`, `seconds`, `attempts`,
            `versions`, `machine`, `time`.
        failed: one for each that is not, with `error` in place of `result`.
    """

    rows: tuple[Row, ...]
    failed: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        """Iterate over the runs that are done."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return how many runs are done."""
        return len(self.rows)

    def to_pandas(self) -> Any:
        """Return a DataFrame: a row for each run that is done; settings, seed, result as columns.

        Raises:
            ModuleNotFoundError: when pandas is not installed.
        """
        import pandas

        flat = []
        for row in self.rows:
            result = row["result"] if isinstance(row["result"], dict) else {"result": row["result"]}
            flat.append({**row["settings"], "seed": row["seed"], **result})
        return pandas.DataFrame(flat)

    def raise_for_failures(self) -> None:
        """Do nothing if every run is done.

        Raises:
            SweepFailed: otherwise, with the tracebacks.
        """
        if self.failed:
            texts = [f"{r['settings']}, seed {r['seed']}:\n{r['error']}" for r in self.failed]
            raise SweepFailed("\n\n".join([f"{len(texts)} runs failed", *texts]))


def sweep(
    fn: Callable[..., Any],
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    seeds: Sequence[int] = (0,),
    workers: int = 1,
    engine: str = "process",
    *,
    out: str | Path | None = None,
    retries: int = 1,
    threads: int = 1,
    address: str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Call `fn(**settings, seed=seed)` for every setting of a grid and every seed.

    With `out` each run is a line of JSON in that file, with its settings, versions and seed, as
    soon as it has ended. Runs that the file has are not made again: a sweep that was stopped, by
    Ctrl-C or by a power cut, goes on with the same call. A run that fails is made once more, and
    then recorded with its traceback; the next call makes it anew. A worker process that dies takes
    no other run along.

    Args:
        fn: a function at the top of a module. What it returns is recorded: numbers, strings, lists,
            dicts, dataclasses.
        grid: `{name: values}` for every combination, or a list of `{name: value}`.
        seeds: whole numbers, each given as `seed=`.
        workers: processes; 0 makes the runs in this one, one after the other.
        engine: `process`, or `ray` (extra `sweep`).
        out: file to record the runs in; None keeps nothing.
        retries: how often a failed run is made again.
        threads: of torch, in each worker.
        address: of a Ray cluster; None takes `RAY_ADDRESS`, or starts Ray on this machine.
        progress: show a live table on a terminal; elsewhere each run is logged (`dynamo_probe`).

    Returns:
        The rows of all runs, those made earlier included.

    Raises:
        TypeError: when settings are not made of what JSON knows.
        ValueError: when `fn` cannot be imported by other processes, or settings or seeds come
            twice.
        RuntimeError: when another sweep writes to `out`, or the script that calls this has no
            `if __name__ == "__main__":`.
        ModuleNotFoundError: when Ray is asked for and not installed.

    Example:
        >>> from dynamo_probe.sweeps.sweep import example
        >>> found = sweep(example, {"base": [2, 3]}, seeds=[1, 2], workers=0)
        >>> [(row["settings"]["base"], row["seed"], row["result"]["power"]) for row in found]
        [(2, 1, 2), (2, 2, 4), (3, 1, 3), (3, 2, 9)]
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a worker process has come to the call of sweep itself; put it under "
            'if __name__ == "__main__":'
        )
    function = name_of(fn)
    settings = expand(grid)
    seeds = list(seeds)
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise ValueError(f"the seeds are {seeds}; give whole numbers")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the seeds {list(seeds)} have one twice")
    runs = [(place, one, seed) for place, one in enumerate(settings) for seed in seeds]
    keys = [run_key(function, one, seed) for _, one, seed in runs]
    with ExitStack() as stack:
        path = None if out is None else Path(out)
        file = None if path is None else stack.enter_context(appending(path))
        found = {} if path is None else done_rows(path)
        shown = Progress(
            [canonical(one) for one in settings], [len(seeds)] * len(settings), progress
        )
        stack.enter_context(shown)
        wanted = [index for index, key in enumerate(keys) if key not in found]
        for index, key in enumerate(keys):
            if key in found:
                shown.known(runs[index][0])
        jobs = [((), {**runs[index][1], "seed": runs[index][2]}) for index in wanted]
        for outcome in outcomes(
            fn,
            jobs,
            workers,
            engine,
            retries=retries,
            threads=threads,
            address=address,
            begun=lambda number: shown.begin(runs[wanted[number]][0]),
        ):
            index = wanted[outcome.index]
            place, one, seed = runs[index]
            row = recorded(function, one, seed, outcome, file)
            found[keys[index]] = row
            what = f"{canonical(one)}, seed {seed}"
            shown.end(place, what, row.get("error") is not None, outcome.seconds)
    rows = [found[key] for key in keys if key in found]
    return SweepResult(
        tuple(row for row in rows if row.get("error") is None),
        tuple(row for row in rows if row.get("error") is not None),
    )


def recorded(
    function: str, settings: Mapping[str, Any], seed: int, outcome: Outcome, file: IO[str] | None
) -> Row:
    """Return the row of a run, and write it where there is a file."""
    row: Row = {"function": function, "settings": plain(settings), "seed": seed}
    error = outcome.error
    if error is None:
        try:
            canonical_result = plain(outcome.value)
            canonical({"result": _without_nan(canonical_result)})
            row["result"] = canonical_result
        except TypeError as refused:
            error = f"what it returned cannot be recorded: {refused}"
    if error is not None:
        row["error"] = error
    row |= {
        "attempts": outcome.attempts,
        "seconds": round(outcome.seconds, 3),
        "versions": versions(),
        "machine": platform.node(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if file is not None:
        write_row(file, row)
    return row


def done_rows(path: Path) -> dict[str, Row]:
    """Return the runs of a file that are done, by key; a later one counts."""
    return {
        run_key(row["function"], row["settings"], row["seed"]): row
        for row in read_rows(path)
        if "function" in row and row.get("error") is None
    }


def versions() -> dict[str, str]:
    """Return the versions that a figure may depend on."""
    import dynamo_probe

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "dynamo_probe": dynamo_probe.__version__,
        "machine": platform.machine(),
    }


def example(base: int, seed: int) -> dict[str, int]:
    """Return a power, for the example of `sweep`."""
    return {"power": base**seed}


def _without_nan(value: Any) -> Any:
    """Return a value whose NaN and infinities, which figures may be, are left out."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value
