"""Running a language model on tokens of our own, and reading its predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dynamo_probe.functional.logits import find_logits
from dynamo_probe.functional.unmeasurable import Unmeasurable

Call = Callable[[nn.Module, Tensor], Any]
"""Runs a model on tokens `[sequences, length]`, for models that take other arguments."""


def device_of(model: nn.Module) -> torch.device:
    """Return where the tokens of a model have to be."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def run_on(
    model: nn.Module, tokens: Tensor, attention_mask: Tensor | None = None, call: Call | None = None
) -> Any:
    """Run a model on tokens.

    Args:
        model: called as `model(tokens)`, or `model(tokens, attention_mask=...)`.
        tokens: int64 `[sequences, length]`.
        attention_mask: `[sequences, length]`, 0 at padding; None for none.
        call: how to run it instead.

    Raises:
        ValueError: when the model fails, with what may be the matter.
    """
    context = _context(model)
    if context is not None and tokens.shape[1] > context:
        raise ValueError(
            f"the sequences have {tokens.shape[1]} tokens and the model's context is {context}; "
            "lower period or copies"
        )
    try:
        with _CheckedIds():
            if call is not None:
                return call(model, tokens)
            if attention_mask is not None:
                return model(tokens, attention_mask=attention_mask)
            return model(tokens)
    except Unmeasurable:
        raise
    except Exception as error:
        raise ValueError(
            f"the model failed on tokens of shape {list(tokens.shape)} "
            f"({type(error).__name__}: {error}). {_advice(model, error)}"
        ) from error


class _CheckedIds(TorchFunctionMode):
    """Refuses ids that an embedding does not have: on a GPU they would end the process."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.embedding:
            ids, weight = args[:2]  # torch hands them on by position
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < weight.shape[0]:
                raise IndexError(
                    f"there are ids from {int(ids.min())} to {int(ids.max())} for "
                    f"{weight.shape[0]} embeddings"
                )
        return func(*args, **(kwargs or {}))


def _context(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "block_size"):
        found = getattr(config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def _advice(model: nn.Module, error: Exception) -> str:
    kinds = {p.dtype for p in model.parameters()}
    if torch.float16 in kinds and device_of(model).type == "cpu" and "Half" in str(error):
        return "The CPU has no float16 for this: use bfloat16 or float32 there"
    if isinstance(error, TypeError):
        return "If it takes other arguments, give call=lambda model, tokens: ..."
    return (
        "If its context is shorter, lower period or copies; if its vocabulary is smaller, lower "
        "vocab_size; if it takes other arguments, give call=lambda model, tokens: ..."
    )


def logits_of(output: Any, tokens: Tensor) -> Tensor:
    """Return the logits in a model's output, `[sequences, length, vocabulary]`.

    Args:
        output: see `find_logits`.
        tokens: what the model ran on, `[sequences, length]`.

    Raises:
        ValueError: when there are none that can be trusted; with the fix.
    """
    found = find_logits(output, tokens)
    if isinstance(found, str):
        raise ValueError(
            f"{found}. Give call= a function of (model, tokens) that returns the logits; where the "
            "ids are too many, lower vocab_size"
        )
    return found
