"""Induction heads form in a transformer of two layers, with and without data that repeat.

The task is copying at lags that differ from sequence to sequence, which no position tells: an
attention head has to look for the earlier copy (Olsson et al. 2022). Two runs of as many updates:
`fresh` sees every sequence once, `repeated` has half of its sequences from a small pool (Hernandez
et al. 2022).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dynamo_probe as dp
from dynamo_probe.data import CopyTask, RepeatedMixture

VOCABULARY, LENGTH, BATCH, POOL = 65, 64, 32, 80
WIDTH, HEADS = 64, 4


def run(
    log_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    updates: int = 400,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Train on fresh and on repeated data; see `demos.Demo.run` for the arguments."""
    samples = updates * BATCH
    task = CopyTask(samples, seed=seed, lag=(8, 32), length=LENGTH, vocab_size=VOCABULARY)
    pool = next(size for size in range(min(POOL, samples // 4), 0, -1) if samples // 2 % size == 0)
    mixture = RepeatedMixture(task, 0.5, pool, samples // 2 // pool, seed=seed)
    for number, (name, data) in enumerate((("fresh", task), ("repeated", mixture))):
        model = Transformer(torch.Generator().manual_seed(seed))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        every = max(1, updates // 20)
        instruments = [
            dp.Induction(every=every, period=16, top=2, dense=0),
            dp.Repetition(every=every, ngram=60),
        ]
        with dp.watch(model, optimizer, instruments, log_dir=Path(log_dir, name), seed=seed):
            for update, tokens in enumerate(DataLoader(data, BATCH)):
                logits = model(tokens)[:, :-1].flatten(0, 1)
                loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if update % 10 == 0:
                    progress(number * updates + update)
    progress(2 * updates)


class Transformer(nn.Module):
    """Two layers of causal attention on a residual stream, nothing else."""

    def __init__(self, generator: torch.Generator) -> None:
        """Draw the weights."""
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, VOCABULARY, bias=False)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Embedding):
                    module.weight.normal_(std=0.2, generator=generator)
                elif isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    module.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids, `[batch, time]`, to logits, `[batch, time, vocabulary]`."""
        stream = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            stream = stream + layer(stream)
        return self.logits(self.norm(stream))


class Attention(nn.Module):
    """Causal attention with several heads."""

    def __init__(self) -> None:
        """Make the projections."""
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inward = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.outward = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        """Map `[batch, time, width]` to the same."""
        projected = self.inward(self.norm(stream)).unflatten(-1, (3, HEADS, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.outward(mixed.transpose(1, 2).flatten(2))
