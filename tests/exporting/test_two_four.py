"""2:4: the check against a loop, the packed form bit by bit, and what a CPU is told."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.exporting import export
from dynamo_probe.exporting.two_four import PackedLinear, accelerated, broken_groups, no_kernel


def two_four(units: int, inputs: int, seed: int = 0) -> Tensor:
    """At most two of four, at random places; some groups have fewer."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(units, inputs // 4, 4, generator=generator)
    rank = torch.rand(values.shape, generator=generator).argsort(-1).argsort(-1)
    values = values * (rank < 2) * (torch.rand(values.shape, generator=generator) < 0.8)
    return values.flatten(1)


@given(
    st.integers(1, 4).flatmap(
        lambda groups: st.lists(
            st.lists(
                st.sampled_from([0.0, -0.0, 1.0, -2.5]), min_size=4 * groups, max_size=4 * groups
            ),
            min_size=1,
            max_size=4,
        )
    )
)
def test_broken_groups_are_those_that_a_loop_counts(rows: list[list[float]]) -> None:
    naive = 0
    for row in rows:
        for start in range(0, len(row), 4):
            naive += sum(value != 0 for value in row[start : start + 4]) > 2
    assert broken_groups(torch.tensor(rows)) == naive


@pytest.mark.parametrize("inputs", [4, 8, 12, 20, 64])
def test_the_packed_form_gives_the_weight_back_bit_by_bit(inputs: int) -> None:
    weight = two_four(6, inputs)
    layer = PackedLinear.from_dense(weight)
    assert torch.equal(layer.matrix(), weight)
    assert layer.values.shape == (6, inputs // 2) and layer.places.shape == (6, -(-inputs // 8))
    assert layer.places.dtype == torch.uint8 and layer.nonzeros == int((weight != 0).sum())
    x = torch.randn(2, 3, inputs)
    assert torch.equal(layer(x), F.linear(x, weight))


def test_a_weight_that_is_not_two_of_four_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="not 2:4"):
        PackedLinear.from_dense(torch.ones(2, 4))
    with pytest.raises(ValueError, match="not 2:4"):
        PackedLinear.from_dense(torch.zeros(2, 6))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight.copy_(two_four(32, 16))
        net[2].weight.copy_(two_four(8, 32))
        net[2].weight[5, 8:12] = 1.0
        net[2].weight[7, 28:31] = 1.0
    return net


def test_a_cpu_is_told_that_it_cannot_and_what_it_takes() -> None:
    net, x = network(), torch.randn(5, 16)
    exported = export(net, "2:4", inputs=x, measure=False)
    good, broken, last = exported.report.layers
    assert not any(layer.changed for layer in exported.report.layers)
    assert "all 128 groups, but stays dense" in good.what
    assert "CUDA GPUs of compute capability 8.0" in good.what and "on cpu" in good.what
    assert "not 2:4, 2 of 64 groups" in broken.what and "6 of 6 groups" in last.what
    assert not exported.report.smaller and torch.equal(exported.model(x), net(x))
    reason = accelerated(net[0].weight)
    assert isinstance(reason, str) and reason == no_kernel(net[0].weight)


def test_packing_is_reported_as_smaller_and_never_faster() -> None:
    net, x = network(), torch.randn(5, 16)
    exported = export(net, "2:4", inputs=x, pack=True, measure=False)
    assert [layer.changed for layer in exported.report.layers] == [True, False, False]
    assert "smaller, never faster" in exported.report.layers[0].what
    assert exported.report.smaller and torch.equal(exported.model(x), net(x))
    # 512 weights of 4 bytes become 256 of 4 bytes and 128 groups of 4 bits.
    saved = exported.report.before.memory - exported.report.after.memory
    assert saved == 512 * 4 - (256 * 4 + 128 // 2)
    packed = exported.model[0]
    assert isinstance(packed, PackedLinear)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other(x), packed(x))
    fresh = copy.deepcopy(exported.model)
    with torch.no_grad():
        fresh[0].values.zero_()
    fresh.load_state_dict(exported.model.state_dict())
    assert torch.equal(fresh(x), net(x))


def test_inputs_that_are_not_whole_groups_and_convolutions_stay_dense() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(36, 6), nn.Linear(6, 2))
    conv, linear, odd = export(
        net, "2:4", inputs=torch.randn(2, 4, 3, 3), measure=False
    ).report.layers
    assert "convolutions" in conv.what and "54 of 54 groups" in linear.what
    assert "its 6 inputs are not whole groups of four" in odd.what


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_the_semi_structured_form_takes_the_weights_place_and_its_bytes_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.sparse import SparseSemiStructuredTensorCUTLASS as SemiStructured
    from torch.sparse import _semi_structured_conversions as conversions

    def without_a_kernel(weight: Tensor) -> nn.Parameter:
        values, places = conversions.sparse_semi_structured_from_dense_cutlass(weight)
        made = SemiStructured(weight.shape, values, places, None, None, None)
        return nn.Parameter(made, requires_grad=False)

    monkeypatch.setattr("dynamo_probe.exporting.layers.accelerated", without_a_kernel)
    net = nn.Sequential(nn.Linear(128, 64, bias=False)).half()
    with torch.no_grad():
        net[0].weight.copy_(two_four(64, 128))
    exported = export(net, "2:4")
    assert isinstance(exported.model[0].weight, SemiStructured)
    assert list(exported.model.state_dict()) == ["0.weight"]
    # Half of the values, 2 bytes each, and two bits to place each of them.
    assert exported.report.after.memory == 4096 * 2 + 4096 * 2 // 8
    assert exported.report.after.parameters == 4096
    assert exported.report.after.nonzeros == exported.report.before.nonzeros


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a GPU of compute capability 8.0 or later",
)
def test_a_gpu_computes_with_the_semi_structured_weight() -> None:
    weight = two_four(128, 256)
    net = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).cuda().half()
    with torch.no_grad():
        net[0].weight.copy_(weight)
    x = torch.randn(64, 256).cuda().half()
    exported = export(net, "2:4", inputs=x, measure=False)
    assert [layer.changed for layer in exported.report.layers] == [True, False]
    assert torch.allclose(exported.model(x).float(), net(x).float(), atol=2e-2)
