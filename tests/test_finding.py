"""Networks are found by the optimizers that train them, with hooks of torch alone."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

import dynamo_probe as dp
from dynamo_probe.finding import Finder, Found, owners
from tests.models import mlp
from tests.training import everything, identical, seeded, train


@pytest.fixture(autouse=True)
def only_this_tests_objects() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # optimizers of other tests that are still alive would be found too
    yield
    gc.unfreeze()
    assert not torch_module._global_forward_pre_hooks
    assert not torch_module._global_module_registration_hooks
    assert not torch_optimizer._global_optimizer_pre_hooks


def loss(net: nn.Module) -> Tensor:
    return net(torch.randn(8, 4)).square().mean()


def steps(finder: Finder, number: int = 0, tag: str = "dormancy/tau=0.1") -> list[int]:
    return finder._watches[number][2].history.series(tag)[0].tolist()


def finder_in(tmp_path: Path, **names: Any) -> Finder:
    return Finder([dp.Dormancy(every=5)], str(tmp_path), names)


class Agent(nn.Module):
    """Two networks that are called by themselves, and a target."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic, self.target = mlp(4, 8, 1), mlp(4, 8, 8, 1), mlp(4, 8, 8, 1)


def test_a_network_whose_optimizer_is_there_is_seen_from_its_first_forward_pass_on(
    tmp_path: Path,
) -> None:
    net = mlp(4, 8, 1)
    optimizer = torch.optim.Adam(net.parameters())
    finder = finder_in(tmp_path, net=net)
    train(net, optimizer, loss, 10)
    assert steps(finder) == [1, 5, 10]
    assert finder.close() == [Found("net", 10, str(tmp_path / "net"))]
    assert list((tmp_path / "net").glob("events*"))


def test_keyword_arguments_of_the_first_call_are_seen(tmp_path: Path) -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(4, 8, 8, 1)

        def forward(self, *, x: Tensor) -> Tensor:
            return self.body(x)

    net = Keyed()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    finder = finder_in(tmp_path)
    train(net, optimizer, lambda m: m(x=torch.randn(8, 4)).square().mean(), 5)
    assert steps(finder) == [1, 5]
    assert finder._watches[0][2]._site.entry_of == {"body.0": "", "body.2": ""}
    assert [one.name for one in finder.close()] == ["keyed"]


def test_an_optimizer_that_is_made_later_is_found_at_its_first_step(tmp_path: Path) -> None:
    net = mlp(4, 8, 1)
    finder = finder_in(tmp_path, net=net)
    net(torch.randn(2, 4))
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, loss, 10)
    assert steps(finder) == [5, 10]
    assert [(one.name, one.updates) for one in finder.close()] == [("net", 10)]


def test_two_networks_with_two_optimizers_are_two_watches(tmp_path: Path) -> None:
    agent = Agent()
    first = torch.optim.Adam(agent.actor.parameters())
    second = torch.optim.Adam(agent.critic.parameters())
    alpha = torch.zeros((), requires_grad=True)
    third = torch.optim.Adam([alpha])
    finder = finder_in(tmp_path, actor=agent.actor, critic=agent.critic)
    for update in range(10):
        train(agent.critic, second, loss, 1)
        if update % 2:
            train(agent.actor, first, loss, 1)
        alpha.square().backward()
        third.step()
    found = {one.name: one.updates for one in finder.close()}
    assert found == {"actor": 5, "critic": 10}
    assert all(list((tmp_path / name).glob("events*")) for name in found)


def test_one_network_with_two_optimizers_is_one_watch(tmp_path: Path) -> None:
    net = mlp(4, 8, 8, 1)
    weights = [p for p in net.parameters() if p.dim() > 1]
    biases = [p for p in net.parameters() if p.dim() == 1]
    optimizers = torch.optim.SGD(biases, 0.1), torch.optim.Adam(weights)
    finder = finder_in(tmp_path, net=net)
    for _ in range(5):
        for optimizer in optimizers:
            train(net, optimizer, loss, 1)
    assert [len(watch._site.optimizers) for _, _, watch in finder._watches] == [2]
    assert finder.close() == [Found("net", 5, str(tmp_path / "net"))]


def test_a_new_optimizer_for_a_network_begins_a_new_log(tmp_path: Path) -> None:
    net = mlp(4, 8, 1)
    finder = finder_in(tmp_path, net=net)
    optimizers = []
    for _ in range(2):
        optimizers.append(torch.optim.Adam(net.parameters()))
        train(net, optimizers[-1], loss, 6)
    assert not optimizers[0]._optimizer_step_post_hooks
    assert [(one.name, one.updates) for one in finder.close()] == [("net", 6), ("net-2", 6)]


def test_a_network_that_cannot_be_watched_is_told_and_trains_on(tmp_path: Path) -> None:
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    finder = finder_in(tmp_path, net=net)
    before = net.weight.detach().clone()
    train(net, optimizer, loss, 3)
    [found] = finder.close()
    assert not torch.equal(before, net.weight)
    assert found.updates == 0 and "no hidden layer" in str(found.trouble)
    assert list(tmp_path.iterdir()) == []


def test_without_training_nothing_is_found_or_written(tmp_path: Path) -> None:
    net = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    finder = finder_in(tmp_path)
    net(torch.randn(2, 4))
    assert finder.close() == []
    assert list(tmp_path.iterdir()) == []
    assert not optimizer._optimizer_step_post_hooks and not net._forward_pre_hooks


def test_a_run_that_is_found_is_bit_identical(tmp_path: Path) -> None:
    runs = []
    for watched in (False, True):
        seeded()
        net = mlp(4, 8, 8, 1)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        finder = finder_in(tmp_path) if watched else None
        train(net, optimizer, loss, 20)
        if finder is not None:
            assert finder.close()[0].updates == 20
        runs.append(everything([net], [optimizer]))
    assert identical(*runs)


def test_a_compiled_network_is_ridden_on_in_one_graph_for_each_state_of_the_gate(
    tmp_path: Path,
) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    net = mlp(4, 8, 8, 1)
    counter = CompileCounter()
    finder = finder_in(tmp_path, net=net)
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    optimizer = torch.optim.Adam(net.parameters())
    train(compiled, optimizer, loss, 10)  # type: ignore[arg-type]
    assert finder._watches[0][2]._site.no_riding is None
    assert steps(finder) == [1, 5, 10]
    assert counter.frame_count == 2
    assert [one.updates for one in finder.close()] == [10]
    assert not compiled._forward_pre_hooks and not net._forward_pre_hooks
    torch._dynamo.reset()


# --- which modules an optimizer trains ------------------------------------------------------------


def owners_of(optimizer: torch.optim.Optimizer, root: nn.Module) -> list[nn.Module]:
    return owners(optimizer, list(root.modules()))


def test_the_owner_is_the_smallest_module_that_has_all() -> None:
    agent = Agent()
    assert owners_of(torch.optim.SGD(agent.critic.parameters(), 0.1), agent) == [agent.critic]
    both = [*agent.actor.parameters(), *agent.critic.parameters()]
    assert owners_of(torch.optim.SGD(both, 0.1), agent) == [agent]


def test_frozen_parts_belong_to_the_network_whose_head_is_trained() -> None:
    net = nn.ModuleDict({"body": mlp(4, 8, 8), "head": nn.Linear(8, 1)})
    net["body"].requires_grad_(False)
    assert owners_of(torch.optim.SGD(net["head"].parameters(), 0.1), net) == [net]
    assert owners_of(torch.optim.SGD(net.parameters(), 0.1), net) == [net]


def test_separate_networks_of_one_optimizer_are_owners_each() -> None:
    first, second = mlp(4, 8, 1), mlp(4, 8, 8, 1)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], 0.1)
    modules = [*first.modules(), *second.modules()]
    assert owners(optimizer, modules) == [second, first]
    assert owners(torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1), modules) == []
