"""What is kept is O(units), whatever the batch, and nothing of the activations stays alive."""

import gc
import weakref

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dynamo_probe as dp
from dynamo_probe.observation.statistics import near_bounds, sum_over_samples
from tests.models import ConvNet, mlp


def test_the_accumulators_hold_a_few_numbers_for_each_unit() -> None:
    net = ConvNet()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = dp.Dormancy(every=1, companions=True)
    with dp.watch(net, optimizer, probe, on_error="raise"):
        net(torch.randn(64, 2, 10, 10)).sum().backward()
        recorder = probe.source.recorder
        kept = sum(b.numel() for r in ("sum", "max") for b in recorder.buffers(r).values())
    # Two statistics that sum and two that take the maximum, and a count for each of three layers.
    assert kept == 4 * (6 + 5 + 12) + 3


def test_no_activation_outlives_its_update() -> None:
    net = mlp(4, 8, 6, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    seen: list[weakref.ref] = []
    net[1].register_forward_hook(lambda m, args, output: seen.append(weakref.ref(output)))
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise"):
        for _ in range(3):
            net(torch.randn(16, 4)).sum().backward()
            optimizer.step()
        gc.collect()
        assert [reference() for reference in seen] == [None] * 3


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    axis=st.integers(1, 5),
    strided=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_sums_over_samples_equal_a_plain_reduction(
    shape: list[int], axis: int, strided: bool, seed: int
) -> None:
    axis = -min(axis, len(shape))
    torch.manual_seed(seed)
    h = torch.randn(*shape)
    if strided:
        h = h.transpose(0, -1).contiguous().transpose(0, -1)  # as channels_last tensors lie
    expected = h.double().movedim(axis, 0).reshape(h.shape[axis], -1).sum(1)
    assert torch.allclose(sum_over_samples(h, axis).double(), expected, atol=1e-5)


def test_near_bounds_by_hand() -> None:
    h = torch.tensor([-1.0, -0.985, -0.97, 0.0, 0.985, 1.0])
    assert near_bounds(h, (-1.0, 1.0)).tolist() == [True, True, False, False, True, True]
    assert not near_bounds(h, (0.0, float("inf"))).any()
