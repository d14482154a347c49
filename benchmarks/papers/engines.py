"""Many calls on several processes: of this machine, or of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

ENGINES = ("process", "ray")


def results(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int, engine: str
) -> Iterator[Any]:
    """Call a function with each job's arguments; yield what comes back, in the order it comes.

    Args:
        function: importable, like its arguments and results.
        jobs: the arguments of each call.
        workers: how many calls run at once. On Ray, processors of a cluster that is started here;
            one that `RAY_ADDRESS` names has its own number.
        engine: `process` (a pool of processes) or `ray`.

    Raises:
        ModuleNotFoundError: when Ray is asked for and not installed.
    """
    if engine == "ray":
        yield from _on_ray(function, jobs, workers)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(function, *job) for job in jobs]):
            yield future.result()


def _on_ray(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[Any]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Ray is not installed; pip install 'dynamo-probe[sweep]', or use the engine 'process'"
        ) from error
    started = not ray.is_initialized()
    if started:
        remote = "RAY_ADDRESS" in os.environ
        ray.init(num_cpus=None if remote else workers, include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=1)(lambda job: function(*job))
        waiting = [task.remote(job) for job in jobs]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    finally:
        if started:
            ray.shutdown()
