"""How many tokens a model knows, where that can be seen."""

from __future__ import annotations

from torch import nn


def vocabulary_of(model: nn.Module) -> int | None:
    """Return the number of rows of the model's token embedding; None where it cannot be known.

    It is that of `get_input_embeddings()` where the model has it (Hugging Face), or of the only
    embedding there is. Of several, one may be of positions: then the caller has to say.
    """
    ask = getattr(model, "get_input_embeddings", None)
    if callable(ask):
        found = ask()
        if isinstance(found, nn.Embedding):
            return found.num_embeddings
    embeddings = {id(m): m for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = [
        m
        for m in embeddings.values()
        if any(isinstance(o, nn.Linear) and o.weight is m.weight for o in model.modules())
    ]
    chosen = tied or list(embeddings.values())
    return chosen[0].num_embeddings if len(chosen) == 1 else None
