"""The cross-entropy of each token, from what a language model returned anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 22
"""Logits that are turned into losses at a time."""


def token_losses(output: Any, tokens: Tensor) -> Tensor | str:
    """Compute the next-token cross-entropy of each token, from the logits before it.

    Args:
        output: what the model returned: logits, a tuple with logits, or a mapping or an object with
            `logits`; logits are [rows, T, vocabulary].
        tokens: whole numbers [rows, T].

    Returns:
        float32 [rows, T], NaN at the first token of a row; or the reason why there is none.
    """
    logits = _logits(output, tokens.shape)
    if logits is None:
        return (
            f"the model's output has no logits [{tokens.shape[0]}, {tokens.shape[1]}, vocabulary]: "
            "give losses=, a callable that returns the loss of each token"
        )
    vocabulary = logits.shape[-1]
    if int(tokens.max()) >= vocabulary:
        return (
            f"the output has {vocabulary} classes and token {int(tokens.max())} occurs: these are "
            "not logits over the vocabulary. Give losses="
        )
    logits = logits.detach().reshape(*tokens.shape, vocabulary)
    losses = torch.full(tokens.shape, float("nan"), device=logits.device)
    rows = max(1, _CHUNK // max(1, tokens.shape[1] * vocabulary))
    for begin in range(0, tokens.shape[0], rows):
        part = logits[begin : begin + rows, :-1].float().movedim(-1, 1)
        targets = tokens[begin : begin + rows, 1:].to(part.device, torch.int64)
        losses[begin : begin + rows, 1:] = F.cross_entropy(part, targets, reduction="none")
    return losses


def _logits(output: Any, shape: torch.Size) -> Tensor | None:
    if isinstance(output, Mapping):
        candidates = [output.get("logits")]
    elif isinstance(output, (tuple, list)):
        candidates = list(output)
    else:
        candidates = [output if isinstance(output, Tensor) else getattr(output, "logits", None)]
    for one in candidates:
        if isinstance(one, Tensor) and one.is_floating_point() and one.dim() >= 2:
            whole = one.shape[:-1] == shape or (one.shape[:-1] == shape[1:] and shape[0] == 1)
            if whole:
                return one
    return None
