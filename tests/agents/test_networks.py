"""The networks: shapes, sizes as published, and that probes can read and recycle their units."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.networks import Kind, make_network
from dynamo_probe.functional import dormancy_scores, recycle

FRAMES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
BOARD = gym.spaces.Box(0, 1, (10, 10, 4), cast(Any, np.bool_))
VECTOR = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)


def size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("space", "kind", "parameters"),
    [
        # Mnih et al. 2015 with 18 actions: 8x8x4x32+32, 4x4x32x64+64, 3x3x64x64+64, 3136x512+512.
        (FRAMES, "auto", 8224 + 32832 + 36928 + 1606144 + 513 * 18),
        # Young & Tian 2019: 3x3x4x16+16, 1024x128+128.
        (BOARD, "auto", 592 + 131200 + 129 * 18),
        (VECTOR, "auto", 7 * 128 + 129 * 128 + 129 * 18),
        # Espeholt et al. 2018: three sections of 1 + 4 convolutions on 42, 21 and 11 pixels.
        (
            FRAMES,
            "impala",
            (37 * 16 + 4 * 145 * 16)
            + (145 * 32 + 4 * 289 * 32)
            + (289 * 32 + 4 * 289 * 32)
            + (32 * 11 * 11 + 1) * 256
            + 257 * 18,
        ),
    ],
)
def test_networks_have_the_published_sizes(space: gym.Space, kind: Kind, parameters: int):
    network = make_network(space, 18, None, seed=1, kind=kind)
    assert size(network) == parameters
    assert network(torch.zeros(3, *(space.shape or ()))).shape == (3, 18)


@pytest.mark.parametrize("kind", ["nature", "impala"])
def test_width_is_a_factor_of_every_hidden_layer(kind: Kind):
    narrow, wide = (make_network(FRAMES, 2, None, 1, kind=kind, width=w) for w in (0.25, 0.5))
    for (name, one), (_, other) in zip(
        narrow.named_parameters(), wide.named_parameters(), strict=True
    ):
        if not name.startswith("values"):
            assert len(other) == 2 * len(one), name


def test_bytes_are_scaled_to_one():
    network = make_network(FRAMES, 2, None, seed=1)
    shown = network.get_submodule("observations")(torch.full((1, 4, 84, 84), 255).byte())
    assert shown.dtype == torch.float32 and (shown == 1).all()


@pytest.mark.parametrize("kind", ["minatar", "nature", "impala"])
def test_units_of_every_network_are_read_and_those_of_its_own_layers_recycled(kind: Kind):
    space = BOARD if kind == "minatar" else FRAMES
    network = make_network(space, 3, None, seed=1, kind=kind, width=0.25)
    images = torch.rand(8, *space.shape)
    scores = dormancy_scores(network, images)
    layers = {n for n, m in network.named_modules() if isinstance(m, (torch.nn.Conv2d,))}
    inside = {name for name in layers if "residual" in name and name.endswith("conv1")}
    if kind != "impala":
        assert set(scores) == layers | {"fc1"}
    else:
        # What is added to a residual stream has no activation function of its own.
        assert inside | {"fc1"} <= set(scores)
    masks = {"fc1": torch.zeros(len(scores["fc1"]), dtype=torch.bool)}
    masks["fc1"][0] = True
    assert recycle(network, None, masks, inputs=images).units["fc1"] == (0,)


@pytest.mark.parametrize(
    ("space", "kind", "message"),
    [
        (VECTOR, "nature", "looks at images"),
        (BOARD, "nature", "too small for nature; use minatar or mlp"),
    ],
)
def test_observations_that_do_not_suit_a_network_are_refused(
    space: gym.Space, kind: Kind, message: str
):
    with pytest.raises(ValueError, match=message):
        make_network(space, 2, None, 1, kind=kind)


def test_a_network_for_images_may_be_an_mlp():
    network = make_network(BOARD, 2, (7,), 1, kind="mlp")
    assert network(torch.zeros(2, 10, 10, 4)).shape == (2, 2)
