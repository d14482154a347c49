"""Dead units are taken out, all of them, and only where that is exact."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.exporting import Export, export
from tests.models import GPT, ConvNet, mlp


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def compact(net: nn.Module, x: Tensor) -> Export:
    return export(net, "compact", inputs=x, measure=False)


def says(exported: Export, layer: str) -> str:
    return next(one.what for one in exported.report.layers if one.layer == layer)


def check_equal(net: nn.Module, exported: Export, x: Tensor) -> None:
    """Compare on inputs that the export has not seen."""
    was = net.training
    wanted, found = net.eval()(x), exported.model.eval()(x)
    net.train(was)
    assert torch.allclose(
        found, wanted, rtol=0, atol=1e-10 * max(1.0, float(wanted.detach().abs().max()))
    )


def kill_in(layer: nn.Module, unit: int, bias: float) -> None:
    """Make a unit a constant."""
    with torch.no_grad():
        layer.weight[unit] = 0.0
        layer.bias[unit] = bias


def kill_out(layer: nn.Module, channel: int) -> None:
    """Let a layer not read a channel."""
    with torch.no_grad():
        layer.weight[:, channel] = 0.0


def test_planted_units_of_an_mlp_are_taken_out_and_constants_move_into_the_next_bias() -> None:
    net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    net = net.double()
    kill_in(net[0], 2, 0.7)
    kill_in(net[0], 5, -0.4)
    kill_out(net[2], 8)
    kill_in(net[2], 1, -1.0)
    exported = compact(net, torch.randn(6, 4).double())
    made = exported.model
    assert [made[0].out_features, made[2].in_features] == [6, 6]
    assert [made[2].out_features, made[4].in_features] == [6, 6]
    assert says(exported, "0").startswith("3 of 9 units taken out; 1 that nothing reads, 2 const")
    assert "bias of 2" in says(exported, "0") and "1 of 7 units" in says(exported, "2")
    assert "model's output" in says(exported, "4")
    constants = torch.tanh(torch.tensor([0.7, -0.4], dtype=torch.float64))
    shifted = net[2].bias + net[2].weight[:, [2, 5]] @ constants
    kept = [0, 2, 3, 4, 5, 6]
    assert torch.allclose(made[2].bias, shifted[kept], rtol=0, atol=1e-14)
    assert torch.equal(made[0].weight, net[0].weight[[0, 1, 3, 4, 6, 7]])
    check_equal(net, exported, torch.randn(50, 4).double())


def test_taking_units_out_is_repeated_until_nothing_changes() -> None:
    net = mlp(3, 6, 6, 6, 2).double()
    kill_out(net[6], 4)  # then nothing reads what only unit 4 read
    with torch.no_grad():
        net[4].weight[[0, 1, 2, 3, 5], 1] = 0.0
        net[2].weight[[0, 2, 3, 4, 5], 3] = 0.0
    exported = compact(net, torch.randn(5, 3).double())
    assert [exported.model[i].out_features for i in (0, 2, 4)] == [5, 5, 5]
    check_equal(net, exported, torch.randn(40, 3).double())


def test_a_constant_can_make_the_next_unit_a_constant() -> None:
    net = mlp(3, 4, 4, 2).double()
    kill_in(net[0], 0, 0.5)
    with torch.no_grad():
        net[2].weight[3, 1:] = 0.0  # reads the constant and nothing else
    exported = compact(net, torch.randn(5, 3).double())
    assert [exported.model[i].out_features for i in (0, 2)] == [3, 3]
    check_equal(net, exported, torch.randn(40, 3).double())


def test_a_layer_without_a_live_unit_keeps_one() -> None:
    net = mlp(3, 4, 5, 2).double()
    for unit in range(5):
        kill_in(net[2], unit, 0.3)
    exported = compact(net, torch.randn(5, 3).double())
    assert [exported.model[i].out_features for i in (0, 2)] == [1, 1]
    assert "one dead unit stays" in says(exported, "2") and "4 of 5" in says(exported, "2")
    check_equal(net, exported, torch.randn(40, 3).double())


def test_a_reader_without_a_bias_gets_one_where_a_constant_needs_it() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2, bias=False)).double()
    kill_in(net[0], 1, 2.0)
    net[2].weight.requires_grad_(False)
    exported = compact(net, torch.randn(5, 3).double())
    sigmoid = torch.sigmoid(torch.tensor(2.0).double())
    assert torch.allclose(exported.model[2].bias, net[2].weight[:, 1] * sigmoid, atol=1e-14)
    assert not exported.model[2].bias.requires_grad and exported.model[0].bias.requires_grad
    check_equal(net, exported, torch.randn(40, 3).double())


def test_a_convolutional_network_with_batchnorm_pooling_and_flattening() -> None:
    net = ConvNet().double()
    net(torch.randn(16, 2, 10, 10).double())
    kill_in(net.conv1, 2, -5.0)
    kill_in(net.conv1, 4, 0.1)
    with torch.no_grad():
        net.norm.bias[4] = 2.0  # a constant other than 0 after the norm and the ReLU
    kill_out(net.conv2, 5)
    kill_in(net.conv2, 1, -1.0)
    kill_in(net.conv2, 3, 1.5)
    for unit in (0, 5, 6):
        kill_in(net.fc, unit, 0.2)
    exported = compact(net, torch.randn(4, 2, 10, 10).double())
    made = exported.model
    assert (made.conv1.out_channels, made.conv1.weight.shape[0]) == (3, 3)
    assert (made.conv2.in_channels, made.conv2.out_channels) == (3, 3)
    assert (made.fc.in_features, made.fc.out_features) == (27, 9)
    assert (made.value.in_features, made.advantage.in_features) == (9, 9)
    assert made.norm.num_features == 3
    assert torch.equal(made.norm.running_mean, net.norm.running_mean[[0, 1, 3]])
    assert torch.equal(made.norm.weight, net.norm.weight[[0, 1, 3]])
    assert "value" in says(exported, "fc") and "advantage" in says(exported, "fc")
    assert any("for inference" in note for note in exported.report.notes)
    check_equal(net, exported, torch.randn(9, 2, 10, 10).double())
    made.train()(torch.randn(4, 2, 10, 10).double()).sum().backward()


def convolutions(**second: object) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, **second)).double()
    kill_in(net[0], 1, 0.8)
    kill_in(net[0], 2, -0.8)
    return net


@pytest.mark.parametrize(
    ("second", "left"),
    [
        ({}, 2),
        ({"padding": "valid"}, 2),
        ({"padding": 1}, 3),
        ({"padding": "same"}, 3),
        ({"padding": (0, 1)}, 3),
        ({"padding": 1, "padding_mode": "reflect"}, 2),
        ({"padding": 1, "padding_mode": "circular"}, 2),
        ({"stride": 2, "dilation": 2, "bias": False}, 2),
    ],
)
def test_a_constant_other_than_zero_stays_before_zero_padding(second: dict, left: int) -> None:
    net = convolutions(**second)
    exported = compact(net, torch.randn(3, 1, 9, 9).double())
    assert exported.model[0].out_channels == left
    if left == 3:
        assert "1 with zero weights stay: `2` pads with zeros" in says(exported, "0")
    check_equal(net, exported, torch.randn(5, 1, 11, 13).double())


def test_a_constant_stays_before_a_transposed_convolution_and_zero_does_not() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3))
    net = net.double()
    with torch.no_grad():
        net[0].weight[:, [1, 2]] = 0.0
        net[0].bias[1:3] = torch.tensor([0.8, -0.8])
    exported = compact(net, torch.randn(3, 1, 5, 5).double())
    assert exported.model[0].out_channels == exported.model[2].in_channels == 3
    assert exported.model[2].weight.shape == (3, 2, 3, 3)
    assert "transposed" in says(exported, "0")
    check_equal(net, exported, torch.randn(5, 1, 6, 7).double())


def test_a_constant_that_pooling_pads_is_exact_for_a_linear_reader_only() -> None:
    pool = nn.AvgPool2d(3, stride=2, padding=1)
    for reader, left in ((nn.Conv2d(4, 2, 2), 4), (None, 3)):
        tail = [reader] if reader else [nn.Flatten(), nn.Linear(4 * 9, 2)]
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), pool, *tail).double()
        kill_in(net[0], 1, 0.8)
        exported = compact(net, torch.randn(3, 1, 5, 5).double())
        assert exported.model[0].out_channels == left
        check_equal(net, exported, torch.randn(7, 1, 5, 5).double())
        if left == 4:
            assert "what arrives at `3` is not one constant" in says(exported, "0")


def test_a_constant_that_depends_on_the_size_of_the_image_stays() -> None:
    def head(pool: nn.Module) -> nn.Sequential:
        tail = (nn.ReLU(), pool, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        net = nn.Sequential(nn.Conv2d(1, 4, 3), *tail).double()
        kill_in(net[0], 1, 0.8)
        return net

    # The border of zeros weighs less in a larger image.
    for pool, left in ((nn.AvgPool2d(2, 1, padding=1), 4), (nn.AvgPool2d(2, 1), 3)):
        net = head(pool)
        exported = compact(net, torch.randn(3, 1, 6, 6).double())
        assert exported.model[0].out_channels == left
        check_equal(net, exported, torch.randn(3, 1, 9, 7).double())


@pytest.mark.parametrize(
    "between",
    [
        lambda: nn.BatchNorm1d(6),
        lambda: nn.BatchNorm1d(6, affine=False),
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.PReLU(6)),
        lambda: nn.PReLU(),
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Hardswish()),
    ],
)
def test_what_has_an_entry_for_each_unit_is_cut_with_them(between: Callable) -> None:
    net = nn.Sequential(nn.Linear(4, 6), between(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for parameter in net[1].parameters():
            parameter.uniform_(0.1, 1.0)
    net(torch.randn(20, 4).double())
    kill_in(net[0], 3, 0.6)
    kill_out(net[2], 0)
    exported = compact(net, torch.randn(8, 4).double())
    assert exported.model[0].out_features == exported.model[2].in_features == 4
    for module in exported.model[1].modules():
        assert getattr(module, "num_features", 4) == 4
        assert getattr(module, "num_parameters", 4) in (1, 4)
    check_equal(net, exported, torch.randn(30, 4).double())


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_cut_and_does_not_warn(affine: bool) -> None:
    norm = nn.InstanceNorm2d(5, affine=affine)
    net = nn.Sequential(nn.Conv2d(1, 5, 3), norm, nn.ReLU(), nn.Conv2d(5, 2, 3)).double()
    kill_in(net[0], 4, 0.5)
    kill_out(net[3], 1)
    exported = compact(net, torch.randn(3, 1, 8, 8).double())
    assert exported.model[1].num_features == exported.model[0].out_channels == 3
    check_equal(net, exported, torch.randn(3, 1, 8, 8).double())


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (lambda: nn.LayerNorm(6), "LayerNorm"),
        (lambda: nn.LayerNorm(6, elementwise_affine=False), "LayerNorm"),
        (lambda: nn.GroupNorm(2, 6), "GroupNorm"),
    ],
)
def test_units_stay_before_a_norm_whose_statistics_they_are_in(norm: Callable, kind: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6), norm(), nn.ReLU(), nn.Linear(6, 3)).double()
    kill_in(net[0], 3, 0.6)
    kill_out(net[3], 0)
    exported = compact(net, torch.randn(8, 4).double())
    assert exported.model[0].out_features == 6
    assert kind in says(exported, "0") and "statistics" in says(exported, "0")
    check_equal(net, exported, torch.randn(8, 4).double())


def test_layers_side_by_side_are_cut_each_in_their_place() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(3, 5), nn.BatchNorm1d(9)
            self.out = nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.norm(torch.cat([self.a(x), self.b(x)], -1))))

    net = Branches().double()
    net(torch.randn(30, 3).double())
    kill_in(net.a, 1, 0.4)
    kill_out(net.out, 4 + 2)
    kill_out(net.out, 4 + 4)
    exported = compact(net, torch.randn(6, 3).double())
    made = exported.model
    assert (made.a.out_features, made.b.out_features, made.out.in_features) == (3, 3, 6)
    assert torch.equal(made.norm.running_var, net.norm.running_var[[0, 2, 3, 4, 5, 7]])
    check_equal(net, exported, torch.randn(20, 3).double())


def test_the_mlp_of_a_transformer_is_cut_and_its_residual_stream_is_listed() -> None:
    net, tokens = GPT(depth=2).double(), torch.randint(11, (3, 6))
    for block in net.blocks:
        kill_in(block.up, 3, 0.4)
        kill_out(block.down, 9)
    exported = compact(net, tokens)
    assert [block.up.out_features for block in exported.model.blocks] == [62, 62]
    assert [block.down.in_features for block in exported.model.blocks] == [62, 62]
    assert "residual stream" in says(exported, "blocks.0.down")
    assert "all units stay" in says(exported, "blocks.1.qkv")
    check_equal(net, exported, torch.randint(11, (5, 6)))


def test_a_gated_unit_goes_when_a_factor_is_zero_or_both_are_constant() -> None:
    net, tokens = GPT(depth=1, gated=True).double(), torch.randint(11, (3, 6))
    block = net.blocks[0]
    kill_in(block.gate, 0, 0.0)  # silu(0) = 0: gone
    kill_in(block.gate, 1, 0.5)  # a constant times what is not one: stays
    kill_in(block.up, 2, 0.0)  # gone
    kill_in(block.up, 3, 0.5)  # stays
    kill_in(block.gate, 4, 0.5)  # both constant: gone
    kill_in(block.up, 4, -0.7)
    kill_out(block.down, 5)
    exported = compact(net, tokens)
    made = exported.model.blocks[0]
    assert made.gate.out_features == made.up.out_features == made.down.in_features == 60
    assert "1 that nothing reads, 3 constant" in says(exported, "blocks.0.gate")
    assert "2 with zero weights stay" in says(exported, "blocks.0.up")
    check_equal(net, exported, torch.randint(11, (5, 6)))


def test_a_factor_that_is_only_silent_on_these_inputs_is_no_constant() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.sigmoid(self.gate(x)) * F.relu(self.up(x)))

    net = Gated().double()
    kill_in(net.gate, 2, 0.5)
    kill_in(net.gate, 4, 0.5)
    kill_in(net.up, 4, 0.5)
    with torch.no_grad():
        net.up.bias[2] = -100.0
    exported = compact(net, torch.randn(5, 3).double())
    assert exported.model.up.out_features == 5
    assert "1 with zero weights stay" in says(exported, "up")
    check_equal(net, exported, 1000 * torch.randn(50, 3).double())


def test_convolutions_with_groups_keep_their_channels_and_say_so() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).double()
    kill_out(net[4], 1)
    exported = compact(net, torch.randn(3, 1, 8, 8).double())
    assert not any(layer.changed for layer in exported.report.layers)
    assert "convolution with groups" in says(exported, "0")
    assert "convolution with groups" in says(exported, "2")


class Reshaping(nn.Module):
    """Writes the number of its units into its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x)).view(-1, 2, 3).flatten(1)
        return self.c(F.relu(self.b(h)))


def test_a_layer_whose_size_is_written_in_the_code_stays_and_the_others_do_not() -> None:
    net = Reshaping().double()
    kill_in(net.a, 1, 0.5)
    kill_in(net.b, 2, 0.5)
    exported = compact(net, torch.randn(5, 3).double())
    assert (exported.model.a.out_features, exported.model.b.out_features) == (6, 4)
    assert "the model does not run without its dead units" in says(exported, "a")
    check_equal(net, exported, torch.randn(9, 3).double())


@pytest.mark.parametrize("samples", [1, 4])
def test_what_the_inputs_are_added_to_is_no_constant_even_on_a_single_sample(samples: int) -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)) + x.mean(-1, keepdim=True))

    net = Skip().double()
    kill_in(net.a, 1, 0.5)
    exported = compact(net, torch.randn(samples, 4).double())
    assert exported.model.a.out_features == 4
    check_equal(net, exported, torch.randn(9, 4).double())


def test_a_model_that_refuses_changed_inputs_keeps_its_constants() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if bool((x.sum(-1) - 1).abs().max() > 1e-6):
                raise ValueError("these are no probabilities")
            return self.b(F.relu(self.a(x)))

    net, x = Fixed().double(), torch.softmax(torch.randn(5, 2).double(), -1)
    kill_in(net.a, 1, 0.5)
    kill_out(net.b, 0)
    exported = compact(net, x)
    assert exported.model.a.out_features == 3
    assert "does not run on changed inputs (ValueError" in says(exported, "a")


def test_half_precision_and_frozen_layers_are_cut_too() -> None:
    net = mlp(8, 16, 16, 4).bfloat16()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    kill_in(net[0], 1, 0.5)
    kill_out(net[4], 7)
    exported = compact(net, torch.randn(5, 8).bfloat16())
    assert [exported.model[i].out_features for i in (0, 2)] == [15, 15]
    assert not any(p.requires_grad for p in exported.model.parameters())
    assert all(p.dtype == torch.bfloat16 for p in exported.model.parameters())


def test_an_output_without_tensors_is_refused() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> str:
            return str(self.b(F.relu(self.a(x))))

    with pytest.raises(ValueError, match="holds no tensor"):
        compact(Text(), torch.randn(3, 2))


def test_a_compact_model_can_be_copied_pickled_and_loaded_into_the_smaller_architecture() -> None:
    net, x = mlp(4, 6, 2), torch.randn(5, 4)
    kill_in(net[0], 1, 0.5)
    made = compact(net, x).model
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(x), made(x))
    smaller = mlp(4, 5, 2)
    smaller.load_state_dict(made.state_dict())
    assert torch.equal(smaller(x), made(x))


ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.ELU, nn.Identity]


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Sequential, list[nn.Linear], int]:
    widths = draw(st.lists(st.integers(1, 6), min_size=3, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    density = draw(st.sampled_from([0.1, 0.3, 0.6]))
    normed = draw(st.booleans())
    layers: list[nn.Module] = []
    linear: list[nn.Linear] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        one = nn.Linear(before, after, bias=draw(st.booleans())).double()
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                there = torch.rand(parameter.shape, generator=generator) < density
                if parameter.dim() == 2 or draw(st.booleans()):
                    parameter.mul_(there)
        linear.append(one)
        layers.append(one)
        if normed:
            norm = nn.BatchNorm1d(after).double()
            with torch.no_grad():
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    tensor.copy_(torch.rand(after, generator=generator) + 0.1)
            layers.append(norm)
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
    del layers[-(2 if normed else 1) :]
    return nn.Sequential(*layers), linear, widths[0]


def naive_widths(linear: list[nn.Linear]) -> list[int]:
    """Count live hidden units with lists: zero a dead unit's row and column until none is found."""
    weights = [layer.weight.tolist() for layer in linear]
    dead = [set() for _ in linear[:-1]]
    found = True
    while found:
        found = False
        for number, gone in enumerate(dead):
            into, out = weights[number], weights[number + 1]
            for unit in range(len(into)):
                fed = any(value != 0 for value in into[unit])
                read = any(row[unit] != 0 for row in out)
                if unit not in gone and not (fed and read):
                    gone.add(unit)
                    found = True
                    into[unit] = [0.0] * len(into[unit])
                    for row in out:
                        row[unit] = 0.0
    return [max(1, len(weights[i]) - len(gone)) for i, gone in enumerate(dead)]


@settings(max_examples=60)
@given(networks())
def test_random_sparse_networks_become_as_small_as_a_loop_says_and_compute_the_same(
    drawn: tuple[nn.Sequential, list[nn.Linear], int],
) -> None:
    net, linear, inputs = drawn
    exported = compact(net, torch.randn(6, inputs).double())
    made = [module for module in exported.model if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in made[:-1]] == naive_widths(linear)
    check_equal(net, exported, torch.randn(20, inputs).double())
