"""The ways to attach: around a loop, as an object, or as a decorator."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

from torch import nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.instrument import Instrument, fresh_copy
from dynamo_probe.observation.parameters import held_by
from dynamo_probe.watch import Watch

P = ParamSpec("P")
R = TypeVar("R")


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    instruments: Instrument | Iterable[Instrument],
    *,
    log_dir: str | os.PathLike[str] | None = None,
    sinks: Sequence[Any] = (),
    probe_batch: Any = None,
    process_group: Any = None,
    seed: int = 0,
    on_error: Literal["warn", "raise"] = "warn",
    budget: float | Mapping[str, int] | None = None,
    axes: Mapping[str, str] | None = None,
    clocks: Mapping[str, Callable[[], float]] | None = None,
) -> Watch:
    """Attach instruments to a training loop.

    Args:
        model: the network; wrappers of `torch.compile` and data parallelism are looked through.
        optimizer: the optimizer that trains it, or several; the first one's steps are the clock.
        instruments: probes and treatments. Probes always read before treatments act.
        log_dir: where to write a TensorBoard log; None writes none.
        sinks: more places for readings: objects with `write` and `close`, a `SummaryWriter`, or a
            function that logs a dict, such as `wandb.log`, `mlflow.log_metrics` or `trackio.log`.
        probe_batch: inputs for probes that run the model themselves: a tensor, a tuple of
            arguments, a dict of keyword arguments, or a callable that returns one of these. Without
            it the inputs of the first training forward pass are kept where a probe needs them.
        process_group: the ranks over which statistics are reduced. None takes the group of a
            `DistributedDataParallel` wrapper or of a model sharded by `fully_shard`, and without
            them this process alone. The first rank writes the log.
        seed: seed of every random choice that an instrument makes.
        on_error: `warn` disables an instrument that fails, says so once, and lets training go on;
            `raise` is for tests.
        budget: the share of the training's time that the watch may take, such as 0.01. Probes that
            ride on the training then fire less often where they cost more; an event says how
            often. To repeat a run exactly, give what it chose: `{"dormancy": 4}` makes every fourth
            scheduled firing take place. Treatments are never moved.
        axes: what the axes of some layers' outputs are, as `{shell pattern of module names: axes}`,
            such as `{"fc*": "replica batch unit"}`. Layers of torch need no such word. It is for
            modules of your own: `unit` is the axis of the units, `replica` that of independent
            networks that are stacked in one module, and every other name is samples. Replicas are
            told apart by `Dormancy`; other instruments leave such layers out, with the reason.
        clocks: other ways to count time than updates, as `{name: function that returns the time}`,
            such as `{"environment steps": lambda: steps}`; asked at updates with readings, and
            found under `clock/<name>`. The Dynamo tab can put any of them on its time axis.

    Returns:
        The attached `Watch`.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when the optimizer does not hold the model's parameters, the model has no hidden
            layer, or an instrument cannot work here. The message says the fix.
        OSError: when the log directory cannot be written.
    """
    listed = instruments if isinstance(instruments, Instrument) else list(instruments)
    return Watch(
        model,
        optimizer,
        listed,
        log_dir=log_dir,
        sinks=sinks,
        probe_batch=probe_batch,
        process_group=process_group,
        seed=seed,
        on_error=on_error,
        budget=budget,
        axes=axes,
        clocks=clocks,
    )


def watched(
    instruments: Instrument | Iterable[Instrument], **keywords: Any
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a training function: model and optimizer are found among its arguments by type.

    Among the arguments, also inside lists, tuples and dicts, every optimizer is taken that holds
    parameters of one of the modules, and the module of which it holds the most. Each call gets
    fresh copies of the instruments. The watch of the newest call is at `function.watch`.

    Args:
        instruments: as for `dynamo_probe.watch`; not attached anywhere.
        **keywords: as for `dynamo_probe.watch`.

    Returns:
        The decorator. It raises TypeError on generators and coroutines, whose body runs later.

    Raises:
        ValueError: at the call, when no module and optimizer that belong together are among the
            arguments.

    Example:
        >>> import dynamo_probe as dp
        >>> @dp.watched([dp.Dormancy(every=100)])
        ... def train(model, optimizer, batches): ...
    """
    templates = [instruments] if isinstance(instruments, Instrument) else list(instruments)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{function.__name__} is a generator or coroutine: its body runs after the call; "
                "use `with dp.watch(...)` inside it"
            )

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            model, optimizers = _found_in((args, kwargs))
            fresh = [fresh_copy(instrument) for instrument in templates]
            with watch(model, optimizers, fresh, **keywords) as current:
                run.watch = current  # type: ignore[attr-defined]
                return function(*args, **kwargs)

        return run

    return decorate


def _found_in(arguments: Any) -> tuple[nn.Module, list[Optimizer]]:
    """Return the module that the optimizers among the arguments train, and those optimizers."""
    things = list(_flattened(arguments))
    modules = list({id(t): t for t in things if isinstance(t, nn.Module)}.values())
    optimizers = list({id(t): t for t in things if isinstance(t, Optimizer)}.values())
    held = set[int]().union(*map(held_by, optimizers))

    def trained(module: nn.Module) -> int:
        return sum(id(p) in held for p in module.parameters())

    best = max(modules, key=trained, default=None)
    if best is None or trained(best) == 0:
        raise ValueError(
            f"among the arguments are {len(modules)} modules and {len(optimizers)} optimizers, and "
            "no optimizer holds parameters of a module; pass the model and its optimizer to the "
            "function, or use `with dp.watch(model, optimizer, ...)`"
        )
    ours = {id(p) for p in unwrap(best).parameters()}
    return best, [o for o in optimizers if not ours.isdisjoint(held_by(o))]


def _flattened(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        for item in tree.values():
            yield from _flattened(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _flattened(item)
    else:
        yield tree
