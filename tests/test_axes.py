"""Axes that a user names: units where torch's layers have none, and replicas told apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.anatomy.axes import Axes, declared_axes, parse_axes
from dynamo_probe.functional.dormancy import normalised_scores
from tests.models import mlp
from tests.training import everything, identical, seeded, train

REPLICAS = 3


class Stacked(nn.Module):
    """Linear layers of several networks: [replicas, batch, inputs] -> [replicas, batch, units]."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(REPLICAS, inputs, units) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(REPLICAS, 1, units))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


def ensemble(functional: bool = False) -> nn.Module:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.out = Stacked(4, 8), Stacked(8, 6), Stacked(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.fc2(self.fc1(x).relu()).clamp(min=0))

    if functional:
        return Functional()
    net = nn.Sequential()
    for name, module in (
        ("fc1", Stacked(4, 8)), ("relu1", nn.ReLU()), ("fc2", Stacked(8, 6)),
        ("relu2", nn.ReLU()), ("out", Stacked(6, 2)),
    ):  # fmt: skip
        net.add_module(name, module)
    return net


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(REPLICAS, 16, 4)).square().sum()


AXES = {"fc*": "replica batch unit", "out": "replica batch unit"}


@pytest.mark.parametrize("functional", [False, True])
def test_scores_and_fractions_of_each_replica_equal_those_of_separate_networks(functional) -> None:
    seeded()
    net = ensemble(functional)
    with torch.no_grad():
        net.fc1.bias[1, :, :3] = -100.0  # three dead units in the second network
        net.fc2.weight[2].mul_(1e-3)  # the third is quiet as a whole, not dormant
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    probe = dp.Dormancy((0.0, 0.3), every=1)
    with dp.watch(net, optimizer, probe, axes=AXES, on_error="raise") as watch:
        for _ in range(3):
            x = torch.randn(REPLICAS, 16, 4)
            with torch.no_grad():
                expected: dict[str, list[Tensor]] = {"fc1": [], "fc2": []}
                for r in range(REPLICAS):
                    h = x[r].double()
                    for name in expected:
                        layer = net.get_submodule(name)
                        h = (h @ layer.weight[r].double() + layer.bias[r].double()).relu()
                        expected[name].append(normalised_scores(h.mean(0)))
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
            for name, rows in expected.items():
                found = torch.tensor(watch.history.latest(f"dormancy/scores/{name}"))
                assert torch.allclose(found, torch.cat(rows), rtol=1e-5), name
            for tau in (0.0, 0.3):
                both = zip(expected["fc1"], expected["fc2"], strict=True)
                fractions = [float((torch.cat(pair) <= tau).float().mean()) for pair in both]
                found = watch.history.latest(f"dormancy/replicas/tau={tau}")
                assert found.tolist() == pytest.approx(fractions)
                pooled = watch.history.latest(f"dormancy/tau={tau}")
                assert pooled == pytest.approx(sum(fractions) / REPLICAS)
            assert watch.history.latest("dormancy/samples") == 16
        assert watch.history.latest("dormancy/replicas/tau=0.0")[1] >= 3 / 14
    assert "out  not measured" in str(watch.doctor())


@pytest.mark.parametrize("where", ["training", "probe"])
def test_replicas_are_told_apart_on_a_probe_batch_too_and_probes_change_nothing(where) -> None:
    states = []
    for watched in (False, True):
        seeded()
        net = ensemble()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        batch = torch.ones(REPLICAS, 5, 4)
        if watched:
            probe = dp.Dormancy(every=1, on=where)
            with dp.watch(
                net, optimizer, probe, axes=AXES, probe_batch=batch, on_error="raise"
            ) as watch:
                train(net, optimizer, loss, 4)
            assert len(watch.history.latest("dormancy/replicas/tau=0.1")) == REPLICAS
        else:
            train(net, optimizer, loss, 4)
        states.append(everything([net], [optimizer]))
    assert identical(*states)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dp.ReDo(0.5, 2),
        lambda: dp.Rank(1),
        lambda: dp.ContinualBackprop(),
        lambda: dp.ContinualBackpropUtility(1),
        lambda: dp.Saturation(1),
    ],
)
def test_instruments_that_do_not_tell_replicas_apart_say_so_and_give_no_number(make) -> None:
    seeded()
    net = ensemble()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    instrument = make()
    with dp.watch(net, optimizer, [instrument, dp.Dormancy(1)], axes=AXES) as watch:
        train(net, optimizer, loss, 4)
    figures = [t for t in watch.history.tags() if t.startswith(instrument.name + "/")]
    assert not figures
    reasons = [str(e) for e in watch.events if e.kind in ("skipped", "disabled")]
    assert any("replica" in reason or "Stacked" in reason for reason in reasons), reasons


def test_units_may_lie_on_any_axis_without_replicas() -> None:
    class Late(nn.Module):
        """[units, batch]: the samples come last."""

        def __init__(self, inputs: int, units: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(units, inputs))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight @ x

    seeded()
    net = nn.Sequential(Late(4, 7), nn.ReLU(), Late(7, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    x = torch.randn(4, 20)
    with dp.watch(
        net, optimizer, dp.Dormancy(every=1), axes={"*": "unit batch"}, on_error="raise"
    ) as watch:
        train(net, optimizer, lambda m: m(x).square().mean(), 1)
    h = (net[0].weight.detach().double() @ x.double()).relu()
    found = torch.tensor(watch.history.latest("dormancy/scores/0"))
    assert torch.allclose(found, normalised_scores(h.mean(1)), rtol=1e-5)
    assert watch.history.latest("dormancy/samples") == 20


class Reordered(nn.Module):
    """A stacked layer whose ReLU sees the axes in another order or number."""

    def __init__(self, there, back) -> None:
        super().__init__()
        self.fc1, self.out, self.there, self.back = Stacked(4, 8), Stacked(8, 2), there, back

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.back(self.there(self.fc1(x)).relu()))


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (lambda h: h.transpose(0, 1), lambda h: h.transpose(0, 1)),
        (lambda h: h.flatten(0, 1), lambda h: h.unflatten(0, (REPLICAS, 16))),
        (lambda h: h.unsqueeze(1), lambda h: h.squeeze(1)),
    ],
    ids=["transposed", "flattened", "longer"],
)
def test_replicas_are_counted_in_the_output_where_a_relu_sees_other_axes(there, back) -> None:
    seeded()
    net = Reordered(there, back)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    x = torch.randn(REPLICAS, 16, 4)
    with dp.watch(net, optimizer, dp.Dormancy(1), axes=AXES, on_error="raise") as watch:
        train(net, optimizer, lambda m: m(x).square().sum(), 1)
    h = (x.double() @ net.fc1.weight.detach().double()).relu()
    expected = torch.cat([normalised_scores(one.mean(0)) for one in h])
    found = torch.tensor(watch.history.latest("dormancy/scores/fc1"))
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("axes", "missing"), [("unit a b c", "its units"), ("replica a b unit", "replicas")]
)
def test_a_layer_without_the_named_axis_is_left_out_with_a_reason(axes: str, missing: str) -> None:
    seeded()
    net = Reordered(lambda h: h.transpose(0, 1), lambda h: h.transpose(0, 1))
    given = {"fc1": axes, "out": "replica batch unit"}
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    with dp.watch(net, optimizer, dp.Dormancy(1), axes=given, on_error="raise") as watch:
        train(net, optimizer, loss, 2)
    assert not [t for t in watch.history.tags() if t.startswith("dormancy")]
    assert any(f"no axis of {missing}" in str(e) for e in watch.events if e.kind == "skipped")


def test_axes_that_contradict_a_layer_of_torch_are_refused() -> None:
    net = mlp(4, 8, 2)
    with pytest.raises(ValueError, match="lie on axis -1 of its output, not on -2"):
        dp.watch(net, torch.optim.SGD(net.parameters()), dp.Dormancy(), axes={"0": "unit batch"})
    given = {"*": "batch unit"}
    with dp.watch(net, torch.optim.SGD(net.parameters()), dp.Dormancy(), axes=given):
        pass


def test_of_several_patterns_the_first_counts() -> None:
    given = {"fc1": "replica batch unit", "fc*": "batch unit"}
    assert declared_axes(ensemble(), given) == {"fc1": Axes(-1, -3), "fc2": Axes(-1)}


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("replica batch unit", Axes(-1, -3)),
        ("batch unit h w", Axes(-3)),
        ("unit replica", Axes(-2, -1)),
    ],
)
def test_axes_are_read_from_their_names(text: str, axes: Axes) -> None:
    assert parse_axes(text) == axes


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"fc1": "replica batch"}, "one of them unit"),
        ({"fc1": "unit unit"}, "name each axis once"),
        ({"nope*": "batch unit"}, "no module is called so"),
    ],
)
def test_axes_that_cannot_be_meant_are_refused_with_the_fix(axes, message: str) -> None:
    net = ensemble()
    with pytest.raises(ValueError, match=message):
        dp.watch(net, torch.optim.Adam(net.parameters()), dp.Dormancy(), axes=axes)


def test_networks_under_vmap_are_left_out_with_a_reason_and_train_on() -> None:
    seeded()
    nets = [mlp(4, 8, 1) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(nets)
    base = mlp(4, 8, 1)

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = base
            self.stacked = nn.ParameterDict(
                {name.replace(".", "_"): nn.Parameter(p.detach()) for name, p in stacked.items()}
            )

        def forward(self, x: Tensor) -> Tensor:
            own = {name: self.stacked[name.replace(".", "_")] for name in stacked}
            one = lambda p: torch.func.functional_call(self.base, p, (x,))  # noqa: E731
            return torch.vmap(one)(own)

    net = Ensemble()
    optimizer = torch.optim.Adam(net.stacked.parameters(), 1e-2)
    with dp.watch(net, optimizer, [dp.Dormancy(1), dp.ReDo(0.5, 2)], on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(5, 4)).square().mean(), 3)
    assert not [t for t in watch.history.tags() if t.startswith("dormancy")]
    assert [e for e in watch.events if e.kind == "skipped"]
