"""Running a language model on tokens of our own, and reading its predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
        output: a tensor, a tuple with one of three axes, a mapping or an object with `logits`.
        tokens: what the model ran on, `[sequences, length]`.

    Raises:
        ValueError: when there are none, not one for each token, too few for the ids, or
            probabilities in their place.
    """
    found: Any = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, (tuple, list)):
        several = [part for part in output if isinstance(part, Tensor) and part.dim() == 3]
        if len(several) > 1:
            raise ValueError(
                f"the model returned {len(several)} tensors of three axes: which are the logits? "
                "Give call= a function of (model, tokens) that returns them"
            )
        found = several[0] if several else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() != 3:
        raise ValueError(
            f"the model returned a {type(output).__name__} without logits [sequences, length, "
            "vocabulary]; give call= a function of (model, tokens) that returns them"
        )
    if found.shape[:2] != tokens.shape:
        raise ValueError(
            f"the logits have shape {list(found.shape)} for tokens of shape {list(tokens.shape)}: "
            "there is not one for each token. Some models compute only the last one unless they "
            "are given targets; give call=lambda model, tokens: ..."
        )
    if tokens.numel() and int(tokens.max()) >= found.shape[2]:
        raise ValueError(
            f"there are ids up to {int(tokens.max())} and the model returned {found.shape[2]} "
            "logits for each token; lower vocab_size"
        )
    if bool((found >= 0).all()) and bool(((found.float().sum(-1) - 1).abs() < 0.01).all()):
        raise ValueError(
            "the model returned probabilities; give call=lambda model, tokens: model(tokens).log()"
        )
    return found


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of each token but the first, in nats, `[sequences, length - 1]`.

    Args:
        logits: `[sequences, length, vocabulary]`.
        tokens: `[sequences, length]`.
    """
    logits = logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(tokens.shape[0], -1)
