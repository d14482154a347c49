"""Masks against loops and real layers; the report against what can be counted by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.functional import sparsity_report
from dynamo_probe.functional.connectivity import (
    bitmask_bytes,
    csr_bytes,
    cut_off,
    fan_in,
    fan_out,
    inputs_unread,
    overparameterisation,
    survival,
    turnover,
    units_without_input,
)
from tests.models import GPT, ConvNet, mlp
from tests.training import everything, identical

SEEDS = st.integers(0, 9999)
DENSITIES = st.sampled_from((0.0, 0.05, 0.3, 0.7, 1.0))


def planted(shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def sparsify(net: nn.Module, density: float, seed: int = 0) -> dict[str, Tensor]:
    """Put random masks on everything of two dimensions or more, and return them."""
    masks = {n: planted(p.shape, density, seed) for n, p in net.named_parameters() if p.dim() > 1}
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).masked_fill_(~mask, 0.0)
    return masks


# --- masks ----------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), DENSITIES, SEEDS)
def test_fan_in_and_fan_out_are_what_ones_give_through_the_layer_itself(
    groups: int, before: int, after: int, transposed: bool, density: float, seed: int
) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(groups * before, groups * after, (2, 3), groups=groups, bias=False).double()
    mask = planted(layer.weight.shape, density, seed)
    with torch.no_grad():
        layer.weight.copy_(mask)
    # Each entry of a filter is met once by an input that is as large as the filter (transposed: 1).
    size = (1, 1) if transposed else (2, 3)
    x = torch.ones(1, groups * before, *size, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    units, inputs = (1, 0) if transposed else (0, 1)
    leading_in = fan_in(mask, units, groups=groups)
    reading = fan_out(mask, inputs, groups=groups)
    assert leading_in.tolist() == out.sum((0, 2, 3)).tolist()
    assert reading.tolist() == gradient.sum((0, 2, 3)).tolist()
    assert torch.equal(units_without_input(mask, units, groups=groups), leading_in == 0)
    assert torch.equal(inputs_unread(mask, inputs, groups=groups), reading == 0)


def test_of_a_matrix_rows_are_units_and_columns_are_inputs() -> None:
    mask = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 2]])
    assert units_without_input(mask).tolist() == [False, True, False]
    assert inputs_unread(mask).tolist() == [False, True, True, False]
    assert units_without_input(mask.t(), 1).tolist() == [False, True, False]
    assert inputs_unread(mask.t(), 0).tolist() == [False, True, True, False]


def test_a_gate_is_cut_off_only_when_neither_of_its_weights_leads_in() -> None:
    into = {
        "rnn.weight_ih_l0": torch.tensor([0, 0, 2]),
        "rnn.weight_hh_l0": torch.tensor([0, 3, 0]),
        "rnn.weight_hh_l1": torch.tensor([0, 0, 1]),  # its weight_ih is whole
        "fc.weight": torch.tensor([1, 0]),
    }
    found = {name: units.tolist() for name, units in cut_off(into).items()}
    assert found == {
        "rnn.weight_ih_l0": [True, False, False],
        "rnn.weight_ih_l1": [False, False, False],
        "fc.weight": [False, True],
    }


@given(st.lists(st.tuples(DENSITIES, SEEDS), min_size=1, max_size=5))
def test_changes_are_those_of_sets_of_indices(drawn: list[tuple[float, int]]) -> None:
    shapes = {"a": (3, 5), "b": (4, 2, 2)}
    steps = [{n: planted(s, d, seed) for n, s in shapes.items()} for d, seed in drawn]
    sets = [
        {(n, *index) for n, mask in step.items() for index in mask.nonzero().tolist()}
        for step in steps
    ]
    union = {n: torch.stack([step[n] for step in steps]).any(0) for n in shapes}
    assert overparameterisation(union) == len(set().union(*sets)) / 31
    for (before, after), (then, now) in zip(
        zip(steps, steps[1:], strict=False), zip(sets, sets[1:], strict=False), strict=True
    ):
        change = turnover(before, after)
        assert (change.dropped, change.grown, change.active) == (
            len(then - now),
            len(now - then),
            len(now),
        )
        assert change.share == pytest.approx(
            len(now - then) / len(now) if now else float("nan"), nan_ok=True
        )
        kept = len(then & now) / len(then) if then else float("nan")
        assert survival(before, after) == pytest.approx(kept, nan_ok=True)


def test_masks_of_other_weights_or_shapes_are_refused() -> None:
    mask = torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match="give the same ones"):
        turnover({"a": mask}, {"b": mask})
    with pytest.raises(ValueError, match=r"the masks of a have shapes \[2, 3\] and \[3, 2\]"):
        survival({"a": mask}, {"a": mask.t()})


@given(st.integers(1, 9), st.integers(1, 9), DENSITIES, SEEDS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_bytes_are_those_of_torchs_csr_and_of_numpys_bits(
    rows: int, columns: int, density: float, seed: int
) -> None:
    mask = planted((rows, columns), density, seed)
    csr = mask.to(torch.float64).to_sparse_csr()
    parts = csr.crow_indices().int(), csr.col_indices().int(), csr.values()
    count = int(mask.sum())
    expected = sum(part.numel() * part.element_size() for part in parts)
    assert csr_bytes(rows, columns, count, 8) == expected
    bits = np.packbits(mask.numpy())
    assert bitmask_bytes(mask.numel(), count, 2) == bits.nbytes + 2 * count


def test_indices_that_int32_cannot_hold_take_eight_bytes() -> None:
    assert csr_bytes(1, 2**31, 3, 2) == 3 * (2 + 8) + 2 * 8
    assert csr_bytes(1, 2**31 - 1, 3, 2) == 3 * (2 + 4) + 2 * 4


# --- the report -----------------------------------------------------------------------------------


def loops(weight: Tensor) -> tuple[list[bool], list[bool]]:
    """Rows and columns of a weight that hold nothing, entry by entry."""
    rows = [all(v == 0 for v in row.flatten().tolist()) for row in weight]
    columns = [all(v == 0 for v in weight[:, i].flatten().tolist()) for i in range(weight.shape[1])]
    return rows, columns


def test_the_report_of_a_convolutional_net_by_loops() -> None:
    torch.manual_seed(0)
    net, x = ConvNet(), torch.randn(4, 2, 10, 10)
    names = list(sparsify(net, 0.15))
    with torch.no_grad():
        net.conv1.weight[3] = 0
        net.conv2.weight[:, [1, 4]] = 0
        net.fc.weight[:, 9:18] = 0  # the 9 positions of feature map 1 of conv2
        net.fc.weight[:, 27:35] = 0  # all but the last of feature map 3
        net.fc.weight[4, 35] = 1.0
        net.value.weight[0, 5] = 0
        net.advantage.weight[:, 5] = 0
    report = sparsity_report(net, x)
    total = cut = 0
    for name in names:
        weight, found = net.get_parameter(name).detach(), report.weights[name]
        rows, columns = loops(weight)
        assert found.shape == tuple(weight.shape)
        assert found.connections == sum(v != 0 for v in weight.flatten().tolist())
        assert found.density == found.connections / weight.numel()
        assert found.without_input.tolist() == rows
        assert found.unread.tolist() == columns
        assert found.fan_in.tolist() == [int((row != 0).sum()) for row in weight]
        assert found.outside == 0
        total, cut = total + len(rows), cut + sum(rows)
    assert (report.units, report.units_without_input) == (total, cut)
    fc = net.fc.weight.detach()
    maps = [all(v == 0 for v in fc[:, 9 * i : 9 * i + 9].flatten().tolist()) for i in range(5)]
    heads = [
        not (net.value.weight[:, i].any() or net.advantage.weight[:, i].any()) for i in range(12)
    ]
    conv1 = loops(net.conv2.weight.detach())[1]
    assert maps[1] and not maps[3] and conv1[1] and conv1[4] and heads[5]
    for name, expected in (("conv1", conv1), ("conv2", maps), ("fc", heads)):
        unread = report.weights[f"{name}.weight"].without_output
        assert unread is not None and unread.tolist() == expected
    assert report.units_without_output == sum(conv1) + sum(maps) + sum(heads)
    assert report.hidden_units == 6 + 5 + 12
    assert set(report.unwired) == {"value", "advantage"}
    # Output positions: 10 x 10 with padding, then 5 x 5 pooled and 3 x 3 without.
    positions = {"conv1": 100, "conv2": 9, "fc": 1, "value": 1, "advantage": 1}
    for name, count in positions.items():
        found = report.weights[f"{name}.weight"]
        assert found.multiply_adds == count * found.connections
        assert found.dense_multiply_adds == count * found.size
    assert report.multiply_adds == sum(
        positions[n.partition(".")[0]] * w.connections for n, w in report.weights.items()
    )
    assert report.size == sum(net.get_parameter(name).numel() for name in names)
    assert report.density == report.connections / report.size


def test_bytes_are_of_all_parameters_in_their_own_type() -> None:
    torch.manual_seed(0)
    net = mlp(9, 7, 2).to(torch.bfloat16)
    sparsify(net, 0.3)
    report = sparsity_report(net)
    counts = {n: int(p.count_nonzero()) for n, p in net.named_parameters() if p.dim() > 1}
    assert report.bytes == 2 * sum(p.numel() for p in net.parameters())
    assert report.left_bytes == 2 * (7 + 2)
    bits = -(-63 // 8) + -(-14 // 8)
    assert report.bitmask_bytes == report.left_bytes + bits + 2 * sum(counts.values())
    indices = 4 * (sum(counts.values()) + 8 + 3)
    assert report.csr_bytes == report.left_bytes + indices + 2 * sum(counts.values())


def test_without_inputs_nothing_is_said_that_needs_them() -> None:
    report = sparsity_report(mlp(3, 4, 2))
    assert report.multiply_adds is report.dense_multiply_adds is report.units_without_output is None
    assert all(w.without_output is w.multiply_adds is None for w in report.weights.values())
    assert report.density == 1.0
    assert "multiply-adds for one sample" not in str(report)


def test_given_masks_count_and_weights_that_do_not_follow_them_are_told() -> None:
    torch.manual_seed(0)
    net = mlp(4, 5, 3)
    mask = planted((5, 4), 0.5, 1)
    with torch.no_grad():
        net[0].weight.masked_fill_(~mask, 0.0)
        net[0].weight[mask] = 0.0  # there, and 0 so far
        net[0].weight[~mask] += torch.tensor([1.0] + [0.0] * (int((~mask).sum()) - 1))
    report = sparsity_report(net, torch.randn(2, 4), masks={"0.weight": mask})
    assert list(report.weights) == ["0.weight"]
    assert report.left["2.weight"] == "masks= has no mask of it"
    assert report.weights["0.weight"].connections == int(mask.sum())
    assert report.weights["0.weight"].outside == 1
    assert report.multiply_adds == int(mask.sum()) + 15
    assert report.dense_multiply_adds == 20 + 15
    assert "not 0 where the mask has no connection: 0.weight (1)" in str(report)
    # What is left whole reads every unit.
    assert report.units_without_output == 0


def test_frozen_tied_and_excluded_weights() -> None:
    torch.manual_seed(0)
    net = GPT(depth=1)
    net.head.weight = net.embed.weight
    sparsify(net, 0.4)
    net.requires_grad_(False)
    report = sparsity_report(net, torch.randint(11, (2, 6)), exclude=["blocks.0.out"])
    assert "head.weight" not in report.weights and "blocks.0.out.weight" not in report.weights
    assert report.left["blocks.0.out.weight"] == "a pattern of exclude= names it"
    assert "embedding" in report.left["embed.weight"]
    # What is left whole counts in full, the head that is tied to the embedding as well.
    kept = sum(w.connections for w in report.weights.values())
    assert report.multiply_adds == 6 * (kept + 16 * 16 + 11 * 16)
    assert report.dense_multiply_adds == 6 * (16 * 48 + 16 * 16 + 2 * 16 * 64 + 11 * 16)
    assert not any(p.requires_grad for p in net.parameters())


def test_gated_units_are_counted_once_and_read_by_one_weight() -> None:
    torch.manual_seed(0)
    net = GPT(depth=1, gated=True)
    sparsify(net, 0.3)
    with torch.no_grad():
        net.blocks[0].down.weight[:, [3, 40]] = 0  # type: ignore[index]
    report = sparsity_report(net, torch.randint(11, (2, 6)))
    assert report.hidden_units == 64
    expected = sum(loops(net.blocks[0].down.weight.detach())[1])  # type: ignore[union-attr]
    assert report.units_without_output == expected >= 2


def test_a_computed_weight_has_no_multiply_adds_and_the_reason_is_given() -> None:
    net = mlp(3, 4, 2)
    nn.utils.parametrizations.weight_norm(net[0])
    report = sparsity_report(net, torch.randn(5, 3))
    assert report.multiply_adds is None
    assert report.weights["2.weight"].multiply_adds == 8
    assert any(name.startswith("0.") for name in report.uncounted)
    assert "multiply-adds not counted" in str(report)


def test_the_table_has_a_row_for_each_weight_and_the_reasons() -> None:
    torch.manual_seed(0)
    net = ConvNet()
    sparsify(net, 0.2)
    report = sparsity_report(net, torch.randn(2, 2, 10, 10))
    lines = str(report).splitlines()
    assert (
        lines[0].split() == "weight shape there density no input no output unread mult-adds".split()
    )
    row = next(line for line in lines if line.startswith("conv2.weight")).split()
    assert row[1:4] == [
        "5x6x3x3",
        str(report.weights["conv2.weight"].connections),
        f"{report.weights['conv2.weight'].density:.4f}",
    ]
    assert any(line.startswith("left whole") for line in lines)
    assert any("norm.weight: it belongs to a norm" in line for line in lines)
    assert len({len(line.rstrip()) for line in lines[2:7]}) == 1


@pytest.mark.parametrize("inputs", ["text", print, 3])
def test_inputs_of_another_kind_are_refused(inputs: object) -> None:
    with pytest.raises(TypeError, match="tensor"):
        sparsity_report(mlp(2, 2), inputs)


def test_mistakes_are_refused() -> None:
    net = mlp(3, 4, 2)
    with pytest.raises(ValueError, match="names no parameter"):
        sparsity_report(net, exclude=["fc*"])
    with pytest.raises(ValueError, match=r"'nothing', which is no weight .* 0.weight, 2.weight"):
        sparsity_report(net, masks={"nothing": torch.ones(1)})
    with pytest.raises(ValueError, match="'0.bias', which is no weight of the report: a bias"):
        sparsity_report(net, masks={"0.bias": torch.ones(4)})
    with pytest.raises(ValueError, match=r"has shape \(3, 4\); give one of the weight's, \(4, 3\)"):
        sparsity_report(net, masks={"0.weight": torch.ones(3, 4)})


def test_the_model_gradients_and_random_states_stay_as_they_are() -> None:
    torch.manual_seed(0)
    net, x = ConvNet(), torch.randn(3, 2, 10, 10)
    F.cross_entropy(net(x), torch.tensor([0, 1, 2])).backward()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    before, modes = everything([net], []), [module.training for module in net.modules()]
    sparsity_report(net, x)
    assert identical(before, everything([net], []))
    assert [module.training for module in net.modules()] == modes
    assert identical(gradients, [p.grad for p in net.parameters() if p.grad is not None])
