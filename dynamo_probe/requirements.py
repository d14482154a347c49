"""What a user's call has to fulfil; each refusal says the fix."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.layer import units_of
from dynamo_probe.instrument import Instrument, Treatment
from dynamo_probe.observation.parameters import held_by


def check_model(model: Any, declared: Container[str] = ()) -> None:
    """Refuse what cannot be watched.

    Args:
        model: whatever was given.
        declared: names of modules that the user says have units.

    Raises:
        TypeError: when it is not a module.
        ValueError: when it has no hidden layer, or is a stage of a pipeline.
    """
    if any(kind.__name__ == "_PipelineStageBase" for kind in type(model).__mro__):
        raise ValueError(
            "the model is a stage of a pipeline: no rank sees all layers of an update. Watch a run "
            "without pipelining"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    closed = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
    layers = [
        name
        for name, module in model.named_modules()
        if units_of(module) or isinstance(module, closed) or name in declared
    ]
    if len(layers) < 2:
        what = (
            f"its only layer, {layers[0] or 'the model'}, is the output" if layers else "no layer"
        )
        raise ValueError(
            f"the model has no hidden layer ({what}); watch a network with at least two Linear or "
            "Conv layers"
        )


def check_optimizers(model: nn.Module, given: Any) -> tuple[Optimizer, ...]:
    """Return the optimizers as a tuple.

    Raises:
        TypeError: when one is not a torch optimizer.
        ValueError: when one holds no parameter of the model.
    """
    listed = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    optimizers = tuple(_inside(optimizer) for optimizer in listed)
    if not optimizers:
        raise ValueError("no optimizer was given; give the one that trains the model")
    ours = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"the optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer"
            )
        if ours.isdisjoint(held_by(optimizer)):
            raise ValueError(
                f"the optimizer ({type(optimizer).__name__}) does not hold any of the model's "
                "parameters; make it with model.parameters(), after the model was moved or rebuilt"
            )
    return optimizers


def _inside(optimizer: Any) -> Any:
    """Return the torch optimizer inside wrappers such as Accelerate's, whose hooks do not fire."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def check_instruments(given: Instrument | Sequence[Instrument]) -> list[Instrument]:
    """Return the instruments, probes first, each with a name of its own.

    Raises:
        TypeError: when one is not an instrument, or is a class and not an object.
        ValueError: when there is none, or one is attached to two watches.
    """
    listed = [given] if isinstance(given, Instrument) else list(given)
    if not listed:
        raise ValueError("no instrument was given; give some, such as [dp.Dormancy(every=100)]")
    for instrument in listed:
        if isinstance(instrument, type):
            raise TypeError(f"{instrument.__name__} is a class; call it: {instrument.__name__}()")
        if not isinstance(instrument, Instrument):
            raise TypeError(
                f"{instrument!r} is not an instrument; derive it from dp.Probe or dp.Treatment"
            )
        if instrument.attached:
            raise ValueError(
                f"this {type(instrument).__name__} is or was attached to a watch; make a new one"
            )
    for instrument in listed:
        instrument.attached = True
    _number(listed)
    return sorted(listed, key=lambda instrument: isinstance(instrument, Treatment))


def _number(instruments: Iterable[Instrument]) -> None:
    taken: dict[str, int] = {}
    for instrument in instruments:
        name = instrument.name
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            instrument.name = f"{name}-{taken[name]}"
