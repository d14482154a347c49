"""Calls of a function on several processes, of this machine or of a Ray cluster.

A call that fails is made once more; one that fails again is reported with its traceback, and so is
one whose process dies. Neither touches any other call.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

ENGINES = ("process", "ray")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call.

    Attributes:
        index: its place among the jobs.
        value: what it returned; None where it failed.
        error: the traceback of its last attempt, or how its process ended; None where it is done.
        attempts: how often it was made.
        seconds: wall-clock time of the last attempt.
    """

    index: int
    value: Any
    error: str | None
    attempts: int
    seconds: float


Job = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""


def outcomes(
    function: Callable[..., Any],
    jobs: Sequence[Job],
    workers: int,
    engine: str = "process",
    *,
    retries: int = 1,
    threads: int = 1,
    address: str | None = None,
    begun: Callable[[int], None] = lambda index: None,
) -> Iterator[Outcome]:
    """Call a function with each job's arguments; yield what becomes of it, as it comes.

    Args:
        function: importable, like its arguments and what it returns.
        jobs: the arguments.
        workers: how many calls run at once; 0 makes them in this process, one after the other. On
            Ray, processors of a cluster that is started here.
        engine: `process` or `ray`.
        retries: how often a failed call is made again.
        threads: of torch, in each worker process.
        address: of a Ray cluster that runs already; None takes `RAY_ADDRESS`, or starts one here.
        begun: called with the index of each call that begins.

    Raises:
        ValueError: when there is no such engine, or a number is negative.
        ModuleNotFoundError: when Ray is asked for and not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; give one of {', '.join(ENGINES)}")
    if workers < 0 or retries < 0:
        raise ValueError(f"workers is {workers} and retries {retries}; give 0 or more")
    if engine == "ray":
        yield from _on_ray(function, jobs, workers, retries, threads, address, begun)
    elif workers == 0:
        for index, job in enumerate(jobs):
            begun(index)
            yield _tried(function, index, job, retries)
    else:
        yield from _on_processes(function, jobs, min(workers, len(jobs)), retries, threads, begun)


def _tried(function: Callable[..., Any], index: int, job: Job, retries: int) -> Outcome:
    for attempt in range(1, retries + 2):
        value, error, seconds = _call(function, job)
        if error is None or attempt > retries:
            return Outcome(index, value, error, attempt, seconds)
    raise AssertionError


def _call(function: Callable[..., Any], job: Job) -> tuple[Any, str | None, float]:
    """Return the value, or the traceback, and the seconds that it took."""
    started = time.perf_counter()
    value, error = None, None
    try:
        value = function(*job[0], **job[1])
    except (Exception, SystemExit):
        error = traceback.format_exc()
    return value, error, time.perf_counter() - started


class _Worker:
    """A process of its own, which makes one call at a time."""

    def __init__(self, function: Callable[..., Any], threads: int) -> None:
        """Start it; it imports the function's module when the first job comes."""
        # Spawned and not forked: threads and locks of this process do not come along. No daemon:
        # those may not have processes of their own, such as a loader's workers.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads), daemon=False)
        self.process.start()
        theirs.close()
        self._function = function
        self.index = -1
        self._started = 0.0

    def take(self, index: int, job: Job) -> None:
        """Begin a call."""
        self.index, self._started = index, time.perf_counter()
        self.connection.send((self._function, job))

    def answer(self) -> tuple[Any, str | None, float, bool]:
        """Return value, error, seconds, and whether the process goes on."""
        elapsed = time.perf_counter() - self._started
        try:
            return *self.connection.recv(), True
        except (EOFError, OSError):  # also where it died while it was answering
            self.process.kill()
            self.process.join()
            ending = _ending(self.process.exitcode)
            return None, f"its process ended: {ending}", elapsed, False
        except Exception:
            # What came back cannot be read here, such as an object of a class that is not here.
            return None, traceback.format_exc(), elapsed, True

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, threads: int) -> None:
    """Make the calls that come, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            function, job = connection.recv()
        except EOFError:
            return
        except Exception:
            connection.send((None, traceback.format_exc(), 0.0))
            continue
        answer = _call(function, job)
        try:
            connection.send(answer)
        except OSError:  # nobody is there to hear it
            return
        except Exception:  # what it returned cannot be pickled
            connection.send((None, traceback.format_exc(), answer[2]))


def _on_processes(
    function: Callable[..., Any],
    jobs: Sequence[Job],
    workers: int,
    retries: int,
    threads: int,
    begun: Callable[[int], None],
) -> Iterator[Outcome]:
    waiting = deque((index, 1) for index in range(len(jobs)))
    idle = [_Worker(function, threads) for _ in range(workers)]
    busy: dict[Any, tuple[_Worker, int]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                index, attempt = waiting.popleft()
                worker = idle.pop()
                try:
                    worker.take(index, jobs[index])
                except OSError:  # it died while it had nothing to do: no attempt of this call
                    worker.stop()
                    idle.append(_Worker(function, threads))
                    waiting.appendleft((index, attempt))
                    continue
                if attempt == 1:
                    begun(index)
                busy[worker.connection] = (worker, attempt)
            for connection in wait(list(busy)):
                worker, attempt = busy.pop(connection)
                value, error, seconds, alive = worker.answer()
                if not alive:
                    worker.stop()
                    worker, index = _Worker(function, threads), worker.index
                else:
                    index = worker.index
                idle.append(worker)
                if error is not None and attempt <= retries:
                    waiting.append((index, attempt + 1))
                else:
                    yield Outcome(index, value, error, attempt, seconds)
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.stop()


def _on_ray(
    function: Callable[..., Any],
    jobs: Sequence[Job],
    workers: int,
    retries: int,
    threads: int,
    address: str | None,
    begun: Callable[[int], None],
) -> Iterator[Outcome]:
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Ray is not installed; pip install 'dynamo-probe[sweep]', or use engine='process'"
        ) from error
    address = address or os.environ.get("RAY_ADDRESS")
    started = not ray.is_initialized()
    if started:
        ray.init(
            address=address,
            num_cpus=None if address else max(workers, 1),
            include_dashboard=False,
            log_to_driver=False,
        )
    try:
        # A function that fails is called again here, where the attempts are counted.
        task = ray.remote(num_cpus=1, max_retries=0)(_call_with_threads)
        running = {}
        for index, job in enumerate(jobs):
            begun(index)
            running[task.remote(function, job, threads)] = (index, 1, time.perf_counter())
        while running:
            (done,), _ = ray.wait(list(running))
            index, attempt, began = running.pop(done)
            try:
                value, error, seconds = ray.get(done)
            except ray.exceptions.RayError as died:
                value, error = None, f"its process ended: {died}"
                seconds = time.perf_counter() - began  # waiting for a processor included
            if error is not None and attempt <= retries:
                again = task.remote(function, jobs[index], threads)
                running[again] = (index, attempt + 1, time.perf_counter())
            else:
                yield Outcome(index, value, error, attempt, seconds)
    finally:
        if started:
            ray.shutdown()


def _call_with_threads(
    function: Callable[..., Any], job: Job, threads: int
) -> tuple[Any, str | None, float]:
    import torch

    torch.set_num_threads(threads)
    return _call(function, job)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"killed by {signal.Signals(-code).name} (out of memory?)"
        except ValueError:
            pass
    return f"exit code {code}"
