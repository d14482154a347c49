"""The gradient probe against gradients taken by hand, in every way a loop can step."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from tests.models import ConvNet, mlp
from tests.training import train


def by_hand(net: nn.Module, *losses: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """Gradients of the sum of some losses, through autograd alone."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    total = sum(loss(net) for loss in losses)
    assert isinstance(total, Tensor)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


def norm(*tensors: Tensor) -> float:
    return sum(t.double().square().sum().item() for t in tensors) ** 0.5


def fixed(*shape: int, seed: int = 3) -> Callable[[nn.Module], Tensor]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return lambda net: net(x).square().mean()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp(4, 8, 6, 1)


def test_norms_by_layer_and_in_all_with_the_ratio_to_the_weights() -> None:
    net, loss = small(), fixed(16, 4)
    expected, before = by_hand(net, loss), [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        train(net, optimizer, loss, 1)
    latest = watch.history.latest
    total = norm(*expected.values())
    assert latest("gradients/norm") == pytest.approx(total, rel=1e-6)
    assert latest("gradients/norm_before_clipping") == pytest.approx(total, rel=1e-6)
    assert latest("gradients/to_weight") == pytest.approx(total / norm(*before), rel=1e-6)
    layer = norm(expected["2.weight"], expected["2.bias"])
    assert latest("gradients/layer/2/norm") == pytest.approx(layer, rel=1e-6)


def test_clipping_is_seen_and_micro_batches_add_up() -> None:
    net, parts = small(), [fixed(5, 4), fixed(9, 4, seed=4)]
    expected = by_hand(net, *parts)
    optimizer = torch.optim.Adam(net.parameters())
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        for part in parts:
            part(net).backward()
        whole = nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        optimizer.step()
    latest = watch.history.latest
    assert latest("gradients/norm_before_clipping") == pytest.approx(whole.item(), rel=1e-6)
    assert latest("gradients/norm") == pytest.approx(1e-3, rel=1e-3)
    layer = norm(expected["0.weight"], expected["0.bias"])
    assert latest("gradients/layer/0/norm_before_clipping") == pytest.approx(layer, rel=1e-5)


def test_zeros_are_the_incoming_weights_of_dead_units_and_the_weights_that_read_them() -> None:
    net = mlp(4, 8, 1)
    with torch.no_grad():
        net[0].bias.fill_(9.0)
        net[0].bias[:3] = -99.0
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        train(net, optimizer, fixed(16, 4), 1)
    # 3 dead units: 4 weights and a bias each lead in, 1 weight leads out; of 8 * 5 + 8 + 1.
    assert watch.history.latest("gradients/zero_fraction") == 3 * 6 / 49
    assert watch.history.latest("gradients/grama_activation") == 3 / 8
    assert watch.history.latest("gradients/grama_weight") == 3 / 8


def activation_scores(batches: list[Tensor]) -> Tensor:
    """E|dL/dz| over all samples relative to its mean, by a loop over samples."""
    rows = [row for gradient in batches for row in gradient.double()]
    magnitude = sum((row.abs() for row in rows), torch.zeros(())) / len(rows)
    return magnitude / magnitude.mean()


@pytest.mark.parametrize("updates", [1, 2])
def test_grama_by_activations_over_micro_batches_with_an_activation_in_place(updates: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(inplace=True), nn.Linear(9, 2))
    inputs = [torch.randn(n, 4) for n in (5, 7, 3, 6, 2, 9)]
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    expected = []
    for x in inputs[-2 * updates :]:
        z = net[0](x).detach().requires_grad_()
        expected += torch.autograd.grad(net[2](F.relu(z)).square().sum(), z)
    probe = dp.Gradients(every=3, updates=updates)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        for pair in (inputs[:2], inputs[2:4], inputs[4:]):
            optimizer.zero_grad()
            with torch.no_grad():
                net(torch.randn(50, 4))
            net(torch.randn(8, 4))  # acting: no backward pass
            for x in pair:
                net(x).square().sum().backward()
            optimizer.step()
    scores = torch.tensor(watch.history.latest("gradients/scores/activation/0"))
    assert torch.allclose(scores, activation_scores(expected), rtol=1e-5)
    assert watch.history.samples("gradients/grama_activation") == sum(
        len(x) for x in inputs[-2 * updates :]
    )


def test_both_gramas_of_a_convolution_are_per_feature_map_before_the_norm() -> None:
    torch.manual_seed(0)
    net, x = ConvNet(), torch.randn(3, 2, 10, 10)
    net.drop.p = 0.0
    kept: list[Tensor] = []
    handle = net.conv1.register_forward_hook(lambda m, a, out: kept.append(out))
    gradient = torch.autograd.grad(net(x).square().sum(), [kept[0], net.conv1.weight])
    handle.remove()
    at_maps = gradient[0].double().abs().mean((0, 2, 3))
    at_weights = torch.stack([filters.double().abs().mean() for filters in gradient[1]])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(x).square().sum(), 1)
    for kind, values in (("activation", at_maps), ("weight", at_weights)):
        scores = torch.tensor(watch.history.latest(f"gradients/scores/{kind}/conv1"))
        assert torch.allclose(scores, values / values.mean(), rtol=1e-4)


def test_a_transposed_convolution_has_its_units_along_the_second_dimension() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        train(net, optimizer, fixed(3, 2, 4, 4), 1)
    gradient = net[0].weight.grad
    assert gradient is not None
    naive = torch.tensor([gradient[:, unit].double().abs().mean() for unit in range(5)])
    scores = torch.tensor(watch.history.latest("gradients/scores/weight/0"))
    assert torch.allclose(scores, (naive / naive.mean()).double(), rtol=1e-5)


def test_nesterov_writes_into_its_gradients_and_is_read_before_it_does() -> None:
    net, loss = small(), fixed(16, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, foreach=True)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        for _ in range(2):
            expected = by_hand(net, loss)
            train(net, optimizer, loss, 1)
    left = [p.grad for p in net.parameters() if p.grad is not None]
    assert norm(*left) > 1.5 * norm(*expected.values())
    assert watch.history.latest("gradients/norm") == pytest.approx(norm(*expected.values()))


def closure_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    loss = fixed(16, 4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    return closure


def test_with_a_closure_the_gradients_of_this_step_are_read() -> None:
    net, loss = small(), fixed(16, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        for _ in range(3):
            expected = norm(*by_hand(net, loss).values())
            optimizer.step(closure_of(net, optimizer))
            assert watch.history.latest("gradients/norm") == pytest.approx(expected)
            assert watch.history.latest("gradients/norm_before_clipping") == pytest.approx(expected)


def test_a_closure_and_an_optimizer_that_overwrites_gradients_is_not_measured() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        optimizer.step(closure_of(net, optimizer))
    assert "gradients/norm" not in watch.history.tags()
    assert "writes into its gradients" in str(watch.events[0])


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_scale_of_a_gradient_scaler_is_divided_out(fused: bool, unscaled: bool) -> None:
    net, loss = small(), fixed(16, 4)
    expected = by_hand(net, loss)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        scaler.scale(loss(net)).backward()
        if unscaled:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
        scaler.step(optimizer)
    total = norm(*expected.values())
    assert total > 2e-2
    before = watch.history.latest("gradients/norm_before_clipping")
    assert before == pytest.approx(total, rel=1e-6)
    after = watch.history.latest("gradients/norm")
    assert after == pytest.approx(1e-2 if unscaled else total, rel=1e-3)
    naive = expected["0.weight"].double().abs().mean(1)
    scores = torch.tensor(watch.history.latest("gradients/scores/weight/0"))
    assert torch.allclose(scores, naive / naive.mean(), rtol=1e-5)


def test_a_second_optimizer_is_read_at_its_own_step_and_strangers_are_left_out() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": mlp(4, 8, 1), "b": mlp(4, 6, 1), "frozen": nn.Linear(4, 4)})
    net["frozen"].requires_grad_(False)
    first = torch.optim.SGD(net["a"].parameters(), 0.1)
    second = torch.optim.SGD([*net["b"].parameters(), *net["frozen"].parameters()], 0.1)
    x = torch.randn(8, 4)
    with dp.watch(net, [first, second], dp.Gradients(every=1), on_error="raise") as watch:
        expected = {}
        for update in range(2):
            for name, optimizer in (("b", second), ("a", first)):
                optimizer.zero_grad()
                net[name](x).square().mean().backward()
                gradients = [p.grad for p in net[name].parameters() if p.grad is not None]
                expected[name] = norm(*gradients)
                optimizer.step()
            second.zero_grad()  # what is read at the clock's step would be gone
            assert watch.step == update + 1
    total = (expected["a"] ** 2 + expected["b"] ** 2) ** 0.5
    assert watch.history.latest("gradients/norm") == pytest.approx(total, rel=1e-6)
    assert "gradients/layer/frozen/norm" not in watch.history.tags()
    assert "gradients/grama_activation" in watch.history.tags()


def test_a_gradient_that_no_backward_pass_of_this_update_made_has_no_norm_before_clipping() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = dp.Gradients(every=1)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        train(net, optimizer, fixed(16, 4), 1)
        optimizer.step()  # once more with the gradients of the last update
    assert watch.history.series("gradients/norm")[0].tolist() == [1, 2]
    assert watch.history.series("gradients/norm_before_clipping")[0].tolist() == [1]
    assert {event.subject for event in watch.events} >= {
        "gradients: norm_before_clipping",
        "gradients: grama_activation",
    }


def test_a_norm_from_an_earlier_update_of_the_window_is_not_taken_for_this_ones() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = dp.Gradients(every=3, updates=2)
    with dp.watch(net, optimizer, probe, on_error="raise") as watch:
        train(net, optimizer, fixed(16, 4), 2)
        assert {at for at, _ in probe.recorder.norms.values()} == {1}
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
    assert watch.history.latest("gradients/norm") == 0.0
    assert watch.history.series("gradients/norm_before_clipping")[0].tolist() == [1]


def test_between_readings_no_norm_is_taken() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    probe = dp.Gradients(every=5)
    with dp.watch(net, optimizer, probe, on_error="raise"):
        train(net, optimizer, fixed(16, 4), 3)
        assert {at for at, _ in probe.recorder.norms.values()} == {0}


class Conv1D(nn.Module):
    """A linear layer with its weight the other way round, as in GPT-2."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def test_a_transposed_linear_layer_has_its_units_along_its_columns() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Conv1D(7, 4), nn.ReLU(), nn.Linear(7, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        train(net, optimizer, fixed(16, 4), 1)
    gradient = net[0].weight.grad
    assert isinstance(gradient, Tensor)
    naive = gradient.double().abs().mean(0)
    scores = torch.tensor(watch.history.latest("gradients/scores/weight/0"))
    assert torch.allclose(scores, naive / naive.mean(), rtol=1e-5)


def test_gradients_that_are_not_finite_are_shown_in_norms_and_left_out_of_shares() -> None:
    torch.manual_seed(0)
    net = mlp(4, 8, 1)
    with torch.no_grad():
        net[0].bias.fill_(9.0)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randn(4, 4)).sum() * float("inf"), 1)
    assert not torch.isfinite(torch.tensor(watch.history.latest("gradients/norm")))
    assert "gradients/grama_weight" not in watch.history.tags()
    assert any("no unit's gradient is finite" in str(event) for event in watch.events)


def test_a_layer_that_computes_its_weight_is_skipped_by_name() -> None:
    torch.manual_seed(0)
    net = mlp(4, 8, 1)
    nn.utils.parametrizations.weight_norm(net[0])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise") as watch:
        train(net, optimizer, fixed(16, 4), 2)
    skipped = [event for event in watch.events if event.kind == "skipped"]
    assert [event.subject for event in skipped] == ["gradients: grama_weight of 0"]
    assert "gradients/layer/0/grama_activation" in watch.history.tags()


def test_after_a_late_compile_norms_are_read_and_units_are_not() -> None:
    torch._dynamo.reset()
    net = Net()
    model = torch.compile(net, backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    train(model, optimizer, fixed(16, 4), 1)
    with pytest.warns(dp.DynamoProbeWarning, match="attach before its first call"):
        watch = dp.watch(model, optimizer, dp.Gradients(every=1), on_error="raise")
    expected = norm(*by_hand(net, fixed(16, 4)).values())
    train(model, optimizer, fixed(16, 4), 1)
    watch.close()
    torch._dynamo.reset()
    assert watch.history.latest("gradients/norm_before_clipping") == pytest.approx(expected)
    assert any("gradients: grama_activation" == event.subject for event in watch.events)


def test_compiled_in_time_it_reads_what_eager_reads_in_two_graphs_without_breaks() -> None:
    read = []
    for compiled in (False, True):
        torch._dynamo.reset()
        net = small()
        graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        model = torch.compile(net, backend=graphs, fullgraph=True) if compiled else net
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with dp.watch(model, optimizer, dp.Gradients(every=3), on_error="raise") as watch:
            train(model, optimizer, fixed(16, 4), 7)
        read.append([watch.history.series(tag)[1].tolist() for tag in watch.history.tags()])
        assert graphs.frame_count == (2 if compiled else 0)
    torch._dynamo.reset()
    assert len(read[0]) == len(read[1])
    for eager, compiled in zip(*read, strict=True):
        assert torch.allclose(torch.tensor(eager), torch.tensor(compiled), rtol=1e-5)


def test_a_resumed_run_reads_what_the_uninterrupted_one_reads() -> None:
    histories = []
    for stops in ((9,), (4, 5)):
        torch.manual_seed(0)
        net = mlp(4, 8, 6, 1)
        optimizer = torch.optim.Adam(net.parameters())
        state = None
        for updates in stops:
            probe = dp.Gradients(every=3, updates=2)
            watch = dp.watch(net, optimizer, probe, on_error="raise")
            if state is not None:
                watch.load_state_dict(state)
            train(net, optimizer, lambda m: m(torch.randn(8, 4)).square().mean(), updates)
            state = watch.state_dict()
            watch.close()
        histories.append(watch.history)
    assert histories[0].tags() == histories[1].tags()
    for tag in histories[0].tags():
        whole, resumed = (h.series(tag) for h in histories)
        assert whole[0].tolist() == resumed[0].tolist()
        assert [list(map(float, v.reshape(-1))) for v in whole[1:]] == [
            list(map(float, v.reshape(-1))) for v in resumed[1:]
        ]


def test_nothing_is_left_on_parameters_and_copies_carry_nothing() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    watch = dp.watch(net, optimizer, dp.Gradients(every=1), on_error="raise")
    train(net, optimizer, fixed(16, 4), 1)
    assert all(p._post_accumulate_grad_hooks for p in net.parameters())
    watch.close()
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tau": -1.0}, "tau is -1.0"), ({"updates": 0}, "updates is 0"), ({"every": 0}, "period")],
)
def test_mistakes_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.Gradients(**arguments)  # type: ignore[arg-type]
