"""Runs of several seconds each, on two processes."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import pytest

Runs = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def executor() -> Iterator[Executor | None]:
    """Two processes; none where the tests themselves are spread over processes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        yield None
        return
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="session")
def run_seeds(executor: Executor | None) -> Runs:
    """Call run(arm, seed, setting=setting) for the seeds 1 to 3; return what came of it."""

    def run_seeds(jobs: list[tuple[Any, str, Any]]) -> list[list[Any]]:
        calls = [(run, arm, seed, setting) for run, arm, setting in jobs for seed in (1, 2, 3)]
        if executor is None:
            results = [run(arm, seed, setting=setting) for run, arm, seed, setting in calls]
        else:
            futures = [executor.submit(r, arm, s, setting=setting) for r, arm, s, setting in calls]
            results = [future.result() for future in futures]
        return [results[i : i + 3] for i in range(0, len(results), 3)]

    return run_seeds
