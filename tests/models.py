"""Small networks that several tests share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with a ReLU module after each but the last."""
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class ConvNet(nn.Module):
    """Convolutions with BatchNorm, dropout and pooling, then two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(5 * 9, 12)
        self.value = nn.Linear(12, 1)
        self.advantage = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.conv1(x))))
        x = self.drop(F.relu(self.conv2(x))).flatten(1)
        x = F.relu(self.fc(x))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)


class Block(nn.Module):
    """A transformer block with attention and, on request, a SwiGLU in place of the GELU MLP."""

    def __init__(self, width: int, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 4 * width) if gated else None
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 6, width // 2).chunk(3, 2)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        h = self.norm2(x)
        h = F.gelu(self.up(h)) if self.gate is None else F.silu(self.gate(h)) * self.up(h)
        return x + self.down(h)


class GPT(nn.Module):
    """A small decoder-only transformer."""

    def __init__(self, width: int = 16, depth: int = 2, vocabulary: int = 11, gated: bool = False):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, gated) for _ in range(depth))
        self.drop = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.embed(tokens))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def plant_dead(linear: nn.Linear | nn.Conv2d, *units: int) -> None:
    """Make units of a layer output something negative whatever comes in."""
    with torch.no_grad():
        for unit in units:
            linear.weight[unit] = 0
            assert linear.bias is not None
            linear.bias[unit] = -1
