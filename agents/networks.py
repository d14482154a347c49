"""Networks for the agents, initialised so that few units are dormant before training begins."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

Kind = Literal["auto", "mlp", "minatar", "nature", "impala"]
"""`auto` takes an MLP for vectors, `minatar` for images of up to 20 pixels, else `nature`."""

_HIDDEN = {"mlp": (128, 128), "minatar": (128,), "nature": (512,), "impala": (256,)}
_SMALLEST = {"minatar": 3, "nature": 36, "impala": 8}


class Observations(nn.Module):
    """Bring observations to float: images to `[batch, channels, height, width]`, others flat."""

    def __init__(self, space: gym.Space) -> None:
        """Find the channels of an image: the smaller outer axis, the last where both are equal."""
        super().__init__()
        shape = tuple(space.shape or ())
        self.image = len(shape) == 3
        self.channels_last = self.image and shape[2] <= shape[0]
        self.scale = 1 / 255 if self.image and space.dtype == np.uint8 else 1.0

    def forward(self, observations: Tensor) -> Tensor:
        """Scale the bytes of an image to 0..1."""
        if not self.image:
            return observations.flatten(1).float()
        images = observations.permute(0, 3, 1, 2) if self.channels_last else observations
        # In the order of its axes: convolutions of small images are a tenth slower in another.
        images = images.to(torch.float32, memory_format=torch.contiguous_format)
        return images if self.scale == 1.0 else images * self.scale


class Residual(nn.Module):
    """Two convolutions, each behind a ReLU, and the way around them (Espeholt et al. 2018)."""

    def __init__(self, channels: int) -> None:
        """Make the block."""
        super().__init__()
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return images of the same shape."""
        return images + self.conv2(self.relu2(self.conv1(self.relu1(images))))


def make_network(
    space: gym.Space,
    outputs: int,
    hidden: tuple[int, ...] | None,
    seed: int,
    *,
    kind: Kind = "auto",
    width: float = 1.0,
    activation: Literal["relu", "tanh"] = "relu",
) -> nn.Sequential:
    """Return a network from observations to `outputs` numbers.

    Weights are Kaiming-uniform and biases zero. With torch's own initialisation a quarter of the
    units is dormant (tau 0.1) on CartPole before training begins.

    Args:
        space: of the observations, a Box.
        outputs: units of the last layer, `values`.
        hidden: widths of the linear layers; None takes what is usual: 128 128 (mlp), 128 (minatar:
            Young & Tian 2019), 512 (nature: Mnih et al. 2015), 256 (impala: Espeholt et al. 2018).
        seed: of the weights.
        kind: what looks at the observations.
        width: factor of the channels of convolutions, and of the usual `hidden`.
        activation: of the linear layers' units; convolutions are ReLU.

    Raises:
        ValueError: when the observations do not suit the kind.
    """
    example = torch.zeros(1, *(space.shape or ()))
    kind = _chosen(kind, space)
    plain = example.dim() == 2 and space.dtype == np.float32
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if not plain:
        modules["observations"] = Observations(space)
    # The layers draw initial weights of their own; torch's random state must not move.
    with torch.random.fork_rng(devices=[]):
        if kind != "mlp":
            seen = modules["observations"](example)
            if min(seen.shape[2:]) < _SMALLEST[kind]:
                size = "x".join(map(str, seen.shape[2:]))
                raise ValueError(f"images of {size} are too small for {kind}; use minatar or mlp")
            modules |= _convolutions(kind, seen.shape[1], width)
        elif example.dim() == 4:
            modules["flat"] = nn.Flatten()
        inputs = nn.Sequential(modules)(example).flatten(1).shape[1]
        usual = tuple(max(round(units * width), 1) for units in _HIDDEN[kind])
        shape = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
        for index, units in enumerate(hidden or usual, 1):
            modules |= {
                f"fc{index}": nn.Linear(inputs, units),
                f"{activation}{index}": shape(),
            }
            inputs = units
        network = nn.Sequential(modules | {"values": nn.Linear(inputs, outputs)})
    initialise(network.parameters(), torch.Generator().manual_seed(seed))
    return network


def initialise(parameters: Iterable[nn.Parameter], generator: torch.Generator) -> None:
    """Draw weights Kaiming-uniform (He et al. 2015) and set biases to zero."""
    for parameter in parameters:
        if parameter.dim() > 1:
            nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)


def _chosen(kind: Kind, space: gym.Space) -> Kind:
    shape = tuple(space.shape or ())
    if len(shape) != 3:
        if kind in ("auto", "mlp"):
            return "mlp"
        raise ValueError(f"{kind} looks at images; these observations have the shape {shape}")
    if kind == "auto":
        return "minatar" if sorted(shape)[1] <= 20 else "nature"
    return kind


def _convolutions(kind: Kind, channels: int, width: float) -> dict[str, nn.Module]:
    """Return convolutions, and what makes rows of their output."""

    def scaled(features: int) -> int:
        return max(round(features * width), 1)

    if kind == "minatar":
        conv = nn.Conv2d(channels, scaled(16), 3)
        return {"conv": conv, "relu": nn.ReLU(), "flat": nn.Flatten()}
    modules: dict[str, nn.Module] = {}
    if kind == "nature":
        for index, (features, kernel, stride) in enumerate(((32, 8, 4), (64, 4, 2), (64, 3, 1)), 1):
            modules[f"conv{index}"] = nn.Conv2d(channels, scaled(features), kernel, stride)
            modules[f"conv_relu{index}"] = nn.ReLU()
            channels = scaled(features)
        return modules | {"flat": nn.Flatten()}
    for index, features in enumerate((16, 32, 32), 1):
        modules[f"conv{index}"] = nn.Conv2d(channels, scaled(features), 3, padding=1)
        modules[f"pool{index}"] = nn.MaxPool2d(3, stride=2, padding=1)
        modules[f"residual{index}a"] = Residual(scaled(features))
        modules[f"residual{index}b"] = Residual(scaled(features))
        channels = scaled(features)
    return modules | {"conv_relu": nn.ReLU(), "flat": nn.Flatten()}
