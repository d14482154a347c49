"""How many tokens a model knows, where that can be seen."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy


def vocabulary_of(model: nn.Module) -> int | None:
    """Return the number of rows of the model's token embedding; None where it cannot be known.

    It is that of `get_input_embeddings()` where the model has it (Hugging Face), of the only
    embedding there is, or of the only one that an output layer could be the reverse of: a `Linear`
    with a weight of the same shape. Else the caller has to say. A wrong answer does no harm: ids
    that an embedding does not have are refused before it is asked for them.
    """
    ask = getattr(model, "get_input_embeddings", None)
    if callable(ask):
        found = ask()
        if isinstance(found, nn.Embedding):
            return found.num_embeddings
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    shapes = {tuple(m.weight.shape) for m in linear if not is_lazy(m.weight)}
    reversible = [m for m in embeddings if tuple(m.weight.shape) in shapes]
    chosen = embeddings if len(embeddings) == 1 else reversible
    return chosen[0].num_embeddings if len(chosen) == 1 else None
