"""The cross-entropy of each token, from what a language model returned anyway."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dynamo_probe.functional import logits


def token_losses(output: Any, tokens: Tensor) -> Tensor | str:
    """Compute the next-token cross-entropy of each token, from the logits before it.

    Args:
        output: what the model returned, see `functional.logits.find_logits`.
        tokens: whole numbers [rows, T].

    Returns:
        float [rows, T], NaN at the first token of a row; or the reason why there is none.
    """
    found = logits.find_logits(output, tokens)
    if isinstance(found, str):
        return f"{found}: give losses=, a callable that returns the loss of each token"
    losses = logits.token_losses(found.detach(), tokens)
    return F.pad(losses, (1, 0), value=float("nan"))
