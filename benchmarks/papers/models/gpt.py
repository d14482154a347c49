"""A small GPT to experiment on: pre-norm, causal, `scaled_dot_product_attention`, nothing more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """What a GPT looks like.

    Attributes:
        vocab_size: token ids are below it.
        context: most tokens of a sequence.
        width: of the residual stream; a multiple of the heads, with RoPE of twice the heads.
        layers: blocks.
        heads: of each block.
        mlp: whether a block has an MLP of four times the width after its attention.
        rope: rotary positions (Su et al. 2021) instead of learned ones.
    """

    vocab_size: int
    context: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    mlp: bool = True
    rope: bool = False

    def __post_init__(self) -> None:
        multiple = 2 * self.heads if self.rope else self.heads
        if self.width % multiple:
            raise ValueError(f"the width is {self.width}; give a multiple of {multiple}")


class GPT(nn.Module):
    """Logits for the token after each token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.positions = None if shape.rope else nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        for embedding in (self.tokens, self.positions):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.2)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the residual stream before the first block, `[batch, time, width]`."""
        if tokens.shape[1] > self.shape.context:
            raise ValueError(f"{tokens.shape[1]} tokens; the context is {self.shape.context}")
        if self.positions is None:
            return self.tokens(tokens)
        return self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids `[batch, time]` to logits `[batch, time, vocab_size]`."""
        stream = self.embed(tokens)
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))

    @property
    def size(self) -> int:
        """Parameters without the embeddings and the output layer, as the scaling laws count."""
        return sum(p.numel() for part in (self.blocks, self.norm) for p in part.parameters())


class Block(nn.Module):
    """Attention and, unless left out, an MLP; each adds to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.mlp = None
        if shape.mlp:
            self.mlp = nn.Sequential(
                nn.LayerNorm(shape.width),
                nn.Linear(shape.width, 4 * shape.width),
                nn.GELU(),
                nn.Linear(4 * shape.width, shape.width),
            )

    def forward(self, stream: Tensor) -> Tensor:
        """Map `[batch, time, width]` to the same."""
        stream = stream + self.attention(self.attention_norm(stream))
        return stream if self.mlp is None else stream + self.mlp(stream)


class Attention(nn.Module):
    """Causal attention with several heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.rope = shape.heads, shape.rope
        self.inward = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.outward = nn.Linear(shape.width, shape.width, bias=False)

    def project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys (rotated where RoPE is on) and values, `[batch, head, time, d]`."""
        three = rearrange(
            self.inward(normed), "batch time (three head d) -> three batch head time d",
            three=3, head=self.heads,
        )  # fmt: skip
        queries, keys, values = three.unbind()
        if self.rope:
            queries, keys = rotated(queries), rotated(keys)
        return queries, keys, values

    def forward(self, normed: Tensor) -> Tensor:
        """Map `[batch, time, width]` to the same."""
        mixed = F.scaled_dot_product_attention(*self.project(normed), is_causal=True)
        return self.outward(rearrange(mixed, "batch head time d -> batch time (head d)"))


def rotated(vectors: Tensor) -> Tensor:
    """Rotate the pair (i, i + d/2) at time t by the angle t * 10000^(-2i/d) (Su et al. 2021)."""
    time, d = vectors.shape[-2:]
    rates = 10_000.0 ** (-torch.arange(0, d, 2, device=vectors.device) / d)
    angles = torch.arange(time, device=vectors.device)[:, None] * rates
    first, second = vectors.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
