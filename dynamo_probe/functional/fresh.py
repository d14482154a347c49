"""A model beside a freshly initialised one: copies that share nothing with the original."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dynamo_probe.anatomy.rehearsal import unnoticed
from dynamo_probe.anatomy.twin import devices_of, twin
from dynamo_probe.functional.initial import Initial, draw, record_initial


@dataclass(frozen=True, slots=True)
class Fresh:
    """A freshly initialised copy of a model.

    Attributes:
        model: the copy.
        drawn: the parameters that were drawn from recorded distributions.
        kept: the parameters that nothing initialises: they are the original's.
    """

    model: nn.Module
    drawn: tuple[str, ...]
    kept: tuple[str, ...]


def own_copy(model: nn.Module) -> nn.Module:
    """Copy a model with its weights, buffers and modes, without hooks.

    Tied parameters stay tied. Nothing that is done with the copy reaches the model.
    """
    with torch.inference_mode(False):
        copied = twin(model)
        for parameter in copied.parameters():
            if not is_lazy(parameter):
                parameter.data = parameter.data.clone()
    return copied


def fresh_copy(
    model: nn.Module,
    recorded: Mapping[str, Initial] | None = None,
    *,
    reset: bool = True,
    seed: int = 0,
) -> Fresh:
    """Copy a model and initialise the copy.

    Every module that has a `reset_parameters` is told to; that also resets the statistics of norms.
    A parameter that this does not write is drawn from its recorded distribution, such as one that a
    weight is computed from (weight norm).

    Args:
        model: the model; it stays as it is, as do all random states.
        recorded: distributions by parameter name, from `record_distributions` of the model while
            it was fresh.
        reset: False draws every parameter from its recorded distribution: right for a model that
            is not initialised by `reset_parameters`, such as one with normal(0, 0.02) weights.
        seed: seed of the random numbers.
    """
    copied = own_copy(model)
    given = recorded or {}
    drawn: list[str] = []
    kept: list[str] = []
    floating = {
        name: parameter
        for name, parameter in copied.named_parameters()
        if not is_lazy(parameter) and parameter.is_floating_point()
    }
    with seeded(model, seed), torch.no_grad():
        for parameter in floating.values():
            parameter.fill_(float("nan"))  # to see what is written
        for module in copied.modules():
            again = getattr(module, "reset_parameters", None)
            if callable(again):
                try:
                    again()
                except TypeError:
                    continue  # it wants arguments that only its author knows
        generator = torch.Generator().manual_seed(seed)
        originals = dict(model.named_parameters())
        for name, parameter in floating.items():
            if reset and not parameter.isnan().any():
                continue
            if name in given:
                parameter.copy_(draw(given[name], parameter.shape, generator, parameter.dtype))
                drawn.append(name)
            else:
                parameter.copy_(originals[name])
                kept.append(name)
    return Fresh(copied, tuple(drawn), tuple(kept))


def record_distributions(model: nn.Module) -> dict[str, Initial]:
    """Tell of each parameter of a fresh model the distribution it was drawn from.

    Parameters that are not of floating point, or hold no finite numbers, are left out.
    """
    return {
        name: record_initial(parameter)
        for name, parameter in model.named_parameters()
        if not is_lazy(parameter)
        and parameter.is_floating_point()
        and parameter.numel()
        and bool(parameter.isfinite().all())
    }


@contextmanager
def seeded(model: nn.Module, seed: int) -> Generator[None, None, None]:
    """Run with gradients, eagerly and with random numbers of one's own; put everything back."""
    with unnoticed(model):
        torch.default_generator.manual_seed(seed)
        for device in devices_of(model):
            backend = torch.get_device_module(device)
            current = backend.device(device) if hasattr(backend, "device") else nullcontext()
            with current:
                backend.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
