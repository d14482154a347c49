"""Small language models whose attention is written in many ways, and what it should come to.

The reference computes a model's attention in NumPy, in float64, from its weights; the scores are
taken from the patterns by loops over positions, from the definitions alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.functional.heads import HeadScores

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""(query, key, value, mask) to output, all `[batch, heads, tokens, features]`."""
SCORES = ("prefix_matching", "duplicate_token", "previous_token", "sink")
FIGURES = (*SCORES, *(f"second_copy {score}" for score in SCORES))
"""All scores, over all queries and over those with one earlier copy."""
VOCAB = 40
SMALL = {"period": 6, "copies": 3, "sequences": 3}
"""Tokens of a few milliseconds."""


def causal(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Call torch's function with `is_causal`, or with a mask where there is padding."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class Attention(nn.Module):
    """Attention of `heads` queries and `groups` keys."""

    def __init__(self, attend: Attend, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.attend = heads, groups, attend
        size = width // heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = (nn.Linear(width, groups * size) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            layer(x).unflatten(-1, (self.groups, -1)).transpose(1, 2)
            for layer in (self.key, self.value)
        )
        return self.out(self.attend(query, key, value, mask).transpose(1, 2).flatten(2))


class Tiny(nn.Module):
    """Embeddings, layers of attention on a residual stream, logits."""

    def __init__(
        self,
        attend: Attend = causal,
        *,
        layers: int = 2,
        heads: int = 4,
        groups: int | None = None,
        width: int = 24,
        context: int = 64,
        sharpness: float = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.positions = nn.Embedding(VOCAB, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(
            Attention(attend, width, heads, groups or heads) for _ in range(layers)
        )
        self.head = nn.Linear(width, VOCAB)
        with torch.no_grad():
            for layer in self.layers:
                layer.query.weight *= sharpness

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        mask = None
        if attention_mask is not None:
            length = tokens.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool).tril()
            mask = mask & (attention_mask != 0)[:, None, None, :]
        for layer in self.layers:
            x = x + layer(x, mask)
        return self.head(x)


def causal_bias(length: int, kept: np.ndarray | None = None) -> np.ndarray:
    """Return what is added to products: 0 or -inf, `[batch or 1, 1, queries, keys]`."""
    free = np.tril(np.ones((length, length), bool))[None, None]
    if kept is not None:
        free = free & kept[:, None, None, :]
    return np.where(free, 0.0, -np.inf)


def soft(products: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis; 0 where nothing is let through."""
    top = products.max(-1, keepdims=True)
    powers = np.exp(products - np.where(np.isfinite(top), top, 0.0))
    total = powers.sum(-1, keepdims=True)
    return np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)


def patterns_of(model: Tiny, tokens: Tensor, bias: np.ndarray) -> list[np.ndarray]:
    """Return the attention patterns of every layer, `[batch, heads, queries, keys]`, float64."""

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().double().numpy()

    def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
        return x @ array(layer.weight).T + array(layer.bias)

    found = []
    x = array(model.tokens.weight)[tokens.numpy()]
    x = x + array(model.positions.weight)[: tokens.shape[1]]
    for layer in model.layers:
        batch, length, width = x.shape
        size = width // layer.heads
        query, key, value = (linear(part, x) for part in (layer.query, layer.key, layer.value))
        full = np.broadcast_to(bias, (batch, layer.heads, length, length))
        pattern = np.zeros((batch, layer.heads, length, length))
        mixed = np.zeros((batch, length, width))
        for head in range(layer.heads):
            group = head * layer.groups // layer.heads
            own, theirs = (slice(i * size, (i + 1) * size) for i in (head, group))
            products = query[..., own] @ key[..., theirs].transpose(0, 2, 1) / math.sqrt(size)
            pattern[:, head] = soft(products + full[:, head])
            mixed[..., own] = pattern[:, head] @ value[..., theirs]
        found.append(pattern)
        x = x + linear(layer.out, mixed)
    return found


def naive_scores(
    patterns: Sequence[np.ndarray], tokens: Tensor, kept: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the scores of each layer and head by loops, `[layers, heads]` each."""
    rows = tokens.tolist()
    heads = patterns[0].shape[1]
    found = {name: np.zeros((len(patterns), heads)) for name in FIGURES}
    counts = dict.fromkeys(FIGURES, 0)
    for b, row in enumerate(rows):
        places = [p for p in range(len(row)) if kept is None or kept[b][p]]
        for i, p in enumerate(places):
            before = [j for j in range(i) if row[places[j]] == row[p]]
            keys = {
                "prefix_matching": [places[j + 1] for j in before],
                "duplicate_token": [places[j] for j in before],
            }
            if i > 0:
                keys["previous_token"], keys["sink"] = [places[i - 1]], [places[0]]
            if len(before) == 1:
                keys |= {f"second_copy {name}": chosen for name, chosen in keys.items()}
            for name, chosen in keys.items():
                if chosen:
                    counts[name] += 1
                for layer, pattern in enumerate(patterns):
                    for head in range(heads):
                        found[name][layer, head] += sum(pattern[b, head, p, k] for k in chosen)
    return {name: sums / counts[name] for name, sums in found.items()}


def figures_of(scores: HeadScores) -> dict[str, Tensor]:
    """Return what was measured, by the names of `FIGURES`."""
    found = {name: getattr(scores, name) for name in SCORES}
    return found | {f"second_copy {name}": value for name, value in scores.second_copy.items()}


def chances_of(scores: HeadScores) -> dict[str, Tensor]:
    """Return the chances by the names of `FIGURES`."""
    second = {f"second_copy {name}": v for name, v in scores.second_copy_chances.items()}
    return scores.chances | second


def assert_equal(found: HeadScores, want: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    for name, figure in figures_of(found).items():
        np.testing.assert_allclose(figure, want[name], rtol=0, atol=tolerance)
