"""The three networks that costs are measured on, and their training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import GPT, mlp


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, its optimizer and one update."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    update: Callable[[], None]
    forward_backward: Callable[[], None]


def _workload(model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> Workload:
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

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
    return _workload(mlp(1024, *[1024] * 5, 10), x, lambda out: F.cross_entropy(out, y))


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
    return _workload(ConvNet4(), x, lambda out: F.cross_entropy(out, y))


def gpt_4() -> Workload:
    """Four blocks of width 192, 64 tokens, batch 8."""
    torch.manual_seed(0)
    tokens = torch.randint(1000, (8, 65))
    return _workload(
        GPT(width=192, depth=4, vocabulary=1000),
        tokens[:, :-1],
        lambda out: F.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten()),
    )


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "MLP 6x1024": mlp_6x1024,
    "CNN 4 conv": cnn_4,
    "GPT 4 layers": gpt_4,
}
