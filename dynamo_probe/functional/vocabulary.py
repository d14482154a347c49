"""How many tokens a model knows, where that can be seen."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dynamo_probe.functional.logits import find_logits
from dynamo_probe.functional.token_model import Call, device_of, run_on
from dynamo_probe.observation.apart import apart


def vocabulary_of(model: nn.Module, call: Call | None = None) -> int | None:
    """Return the number of rows of the model's token embedding; None where it cannot be known.

    It is that of `get_input_embeddings()` where the model has it (Hugging Face), of the only
    embedding there is, or of one with as many rows as the model returns logits for a token.

    Args:
        model: runs on two tokens of id 0, where there are several embeddings; it leaves no trace.
        call: runs the model on tokens, where `model(tokens)` does not.
    """
    ask = getattr(model, "get_input_embeddings", None)
    if callable(ask):
        found = ask()
        if isinstance(found, nn.Embedding):
            return found.num_embeddings
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    if len(rows) < 2:
        return rows[0] if rows else None
    if any(is_lazy(p) or p.is_meta for p in model.parameters()):
        return None
    tokens = torch.zeros(1, 2, dtype=torch.long, device=device_of(model))
    try:
        with apart(model):
            logits = find_logits(run_on(model, tokens, None, call), tokens)
    except ValueError:
        return None
    return logits.shape[-1] if not isinstance(logits, str) and logits.shape[-1] in rows else None
