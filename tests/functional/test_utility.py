"""Contribution utility against loops over units and weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.anatomy.wiring import Wiring, wire
from dynamo_probe.functional import contribution_utility, outgoing_magnitude
from tests.models import ConvNet, mlp


def test_a_linear_layer_equals_a_loop_over_units() -> None:
    torch.manual_seed(0)
    net, x = mlp(4, 7, 5, 2), torch.randn(12, 4)
    h = F.relu(net[0](x)).detach().double()
    naive = [
        sum(abs(v) for v in h[:, unit].tolist())
        / 12
        * sum(abs(w) for w in net[2].weight[:, unit].tolist())
        for unit in range(7)
    ]
    found = contribution_utility(net, x)
    assert found["0"].tolist() == pytest.approx(naive, rel=1e-6)
    assert list(found) == ["0", "2"]


def test_a_flattened_feature_map_and_two_heads_count_all_weights_that_read_the_unit() -> None:
    torch.manual_seed(0)
    net, x = ConvNet().eval(), torch.randn(3, 2, 10, 10)
    wirings = wire(net, (x,), {}, ["conv2", "fc"])
    conv, fc = wirings["conv2"], wirings["fc"]
    assert isinstance(conv, Wiring) and isinstance(fc, Wiring)
    by_map = net.fc.weight.detach().view(12, 5, 9).abs().double()  # [out, channel, position]
    assert outgoing_magnitude(conv).tolist() == pytest.approx(by_map.sum((0, 2)).tolist())
    mean = outgoing_magnitude(conv, "mean")
    assert mean.tolist() == pytest.approx(by_map.mean((0, 2)).tolist())
    heads = torch.cat([net.value.weight, net.advantage.weight]).detach().abs().double()
    assert outgoing_magnitude(fc).tolist() == pytest.approx(heads.sum(0).tolist())
    assert outgoing_magnitude(fc, "mean").tolist() == pytest.approx(heads.mean(0).tolist())


def test_a_residual_stream_is_refused_with_its_reason() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x))
            return self.out(h + F.relu(self.b(h)))

    with pytest.raises(ValueError, match="no layer has outgoing weights of its own"):
        contribution_utility(Residual(), torch.randn(5, 4))
