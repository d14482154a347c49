"""Under torch.compile: hooks that come in time ride, hooks that come late are not trusted."""

from collections.abc import Callable

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


class Backend:
    """Counts the graphs it is given and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]):
        self.graphs += 1
        return module.forward


Call = Callable[[Tensor], Tensor]


def compiled(way: str, net: Net, backend: object) -> tuple[nn.Module, Call]:
    """Compile a network in one of three ways: what to watch, and what the loop calls."""
    if way == "wrapper":
        wrapper = torch.compile(net, backend=backend, fullgraph=True)
        return wrapper, lambda x: wrapper(x).square().mean()
    if way == "method":
        net.compile(backend=backend, fullgraph=True)
        return net, lambda x: net(x).square().mean()
    if way == "train step":
        return net, torch.compile(lambda x: net(x).square().mean(), backend=backend, fullgraph=True)
    return net, lambda x: net(x).square().mean()


def run(way: str, backend: object = "aot_eager", watched: bool = True):
    """Train for 12 updates; return the weights, the watch, and the graphs after each update."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    model, call = compiled(way, net, backend)
    probe = dp.Dormancy(every=4)
    batch = torch.randn(5, 4, generator=torch.Generator().manual_seed(9))
    watch = (
        dp.watch(model, optimizer, probe, probe_batch=batch, on_error="raise") if watched else None
    )
    torch.manual_seed(1)
    graphs = []
    for _ in range(12):
        optimizer.zero_grad()
        call(torch.randn(16, 4)).backward()
        optimizer.step()
        graphs.append(getattr(backend, "graphs", 0))
    if watch is not None:
        watch.close()
    return [p.detach().clone() for p in net.parameters()], watch, graphs


WAYS = ("wrapper", "method", "train step")


@pytest.mark.parametrize("way", WAYS)
def test_it_rides_inside_the_graph_and_reads_what_eager_reads(way: str) -> None:
    eager, riding = run("eager")[1], run(way)[1]
    assert riding.history.series("dormancy/samples")[1].tolist() == [16] * 4
    for tag in ("dormancy/tau=0.1", "dormancy/dead"):
        assert riding.history.series(tag)[1].tolist() == eager.history.series(tag)[1].tolist()
    for name in ("net.0", "net.2"):
        seen, plain = (
            torch.tensor(w.history.latest(f"dormancy/scores/{name}")) for w in (riding, eager)
        )
        assert torch.allclose(seen, plain, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_two_graphs_in_all_no_breaks_and_none_from_the_third_update_on(way: str) -> None:
    backend = Backend()
    graphs = run(way, backend)[2]
    assert graphs[:2] == [1, 2]  # the gate is on at update 1, and off at update 2
    assert set(graphs[2:]) == {2}
    assert not torch._dynamo.utils.counters["graph_break"]


# torch's own import of inductor uses what torch deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_compiled_run_with_the_probe_is_bit_identical_to_the_one_without(backend: str) -> None:
    watched, _, _ = run("wrapper", backend)
    torch._dynamo.reset()
    bare, _, _ = run("wrapper", backend, watched=False)
    assert all(torch.equal(a, b) for a, b in zip(watched, bare, strict=True))


def test_without_a_probe_batch_the_first_call_of_the_wrapper_shows_the_layers() -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    backend = Backend()
    model = torch.compile(net, backend=backend, fullgraph=True)
    with dp.watch(model, optimizer, dp.Dormancy(every=3), on_error="raise") as watch:
        train(model, optimizer, loss, 9)
    assert watch.history.series("dormancy/samples")[1].tolist() == [16] * 4
    assert backend.graphs == 2


def test_the_users_compiler_settings_are_left_alone() -> None:
    before = torch._dynamo.config.get_config_copy()
    run("wrapper")
    assert torch._dynamo.config.get_config_copy() == before


def test_hooks_that_a_compiled_train_step_ignores_are_found_out() -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    _, call = compiled("train step", net, "eager")
    call(torch.randn(16, 4)).backward()
    with dp.watch(
        net, optimizer, dp.Dormancy(every=1), probe_batch=torch.randn(3, 4), on_error="raise"
    ) as watch:
        for _ in range(2):
            call(torch.randn(16, 4)).backward()
            optimizer.step()
    assert watch.history.tags() == []
    reasons = " ".join(str(event) for event in watch.events)
    assert "its tap did not fire" in reasons and "attach before its first call" in reasons
    assert "had no sample in 2 readings" in str(watch.doctor())


@pytest.mark.parametrize("make", [Net, lambda: mlp(4, 8, 6, 1)])
def test_attached_too_late_it_says_so_and_observes_apart(make) -> None:
    torch.manual_seed(0)
    net = make()
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
