"""Wiring is compared with what the network does: a unit is ablated, or its weights are changed.

Each net names the place (a module) where its units stand just before they are read. Setting a unit
to zero there must be the same as zeroing its outgoing weights, and changing its incoming weights,
bias and norm entries must change that unit there and no other.
"""

import copy
import random
import re
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from dynamo_probe.anatomy.wiring import Wiring, wire


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        for module in model.modules():  # norms that do something
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.data.uniform_(0.5, 2)
                module.bias.data.uniform_(-0.5, 0.5)
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def batch(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def output(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)


def at(model, place, args, zero=None, axis=1):
    """Return the units at a place, and the output, with some units set to zero there."""
    seen = []

    def look(_, __, units):
        units = units.clone()
        if zero is not None:
            units.movedim(axis, 0)[zero] = 0
        seen.append(units.movedim(axis, 0))
        return units

    handle = model.get_submodule(place).register_forward_hook(look)
    try:
        result = output(model, *args)
    finally:
        handle.remove()
    return seen[0], result


def write(model, entries, units, value):
    """Add to, or overwrite, the entries of some units, in a plain loop."""
    owner, _, own = entries.name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), own).data
    for unit in units:
        for position in entries.index[unit].tolist():
            slices = tensor.select(entries.dim, position)
            slices.copy_(value(slices))


def assert_wiring_is_true(model, args, layer, place, axis=1):
    wiring = wire(model, args, {}, [layer])[layer]
    assert isinstance(wiring, Wiring), wiring
    assert wiring.layer == layer
    for part in ("incoming", "bias", "outgoing", "norm_scale", "norm_shift", "running_mean"):
        for entries in getattr(wiring, part):
            owner, _, own = entries.name.rpartition(".")
            assert entries.tensor is getattr(model.get_submodule(owner), own)
            assert entries.index.shape[0] == wiring.units
            assert entries.index.flatten().unique().numel() == entries.index.numel()
    units, before = at(model, place, args, axis=axis)
    assert len(units) == wiring.units
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        chosen = torch.rand(wiring.units, generator=generator) < 0.5
        chosen[torch.randint(wiring.units, (), generator=generator)] = True
        indices = chosen.nonzero().flatten().tolist()
        # Zero outgoing weights do what an ablation does.
        closed = copy.deepcopy(model)
        for entries in wiring.outgoing:
            write(closed, entries, indices, torch.zeros_like)
        _, ablated = at(model, place, args, zero=chosen, axis=axis)
        torch.testing.assert_close(output(closed, *args), ablated, rtol=1e-5, atol=1e-6)
    assert not torch.equal(output(model, *args), ablated)
    # Every incoming and norm entry moves its own unit, and only that.
    unit = int(torch.randint(wiring.units, (), generator=generator))
    inside = (
        *(wiring.incoming + wiring.bias + wiring.norm_scale + wiring.norm_shift),
        *(wiring.running_mean + wiring.running_var),
    )
    for entries in inside:
        moved = copy.deepcopy(model)
        write(moved, entries, [unit], lambda slices: slices + 0.5)
        mixing = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
        for module in moved.modules():
            if isinstance(module, mixing) and entries in wiring.incoming + wiring.bias:
                # Statistics over several units: the move of one is seen by all. Stop them here.
                module.register_forward_hook(lambda _, inputs, __: inputs[0])
        reference = copy.deepcopy(moved)
        write(reference, entries, [unit], lambda slices: slices - 0.5)
        changed = at(moved, place, args, axis=axis)[0] != at(reference, place, args, axis=axis)[0]
        expected = torch.zeros(wiring.units, dtype=torch.bool)
        expected[unit] = True
        assert torch.equal(changed.flatten(1).any(1), expected), entries.name
    return wiring


class Gated(nn.Module):
    """Transformer block with SwiGLU (Shazeer 2020)."""

    def __init__(self, norm=None):
        super().__init__()
        self.ln = nn.LayerNorm(8)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm = nn.Identity() if norm is None else norm(12)
        self.place = nn.Identity()

    def forward(self, x):
        h = self.ln(x)
        return x + self.down(self.place(self.norm(F.silu(self.gate(h)) * self.up(h))))


class GatedNet(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.Sequential(Gated(norm), Gated(norm))
        self.head = nn.Linear(8, 11)

    def forward(self, tokens):
        return self.head(self.blocks(self.embed(tokens)))


class Dueling(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.place = nn.Linear(4, 6), nn.ReLU()
        self.value, self.advantage = nn.Linear(6, 1), nn.Linear(6, 3)

    def forward(self, x):
        h = self.place(self.trunk(x))
        a = self.advantage(h)
        return self.value(h) + a - a.mean(-1, keepdim=True)


class Branches(nn.Module):
    """Two branches and a raw action, side by side: units do not begin at column 0."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 7)
        self.left_place, self.right_place = nn.ReLU(), nn.Tanh()
        self.joint = nn.Linear(2 + 5 + 7, 3)

    def forward(self, x, action):
        left, right = self.left_place(self.left(x)), self.right_place(self.right(x))
        return self.joint(torch.cat([action, left, right], -1))


class GPTBlock(nn.Module):
    """Attention from three layers, attention from one, and an MLP, each added to the stream."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.ln1, self.ln2, self.ln3 = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.out_proj = (nn.Linear(8, 8) for _ in range(4))
        self.qkv, self.qkv_out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.gelu, self.fc2 = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        self.head = nn.Linear(8, 11)

    def attend(self, *qkv):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2)

    def forward(self, tokens):
        x = self.embed(tokens)
        h = self.ln1(x)
        x = x + self.out_proj(self.attend(self.q(h), self.k(h), self.v(h)))
        x = x + self.qkv_out(self.attend(*self.qkv(x).chunk(3, -1)))
        x = x + self.fc2(self.gelu(self.fc1(self.ln2(x))))
        return self.head(self.ln3(x))


class NormedBranches(nn.Module):
    """Another branch has a part in the norm's statistics, but no place in common with the units."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5)
        self.norm, self.place, self.joint = nn.LayerNorm(10), nn.Identity(), nn.Linear(10, 3)

    def forward(self, x):
        h = self.norm(torch.cat([self.right(x), self.left(x)], -1))
        right, left = h.chunk(2, -1)
        return self.joint(torch.cat([self.place(left), right], -1))


class BasicBlock(nn.Module):
    """ResNet's basic block (He et al. 2016), with a stem and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.place, self.fc = nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.bn2(self.conv2(self.place(self.bn1(self.conv1(x)))))
        return self.fc(F.relu(x + y).mean((2, 3)))


class ChannelsLast(nn.Module):
    """Flattens positions before channels, as Flax does: strides the other way round."""

    def __init__(self):
        super().__init__()
        self.conv, self.place, self.fc = nn.Conv2d(2, 5, 2), nn.ReLU(), nn.Linear(5 * 9, 3)

    def forward(self, x):
        return self.fc(self.place(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


class Crelu(nn.Module):
    """Each unit is read twice, as relu(h) and relu(-h) (Shang et al. 2016)."""

    def __init__(self):
        super().__init__()
        self.conv, self.place, self.fc = nn.Conv2d(2, 5, 2), nn.Identity(), nn.Linear(5 * 2 * 9, 3)

    def forward(self, x):
        h = self.place(self.conv(x))
        return self.fc(torch.cat([F.relu(h), F.relu(-h)], 1).flatten(1))


class Detached(nn.Module):
    """A head that reads without passing gradients back."""

    def __init__(self):
        super().__init__()
        self.trunk, self.place = nn.Linear(4, 6), nn.ReLU()
        self.actor, self.critic = nn.Linear(6, 2), nn.Linear(6, 1)

    def forward(self, x):
        h = self.place(self.trunk(x))
        return torch.cat([self.actor(h), self.critic(h.detach())], -1)


class Tuple(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x, y):
        return self.parts(x) + 0 * y.sum()


tokens = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(3))
x4, image = batch(6, 4), batch(3, 3, 8, 8)

TRUE = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
        ),
        (x4,), {"0": "1", "2": "3"}, 1,
    ),
    "mlp without biases": (
        lambda: nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False)
        ),
        (x4,), {"0": "1"}, 1,
    ),
    "conv, flatten, linear": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7), nn.ReLU(),
            nn.Linear(7, 2),
        ),
        (image,), {"0": "1", "3": "4"}, 1,
    ),
    "conv, batch norm, relu, max pool, conv": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(5, 4, 2),
        ),
        (image,), {"0": "3"}, 1,
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Conv1d(5, 4, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(20, 2),
        ),
        (batch(2, 3, 8),), {"0": "1", "2": "3"}, 1,
    ),
    "conv3d": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 5, 2), nn.InstanceNorm3d(5, affine=True), nn.ReLU(), nn.Conv3d(5, 4, 2),
            nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 2),
        ),
        (batch(2, 2, 4, 4, 4),), {"0": "2", "3": "4"}, 1,
    ),
    "adaptive average pool, linear": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 2)
        ),
        (image,), {"0": "1"}, 1,
    ),
    "dueling heads": (Dueling, (x4,), {"trunk": "place"}, 1),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)),
        (x4,), {"0": "2"}, 1,
    ),
    "layer norm over channels and positions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.LayerNorm([5, 6, 6]), nn.ReLU(), nn.Conv2d(5, 2, 6)
        ),
        (image,), {"0": "2"}, 1,
    ),
    "group norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 2, 6)
        ),
        (image,), {"0": "2"}, 1,
    ),
    "batch norm 1d": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)),
        (x4,), {"0": "2"}, 1,
    ),
    "gated": (
        GatedNet, (tokens,), {"blocks.0.gate": "blocks.0.place", "blocks.1.up": "blocks.1.place"}, 2
    ),
    "gated with root mean square norm": (
        lambda: GatedNet(nn.RMSNorm), (tokens,), {"blocks.0.gate": "blocks.0.place"}, 2
    ),
    "GPT block": (GPTBlock, (tokens,), {"fc1": "gelu"}, 2),
    "branches side by side": (
        Branches, (x4, batch(6, 2)), {"left": "left_place", "right": "right_place"}, 1
    ),
    "branches under one norm": (NormedBranches, (x4,), {"left": "place"}, 1),
    "ResNet basic block": (BasicBlock, (image,), {"conv1": "place"}, 1),
    "positions before channels": (ChannelsLast, (batch(2, 2, 4, 4),), {"conv": "place"}, 1),
    "concatenated ReLU": (Crelu, (batch(2, 2, 4, 4),), {"conv": "place"}, 1),
    "a head that stops gradients": (Detached, (x4,), {"trunk": "place"}, 1),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 10, 3, groups=5), nn.ReLU(),
            nn.Conv2d(10, 2, 4),
        ),
        (image,), {"0": "1", "2": "3"}, 1,
    ),
    "made by a convolution with groups": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 2)),
        (batch(2, 4, 5, 5),), {"0": "1"}, 1,
    ),
    "transposed convolutions": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.ConvTranspose2d(5, 4, 2), nn.ReLU(),
            nn.Conv2d(4, 1, 2),
        ),
        (image,), {"0": "1", "2": "3"}, 1,
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(20, 2, 3)
        ),
        (image,), {"0": "1"}, 1,
    ),
    "random features kept in evaluation": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2)),
        (x4,), {"0": "1"}, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRUE)
def test_ablating_a_unit_is_zeroing_its_outgoing_weights_and_only_it_moves_with_its_own(name):
    build, args, places, axis = TRUE[name]
    model = seeded(build)
    for layer, place in places.items():
        assert_wiring_is_true(model, args, layer, place, axis)


def test_transformer_encoder_layer_wires_its_first_linear():
    model = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True))
    model.activation = nn.GELU()  # a module, so that the test can stand there
    x = batch(2, 5, 8)
    model.requires_grad_(True)
    wired = wire(model, (x,), {}, ["linear1", "linear2", "self_attn.out_proj"])
    assert "output" in wired["linear2"]
    assert "does not reach it" in wired["self_attn.out_proj"]
    model.train()  # evaluation without gradients takes a fused path that no hook sees
    wiring = wired["linear1"]
    assert [e.name for e in wiring.outgoing] == ["linear2.weight"]
    assert torch.equal(wiring.outgoing[0].index, torch.arange(12).unsqueeze(1))
    _, ablated = at(model, "activation", (x,), zero=torch.tensor([3]), axis=2)
    write(model, wiring.outgoing[0], [3], torch.zeros_like)
    torch.testing.assert_close(output(model, x), ablated)


@given(
    dims=st.integers(1, 3),
    channels=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    pool=st.sampled_from(["none", "max", "average", "adaptive"]),
    norm=st.sampled_from(["none", "batch", "group"]),
    hidden=st.integers(1, 5),
    samples=st.integers(1, 3),
)
@settings(max_examples=15)
def test_random_convolutional_nets_are_wired_truly(
    dims, channels, kernel, stride, pool, norm, hidden, samples
):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    pools = {
        "max": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2, 1, 1),
        "average": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](2, 1, 1),
        "adaptive": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1](2),
        "none": nn.Identity(),
    }
    batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    x = batch(samples, 2, *[7] * dims)

    def build():
        parts, width = nn.Sequential(), 2
        for number, channel in enumerate(channels):
            parts.add_module(f"conv{number}", conv(width, channel, kernel, stride, padding=1))
            if norm != "none":
                kind = batch_norm(channel) if norm == "batch" else nn.GroupNorm(channel, channel)
                parts.add_module(f"norm{number}", kind)
            # Never flat: a dead unit could be anywhere.
            parts.add_module(f"act{number}", nn.ELU())
            parts.add_module(f"pool{number}", pools[pool])
            width = channel
        parts.add_module("flatten", nn.Flatten())
        size = parts.eval()(x).shape[1]
        parts.add_module("fc", nn.Linear(size, hidden))
        parts.add_module("act", nn.Tanh())
        parts.add_module("head", nn.Linear(hidden, 2))
        return parts

    model = seeded(build)
    for number in range(len(channels)):
        assert_wiring_is_true(model, (x,), f"conv{number}", f"act{number}")
    assert_wiring_is_true(model, (x,), "fc", "act")


@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    norm=st.sampled_from([None, nn.LayerNorm, nn.BatchNorm1d]),
    bias=st.booleans(),
)
@settings(max_examples=15)
def test_random_mlps_are_wired_truly(widths, norm, bias):
    def build():
        parts, width = nn.Sequential(), 4
        for number, size in enumerate(widths):
            parts.add_module(f"fc{number}", nn.Linear(width, size, bias=bias))
            if norm is not None and size > 1:
                parts.add_module(f"norm{number}", norm(size))
            parts.add_module(f"act{number}", nn.ELU())
            width = size
        parts.add_module("head", nn.Linear(width, 2))
        return parts

    model = seeded(build)
    for number in range(len(widths)):
        assert_wiring_is_true(model, (x4,), f"fc{number}", f"act{number}")
    assert "output" in wire(model, (x4,), {}, ["head"])["head"]


def test_gated_units_have_two_incoming_weights_whichever_is_asked():
    model = seeded(lambda: GatedNet(nn.RMSNorm))
    wired = wire(model, (tokens,), {}, ["blocks.0.up", "blocks.0.gate", "blocks.1.gate"])
    assert [e.name for e in wired["blocks.0.gate"].incoming] == [
        "blocks.0.gate.weight", "blocks.0.up.weight"
    ]  # fmt: skip
    assert [e.name for e in wired["blocks.0.up"].incoming] == [
        "blocks.0.up.weight", "blocks.0.gate.weight"
    ]  # fmt: skip
    for wiring in wired.values():
        assert len(wiring.bias) == 2 and len(wiring.norm_scale) == 1
        assert wiring.norm_shift == ()


def reason(model, args, layer, **kwargs):
    found = wire(model, args, kwargs, [layer])[layer]
    assert isinstance(found, str), found
    return found


class Fused(nn.Module):
    """Gate and up in one layer."""

    def __init__(self, way="glu"):
        super().__init__()
        self.both, self.down, self.way = nn.Linear(4, 12), nn.Linear(6, 2), way

    def forward(self, x):
        if self.way == "glu":
            return self.down(F.glu(self.both(x)))
        gate, up = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Split(nn.Module):
    """Half of the units for each head."""

    def __init__(self):
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(4, 12), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        a, b = F.relu(self.trunk(x)).chunk(2, -1)
        return self.a(a) + self.b(b)


class RawSkip(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.relu(self.fc(x)) + x)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 6, 3), nn.Linear(6, 2), nn.Linear(2, 6)
        self.last = nn.Conv2d(6, 2, 3)

    def forward(self, x):
        h = F.relu(self.conv(x))
        gate = self.up(F.relu(self.down(h.mean((2, 3))))).sigmoid()
        return self.last(h * gate[..., None, None])


class Hidden(nn.Module):
    """The hidden layer comes out along with the result."""

    def __init__(self, wrap):
        super().__init__()
        self.fc, self.head, self.wrap = nn.Linear(4, 6), nn.Linear(6, 2), wrap

    def forward(self, x):
        h = F.relu(self.fc(x))
        return self.wrap(self.head(h), h)


@dataclass
class Result:
    logits: torch.Tensor
    extra: torch.Tensor | None = None


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.relu(self.again(F.relu(self.again(F.relu(self.first(x)))))))


class Functional(nn.Module):
    """Reads through a weight that a layer also uses."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = F.relu(self.fc(x))
        return self.head(h) + F.linear(x, self.head.weight)


class BareParameter(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.fc, self.w, self.operation = nn.Linear(4, 6), nn.Parameter(torch.ones(6)), operation
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.operation(F.relu(self.fc(x)), self.w))


class Noisy(nn.Linear):
    """Fortunato et al. 2018: a second weight beside the first."""

    def __init__(self, *args):
        super().__init__(*args)
        self.sigma = nn.Parameter(torch.ones_like(self.weight))

    def forward(self, x):
        return F.linear(x, self.weight + 0.1 * self.sigma, self.bias)


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.fc, self.cell, self.head = nn.Linear(4, 6), cell, nn.Linear(6, 2)

    def forward(self, x):
        h = F.relu(self.fc(x))
        if isinstance(self.cell, nn.MultiheadAttention):
            return self.head(self.cell(h, h, h)[0])
        return self.head(self.cell(h)[0])


class Mixed(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.fc, self.head, self.mix = nn.Linear(4, 6), nn.Linear(6, 2), mix

    def forward(self, x):
        return self.head(self.mix(F.relu(self.fc(x))))


def frozen(model, *names):
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def mlp(*between):
    return nn.Sequential(nn.Linear(4, 6), *between, nn.ReLU(), nn.Linear(6, 2))


def chain(first=None, last=None):
    return nn.Sequential(first or nn.Linear(4, 6), nn.ReLU(), last or nn.Linear(6, 2))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.used(x)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def old_weight_norm(layer):
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(layer)


REFUSED = {
    "output layer": (mlp, (x4,), "2", "model's output"),
    "hidden layer that is returned": (lambda: Hidden(lambda y, h: (y, h)), (x4,), "fc", "output"),
    "hidden layer in an object": (
        lambda: Hidden(lambda y, h: torch.distributions.Normal(y, h[:, :2].exp())), (x4,), "fc",
        "output",
    ),
    "residual stream": (BasicBlock, (image,), "conv2", "`stem` by AddBackward0"),
    "stem of a residual stream": (BasicBlock, (image,), "stem", "`conv2` by AddBackward0"),
    "end of a transformer block": (GPTBlock, (tokens,), "fc2", "AddBackward0"),
    "attention output": (GPTBlock, (tokens,), "out_proj", "AddBackward0"),
    "attention query": (GPTBlock, (tokens,), "q", "joined with those of `[kv]`"),
    "attention value": (GPTBlock, (tokens,), "v", "joined with those of"),
    "fused query, key and value": (GPTBlock, (tokens,), "qkv", "mixed|not read all"),
    "skip from the input": (RawSkip, (x4,), "fc", "something else in the same places"),
    "gated linear unit in one layer": (Fused, (x4,), "both", "mixed"),
    "gate and up in one layer": (lambda: Fused("chunk"), (x4,), "both", "mixed"),
    "units split between heads": (Split, (x4,), "trunk", "does not read all of its units alike"),
    "squeeze and excite": (SqueezeExcite, (image,), "conv", "`up`, and the two are not read by"),
    "gate of squeeze and excite": (SqueezeExcite, (image,), "up", "`conv`, and the two are not"),
    "layer called twice": (Twice, (x4,), "again", "it is called 2 times"),
    "reader called twice": (Twice, (x4,), "first", "`again`, which reads its units, is called 2"),
    "tied weights": (tied, (x4,), "0", "shares its weight: `0.weight` is `2.weight`"),
    "weight used elsewhere": (Functional, (x4,), "fc", "has a weight that the forward pass uses"),
    "frozen incoming weight": (lambda: frozen(mlp(), "0.weight"), (x4,), "0", "it is frozen"),
    "frozen bias": (lambda: frozen(mlp(), "0.bias"), (x4,), "0", "`0.bias` does not require"),
    "frozen outgoing weight": (
        lambda: frozen(mlp(), "2.weight"), (x4,), "0", "`2`, which reads its units, is frozen"
    ),
    "frozen norm": (
        lambda: frozen(mlp(nn.LayerNorm(6)), "1.weight"), (x4,), "0", "`1`, which .* is frozen"
    ),
    "parametrized": (
        lambda: chain(parametrizations.weight_norm(nn.Linear(4, 6))),
        (x4,), "0", "it computes its weight",
    ),
    "parametrized reader": (
        lambda: chain(last=parametrizations.spectral_norm(nn.Linear(6, 2))),
        (x4,), "0", "`2`, which reads its units, computes its weight",
    ),
    "weight norm of old": (
        lambda: chain(old_weight_norm(nn.Linear(4, 6))),
        (x4,), "0", "it computes its weight",
    ),
    "spectral norm of old": (
        lambda: chain(torch.nn.utils.spectral_norm(nn.Linear(4, 6))),
        (x4,), "0", "it computes its weight",
    ),
    "pruned with a mask": (
        lambda: chain(prune.random_unstructured(nn.Linear(4, 6), "weight", 0.5)),
        (x4,), "0", "it computes its weight",
    ),
    "noisy layer": (
        lambda: chain(Noisy(4, 6)), (x4,), "0",
        r"forward of its own \(Noisy\)",
    ),
    "noisy reader": (
        lambda: chain(last=Noisy(6, 2)), (x4,), "0",
        r"`2`, which reads its units, has a forward of its own \(Noisy\)",
    ),
    "read by a convolution with groups": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)),
        (image,), "0", "`2`, which reads its units, is a convolution with groups",
    ),
    "transposed with groups": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 3)),
        (batch(2, 4, 5, 5),), "0", "it is a transposed convolution with groups",
    ),
    "LSTM": (lambda: Recurrent(nn.LSTM(6, 6)), (batch(3, 2, 4),), "fc", r"`cell` \(LSTM\)"),
    "GRU": (lambda: Recurrent(nn.GRU(6, 6)), (batch(3, 2, 4),), "fc", "parameter `cell"),
    "multi-head attention": (
        lambda: Recurrent(nn.MultiheadAttention(6, 2)), (batch(3, 2, 4),), "fc",
        r"`cell` \(MultiheadAttention\)",
    ),
    "softmax over units": (lambda: Mixed(lambda h: h.softmax(-1)), (x4,), "fc", "mixed"),
    "norm as a function": (lambda: Mixed(lambda h: F.layer_norm(h, (6,))), (x4,), "fc", "mixed"),
    "sum with a parameter": (lambda: BareParameter(torch.add), (x4,), "fc", "the parameter `w`"),
    "scale by a parameter": (lambda: BareParameter(torch.mul), (x4,), "fc", "the parameter `w`"),
    "not a layer with units": (mlp, (x4,), "1", "it is a ReLU"),
    "no such layer": (mlp, (x4,), "fc9", "no module of this name"),
    "layer that is not used": (Unused, (x4,), "spare", "the forward pass does not reach it"),
    "wrong input": (mlp, (batch(6, 3),), "0", "cannot be traced .*RuntimeError"),
    "infinite weights": (
        lambda: mlp(nn.BatchNorm1d(6, affine=False)).double().apply(
            lambda m: m.weight.data.fill_(float("nan")) if isinstance(m, nn.Linear) else None
        ),
        (x4.double(),), "0", "gives NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_recycled_is_refused_with_its_reason(name):
    build, args, layer, words = REFUSED[name]
    model = seeded(build)
    assert re.search(words, reason(model, args, layer))


def test_one_odd_layer_does_not_hide_the_others():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 5)
            self.c, self.head = nn.Linear(5, 7), nn.Linear(7, 2)

        def forward(self, x):
            return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))).softmax(-1))))

    wired = wire(seeded(Odd), (x4,), {}, ["a", "b", "c", "head"])
    assert isinstance(wired["a"], Wiring) and isinstance(wired["c"], Wiring)
    assert "mixed before `c`" in wired["b"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y, h: {"loss": y.sum(), "more": [None, y]},
        lambda y, h: Result(y),
        lambda y, h: (y.argmax(-1), torch.distributions.Categorical(logits=y)),
        lambda y, h: y.unbind(-1),
    ],
    ids=["mapping", "dataclass", "distribution", "tuple"],
)
def test_outputs_of_any_shape_are_understood(wrap):
    model = seeded(lambda: Hidden(wrap))
    found = wire(model, (), {"x": x4}, ["fc", "head"])
    assert isinstance(found["fc"], Wiring)
    assert [e.name for e in found["fc"].outgoing] == ["head.weight"]
    assert "output" in found["head"]


def test_keywords_and_nested_inputs_are_passed_on():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, obs, *, scale):
            obs["seen"] = obs["x"].div_(scale["by"])
            return self.head(input=F.relu(self.fc(input=obs["seen"])))

    x = x4.clone()
    obs = {"x": x}
    found = wire(seeded(Nested), (obs,), {"scale": {"by": 2.0}}, ["fc"])
    assert isinstance(found["fc"], Wiring)
    assert obs.keys() == {"x"} and torch.equal(x, x4)


class Watched(nn.Module):
    """Everything that a look at a model could disturb."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8, max_norm=0.5)
        self.fc1, self.norm, self.fc2 = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.cache = 0, []

    def forward(self, tokens):
        self.calls += 1
        self.count += 1
        self.cache.append(tokens)
        noise = torch.rand(()) + float(np.random.rand()) + random.random()
        h = self.norm(self.fc1(self.embed(tokens).mean(1)))
        return self.fc2(F.dropout(F.relu(h), 0.5)) + 0 * noise


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_a_look_at_the_wiring_leaves_no_trace(mode, training):
    torch.manual_seed(0)
    model = Watched().train(training)
    model(tokens).sum().backward()
    model.cache.clear()
    model.embed.weight.data.mul_(10)  # beyond max_norm: a forward pass would scale it down
    fired = []
    model.fc1.register_forward_hook(lambda *_: fired.append("forward"))
    model.fc1.register_full_backward_hook(lambda *_: fired.append("backward"))
    model.fc1.weight.register_hook(lambda _: fired.append("tensor"))
    model.embed.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    count, modes = model.count, [m.training for m in model.modules()]
    hooks = [{k: len(v) for k, v in vars(m).items() if "hooks" in k} for m in model.modules()]
    random.seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with mode():
        enabled = torch.is_grad_enabled()
        found = wire(model, (tokens,), {}, ["fc1", "fc2"])
        assert torch.is_grad_enabled() == enabled
    assert isinstance(found["fc1"], Wiring), found
    assert fired == [] and model.count == count and model.cache == []
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(torch.equal(grads[n], p.grad) for n, p in model.named_parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["embed.weight"]
    assert modes == [m.training for m in model.modules()]
    assert hooks == [
        {k: len(v) for k, v in vars(m).items() if "hooks" in k} for m in model.modules()
    ]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_a_model_that_cannot_be_copied_gives_the_reason_for_every_layer():
    model = mlp()
    model.lock = threading.Lock()
    found = wire(model, (x4,), {}, ["0", "2"])
    assert set(found) == {"0", "2"}
    assert all("cannot be copied" in value for value in found.values())


@pytest.mark.parametrize("samples", [1, 3, 9, 100])
def test_only_a_few_samples_of_a_large_batch_are_run(samples):
    sizes = []

    class Sized(nn.Module):
        def __init__(self, least):
            super().__init__()
            self.parts, self.least = mlp(), least

        def forward(self, x, y):
            if len(x) < self.least:
                raise ValueError("too few")
            sizes.append(len(x))
            return self.parts(x) + y

    x, y = batch(samples, 4), batch(samples, 1)
    assert isinstance(wire(Sized(0), (x,), {"y": y}, ["parts.0"])["parts.0"], Wiring)
    assert set(sizes) == {min(samples, 8)}
    sizes.clear()
    # A model that takes no other batch size gets all of it, and so do unequal or whole numbers.
    assert isinstance(wire(Sized(samples), (x,), {"y": y}, ["parts.0"])["parts.0"], Wiring)
    wire(Sized(0), (x,), {"y": torch.ones(1)}, ["parts.0"])
    wire(Sized(0), (x,), {"y": torch.ones(samples, 1, dtype=torch.int64)}, ["parts.0"])
    assert set(sizes) == {samples}


def test_no_layers_is_no_error():
    assert wire(mlp(), (x4,), {}, []) == {}


def test_a_model_that_is_one_layer_is_only_an_output():
    assert "output" in wire(nn.Linear(4, 2), (x4,), {}, [""])[""]


def test_half_precision_and_autocast_are_wired_like_float32():
    model = seeded(lambda: mlp(nn.LayerNorm(6)))
    plain = wire(model, (x4,), {}, ["0"])["0"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = wire(model, (x4,), {}, ["0"])["0"]
    half = wire(copy.deepcopy(model).bfloat16(), (x4.bfloat16(),), {}, ["0"])["0"]
    for other in (cast, half):
        assert [e.name for e in other.outgoing] == [e.name for e in plain.outgoing]
        assert torch.equal(other.outgoing[0].index, plain.outgoing[0].index)
