"""What a user gives to `Repetition`: settings, tokens, losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_probe.observation.inputs import Inputs
from dynamo_probe.observation.sketch import LEAST, SHORTEST


def as_batches(given: Any) -> list[Tensor]:
    """Read what `tokens=` returned.

    Returns:
        Whole numbers [rows, T], one tensor for each micro-batch.

    Raises:
        TypeError: when they are no whole numbers.
        ValueError: when they have another number of dimensions.
    """
    if given is None:
        return []
    if isinstance(given, (list, tuple)) and all(isinstance(g, (Tensor, np.ndarray)) for g in given):
        return [batch for one in given for batch in as_batches(one)]
    tokens = torch.as_tensor(given).detach().cpu()
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens= returned {tokens.dtype}; return the token ids, whole numbers")
    if tokens.dim() not in (1, 2):
        raise ValueError(f"tokens= returned shape {list(tokens.shape)}; return [rows, T]")
    return [tokens.reshape(-1, tokens.shape[-1])] if tokens.numel() else []


def give_losses(batches: list[Inputs], given: Any) -> None:
    """Share out what `losses=` returned among the micro-batches.

    Raises:
        ValueError: when it has another shape.
    """
    losses = torch.as_tensor(given).detach().cpu().double()
    shapes = [list(batch.tokens.shape) for batch in batches]
    rows = sum(shape[0] for shape in shapes)
    if any(list(losses.shape) != [rows, shape[1]] for shape in shapes):
        raise ValueError(
            f"losses= returned shape {list(losses.shape)} for tokens of {shapes}; return the loss "
            "of each token, [rows, T], NaN where there is none"
        )
    for batch, part in zip(batches, losses.split([shape[0] for shape in shapes]), strict=True):
        batch.losses = part


def check(
    tokens: Any, ngram: int, memory: int, pad: Any, losses: Any, held_out: Any, parameters: Any
) -> None:
    """Refuse settings of `Repetition` that make no sense.

    Raises:
        TypeError: when something cannot be called that should be.
        ValueError: when a number is out of range.
    """
    for name, given in (("tokens", tokens), ("held_out", held_out)):
        if given is not None and not callable(given):
            raise TypeError(
                f"{name} is a {type(given).__name__}; give a callable without arguments"
            )
    if not isinstance(losses, bool) and not callable(losses):
        raise TypeError(f"losses is a {type(losses).__name__}; give True, False or a callable")
    if ngram < SHORTEST:
        raise ValueError(
            f"ngram is {ngram}; give {SHORTEST} or more: shorter runs repeat by chance"
        )
    if memory < LEAST:
        raise ValueError(f"memory is {memory} bytes; give {LEAST} or more, such as 8 << 20")
    if pad is not None and (isinstance(pad, bool) or not isinstance(pad, int) or pad < 0):
        raise ValueError(f"pad is {pad!r}; give the id of the padding token, 0 or more, or None")
    if parameters is not None and not parameters > 0:
        raise ValueError(f"parameters is {parameters}; give N, the model's number of parameters")
