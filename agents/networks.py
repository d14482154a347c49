"""Networks for the agents, initialised so that few units are dormant before training begins."""

from __future__ import annotations

from collections import OrderedDict

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn


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
        return images.float() * self.scale


def make_network(
    space: gym.Space, outputs: int, hidden: tuple[int, ...] | None, seed: int
) -> nn.Sequential:
    """Return an MLP for vectors; for images a 3x3 convolution and an MLP (Young & Tian 2019).

    Weights are Kaiming-uniform and biases zero. With torch's own initialisation a quarter of the
    units is dormant (tau 0.1) on CartPole before training begins.
    """
    example = torch.zeros(1, *(space.shape or ()))
    image, plain = example.dim() == 4, example.dim() == 2 and space.dtype == np.float32
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if not plain:
        modules["observations"] = Observations(space)
    # The layers draw initial weights of their own; torch's random state must not move.
    with torch.random.fork_rng(devices=[]):
        if image:
            channels = modules["observations"](example).shape[1]
            modules |= {"conv": nn.Conv2d(channels, 16, 3), "relu": nn.ReLU(), "flat": nn.Flatten()}
        width = nn.Sequential(modules)(example).shape[1]
        for index, units in enumerate(hidden or ((128,) if image else (128, 128)), 1):
            modules |= {f"fc{index}": nn.Linear(width, units), f"relu{index}": nn.ReLU()}
            width = units
        network = nn.Sequential(modules | {"values": nn.Linear(width, outputs)})
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(parameter)
    return network
