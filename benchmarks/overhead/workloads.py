"""The three networks that costs are measured on, and their training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import GPT, Block, mlp


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, its optimizer and one update."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    update: Callable[[], None]
    forward_backward: Callable[[], None]


def from_model(
    model: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> Workload:
    """Return a workload that minimises a loss of the outputs, with Adam unless told otherwise."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-4)

    def forward_backward() -> None:
        loss(model(inputs)).backward()

    def update() -> None:
        optimizer.zero_grad()
        forward_backward()
        optimizer.step()

    return Workload(model, optimizer, inputs, update, forward_backward)


def mlp_6x1024() -> Workload:
    """Six linear layers of 1024 units, batch 128."""
    torch.manual_seed(0)
    x, y = torch.randn(128, 1024), torch.randint(10, (128,))
    return from_model(mlp(1024, *[1024] * 5, 10), x, lambda out: F.cross_entropy(out, y))


class ConvNet4(nn.Module):
    """Four convolutions with BatchNorm and ReLU, batch 64 of 3 x 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def cnn_4() -> Workload:
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    return from_model(ConvNet4(), x, lambda out: F.cross_entropy(out, y))


class ModuleBlock(Block):
    """The block with its GELU as a module, which hooks on modules can see."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, gated=False)
        self.heads = heads
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3 * self.heads, width // self.heads)
        q, k, v = heads.chunk(3, 2)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.activation(self.up(self.norm2(x))))


def gpt_4(block: Callable[[], nn.Module] | None = None) -> Workload:
    """Four blocks of width 192, 64 tokens, batch 8; `block` makes another kind of block."""
    torch.manual_seed(0)
    tokens = torch.randint(1000, (8, 65))
    model = GPT(width=192, depth=4, vocabulary=1000)
    if block is not None:
        model.blocks = nn.ModuleList(block() for _ in model.blocks)
    return from_model(
        model,
        tokens[:, :-1],
        lambda out: F.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten()),
    )


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "MLP 6x1024": mlp_6x1024,
    "CNN 4 conv": cnn_4,
    "GPT 4 layers": gpt_4,
}
