"""Bytes and multiply-adds counted by hand, and verdicts from figures that are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from dynamo_probe.exporting import export
from dynamo_probe.exporting.copying import Different, compare
from dynamo_probe.exporting.measure import size_of, work_of
from dynamo_probe.exporting.timing import Timing, time_forwards
from dynamo_probe.observation.batch import Batch
from tests.models import GPT, ConvNet, mlp


def test_bytes_and_counts_of_a_dense_and_a_csr_layer_are_those_counted_by_hand() -> None:
    net = nn.Linear(50, 20)
    with torch.no_grad():
        net.weight.zero_()
        net.weight[3, :7] = 1.0
        net.bias.fill_(1.0)
        net.bias[4] = 0.0
    report = export(net, "csr").report
    assert (report.before.parameters, report.before.nonzeros) == (1020, 7 + 19)
    assert report.before.memory == 1020 * 4
    assert (report.after.parameters, report.after.nonzeros) == (7 + 20, 7 + 19)
    # 7 values and 7 columns, 21 row starts, 20 biases, 4 bytes each.
    assert report.after.memory == (7 + 7 + 21 + 20) * 4


def test_buffers_count_as_bytes_and_not_as_parameters_and_tied_weights_once() -> None:
    norm = nn.BatchNorm1d(3)
    size = size_of(norm)
    assert size.parameters == 6 and size.memory == 4 * 3 * 4 + 8  # and one int64 counter

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

    assert size_of(Tied()).parameters == 20 and size_of(Tied()).memory == 80
    assert size_of(mlp(2, 3).double()).memory == 9 * 8
    views, whole = nn.Module(), torch.zeros(10)
    views.register_buffer("first", whole[:4])
    views.register_buffer("last", whole[4:])
    assert size_of(views).memory == 40


def test_bytes_on_disk_are_those_of_the_file(tmp_path) -> None:
    net = ConvNet()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    # The archive holds the file's own name, once for each record.
    assert size_of(net).disk == pytest.approx((tmp_path / "weights.pt").stat().st_size, abs=400)


def test_multiply_adds_of_a_convolutional_network_are_those_counted_by_hand() -> None:
    net = ConvNet()
    with torch.no_grad():
        net.conv2.weight[0] = 0.0
        net.fc.weight[:, :10] = 0.0
    work = work_of(net, Batch((torch.randn(3, 2, 10, 10),)))
    conv1, conv2 = 100 * 6 * 2 * 9, 9 * 5 * 6 * 9
    assert work.dense == conv1 + conv2 + 12 * 45 + 12 + 3 * 12
    assert work.effective == conv1 + conv2 * 4 / 5 + 12 * 35 + 12 + 3 * 12


def test_compacting_lowers_the_multiply_adds_by_what_the_unit_took() -> None:
    net = mlp(10, 8, 4)
    with torch.no_grad():
        net[2].weight[:, 1] = 0.0
    report = export(net, "compact", inputs=torch.randn(4, 10), measure=False).report
    assert report.work_before is not None and report.work_after is not None
    assert (report.work_before.dense, report.work_after.dense) == (112, 112 - 14)
    assert (report.work_before.effective, report.work_after.effective) == (112 - 4, 98)


def test_what_cannot_be_counted_is_none_with_the_reason() -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,ijk,bk->bj", x, self.weight, x)

    report = export(Custom(), inputs=torch.randn(2, 3), measure=False).report
    assert report.work_before is not None and report.work_before.dense is None
    assert "multiply-adds cannot be counted: weight" in str(report)


def figures(original: float, again: float, exported: float) -> Timing:
    """Times that waver by 2% around a median."""
    waver = [1 + 0.02 * math.sin(7 * turn) for turn in range(30)]
    other = [1 + 0.02 * math.cos(5 * turn) for turn in range(30)]
    return Timing(
        tuple(original * w for w in waver),
        tuple(again * w for w in other),
        tuple(exported * w for w in reversed(other)),
    )


def test_only_what_lies_beyond_the_noise_is_called_faster() -> None:
    assert figures(1e-3, 1e-3, 5e-4).faster and not figures(1e-3, 1e-3, 5e-4).slower
    assert figures(1e-3, 1e-3, 5e-4).verdict.startswith("faster by a factor of 2.0")
    assert not figures(1e-3, 1e-3, 0.999e-3).faster
    assert "not faster, within the noise" in figures(1e-3, 1e-3, 0.999e-3).verdict
    # The same model is 20% off against itself: 10% are nothing.
    assert not figures(1e-3, 0.8e-3, 0.9e-3).faster
    # That the second copy was slow does not make the exported model fast.
    assert not figures(1e-3, 1.5e-3, 1.2e-3).faster
    assert figures(1e-3, 1e-3, 2e-3).slower
    assert "not faster, but slower" in figures(1e-3, 1e-3, 2e-3).verdict


@pytest.mark.parametrize("rounds", [10, 11, 30, 47, 100])
def test_the_interval_of_the_median_holds_19_of_20_times(rounds: int) -> None:
    _, low, high = Timing((1.0,) * rounds, (1.0,) * rounds, tuple(range(1, rounds + 1))).ratio
    # Missed when fewer than `low` of the ratios, each with probability 1/2, lie below the median.
    tail = sum(math.comb(rounds, k) for k in range(int(low))) / 2**rounds
    assert low - 1 == rounds - high and 0.02 < 2 * tail < 0.13


def test_each_model_is_timed_in_each_round() -> None:
    nets = [mlp(3, 2).eval() for _ in range(3)]
    times = time_forwards(nets, Batch((torch.randn(4, 3),)), 10)
    assert [len(own) for own in times] == [10] * 3 and all(t > 0 for own in times for t in own)


def test_outputs_differ_by_more_than_rounding() -> None:
    a = torch.tensor([1.0, 1000.0], dtype=torch.float64)
    assert compare([a], [a.clone()]) == 0.0
    assert compare([a], [a + 1e-8]) == pytest.approx(1e-8, rel=1e-4)
    nan = torch.tensor([float("nan"), float("inf"), 1.0])
    assert compare([nan], [nan.clone()]) == 0.0
    for other in (a + 1e-6, a[:1], a.float(), torch.tensor([1.0, float("nan")]).double()):
        with pytest.raises(Different):
            compare([a], [other])
    with pytest.raises(Different):
        compare([a], [])
    with pytest.raises(Different):
        compare([torch.tensor([1, 2])], [torch.tensor([1, 3])])


def test_a_transformer_is_measured_with_its_tokens() -> None:
    report = export(GPT(), "dense", inputs=torch.randint(11, (2, 5)), measure=False).report
    block = 16 * 48 + 16 * 16 + 2 * 16 * 64
    assert report.work_before is not None and report.work_before.dense == 5 * (2 * block + 16 * 11)
