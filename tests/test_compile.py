"""Under torch.compile: hooks that come in time ride, hooks that come late are not trusted."""

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from tests.models import mlp
from tests.training import train


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(16, 4)).square().mean()


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(compiled: bool) -> dp.Watch:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    model = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
    with dp.watch(model, optimizer, dp.Dormancy(every=2), on_error="raise") as watch:
        torch.manual_seed(1)
        train(model, optimizer, loss, 6)
    return watch


def test_attached_before_the_first_compiled_call_it_rides_and_reads_what_eager_reads() -> None:
    eager, compiled = run(False), run(True)
    assert compiled.history.series("dormancy/samples")[1].tolist() == [16] * 4
    for tag in ("dormancy/tau=0.1", "dormancy/dead"):
        assert compiled.history.series(tag)[1].tolist() == eager.history.series(tag)[1].tolist()


def test_attached_too_late_it_says_so_and_observes_apart() -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    model = torch.compile(net, backend="eager")
    train(model, optimizer, loss, 1)
    with pytest.warns(dp.DynamoProbeWarning, match="attach before its first call"):
        watch = dp.watch(model, optimizer, dp.Dormancy(every=2), on_error="raise")
    train(model, optimizer, loss, 4)
    watch.close()
    assert watch.history.series("dormancy/samples")[1].tolist() == [16, 16, 16]
    report = str(watch.doctor())
    assert "already run under torch.compile" in report
    assert "runs the model apart" in report


def test_a_compiled_method_needs_a_probe_batch_and_says_so() -> None:
    torch.manual_seed(0)
    net = Net()
    net.compile(backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.warns(dp.DynamoProbeWarning, match="give probe_batch="):
        dp.watch(net, optimizer, dp.Dormancy(every=2), on_error="raise").close()
    with dp.watch(
        net, optimizer, dp.Dormancy(every=2), probe_batch=torch.randn(3, 4), on_error="raise"
    ) as watch:
        train(net, optimizer, loss, 4)
    assert watch.history.series("dormancy/samples")[1].tolist() == [16, 16, 16]
