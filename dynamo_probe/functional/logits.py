"""The logits in what a language model returns, and the loss of each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 22
"""Logits that are turned into losses at a time."""


def find_logits(output: Any, tokens: Tensor) -> Tensor | str:
    """Return the logits in a model's output, or why there are none that can be trusted.

    Args:
        output: a tensor, a tuple with one of three axes, a mapping or an object with `logits`.
        tokens: what the model ran on, `[sequences, length]`.

    Returns:
        `[sequences, length, vocabulary]`; or a reason: there are none, not one for each token, too
        few for the ids, or probabilities in their place.
    """
    found: Any = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, (tuple, list)):
        several = [p for p in output if isinstance(p, Tensor) and p.dim() == _axes(p, tokens)]
        if len(several) > 1:
            return f"the model returned {len(several)} tensors of three axes: which are the logits?"
        found = several[0] if several else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if (
        not isinstance(found, Tensor)
        or not found.is_floating_point()
        or found.dim() != _axes(found, tokens)
    ):
        return (
            f"the model returned a {type(output).__name__} without logits [sequences, length, "
            "vocabulary]"
        )
    found = found[None] if found.dim() == 2 else found
    if found.shape[:2] != tokens.shape:
        return (
            f"the logits have shape {list(found.shape)} for tokens of shape {list(tokens.shape)}: "
            "there is not one for each token. Some models compute only the last one unless they "
            "are given targets"
        )
    if tokens.numel() and int(tokens.max()) >= found.shape[2]:
        return (
            f"there are ids up to {int(tokens.max())} and the model returned {found.shape[2]} "
            "logits for each token"
        )
    if bool((found >= 0).all()) and bool(((found.float().sum(-1) - 1).abs() < 0.01).all()):
        return "the model returned probabilities and no logits"
    return found


def _axes(found: Tensor, tokens: Tensor) -> int:
    """Return how many axes logits have: one less where a single sequence has no batch axis."""
    return 2 if len(tokens) == 1 and found.shape[:-1] == tokens.shape[1:] else 3


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of each token but the first, in nats, `[sequences, length - 1]`.

    Args:
        logits: `[sequences, length, vocabulary]`.
        tokens: `[sequences, length]`.

    Returns:
        float64 where the logits are, else float32.
    """
    exact = logits.dtype if logits.dtype == torch.float64 else torch.float32
    losses = logits.new_empty(tokens.shape[0], tokens.shape[1] - 1, dtype=exact)
    rows = max(1, CHUNK // max(1, logits[0].numel()))
    for begin in range(0, len(tokens), rows):
        part = logits[begin : begin + rows, :-1].to(exact)
        targets = tokens[begin : begin + rows, 1:].to(part.device, torch.int64)
        losses[begin : begin + rows] = F.cross_entropy(part.mT, targets, reduction="none")
    return losses
