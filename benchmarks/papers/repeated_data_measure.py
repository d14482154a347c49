"""What is measured of a GPT during a run on repeated data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.papers.models.gpt import GPT

BATCH = 128


def losses(model: GPT, tokens: Tensor) -> Tensor:
    """Return the loss at each token after the first, `[samples, time - 1]`, in nats."""
    found = []
    for batch in tokens.split(BATCH):
        logits = model(batch[:, :-1])
        found.append(F.cross_entropy(logits.mT, batch[:, 1:], reduction="none"))
    return torch.cat(found)


def copy_loss(model: GPT, copies: Tensor, lags: Tensor) -> float:
    """Return the mean loss on the copies of segments, from the second token of copy 2 on.

    Where the second copy begins cannot be known, so its first token is not counted.
    """
    known = torch.arange(1, copies.shape[1]) > lags[:, None]
    return losses(model, copies)[known].mean().item()


def random_copies(vocab_size: int, period: int, copies: int, sequences: int) -> Tensor:
    """Return random tokens, all different in a copy, repeated; `[sequences, period * copies]`."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(vocab_size, generator=generator)[:period] for _ in range(sequences)]
    return torch.stack(rows).repeat(1, copies)
