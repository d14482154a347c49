"""Attaching: the clock, the gate, what counts, several watches and optimizers, letting go."""

import copy
import io
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional import normalised_scores
from tests.models import mlp, plant_dead
from tests.training import train


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(16, 4)).square().mean()


def small(seed: int = 0) -> tuple[nn.Sequential, torch.optim.Adam]:
    torch.manual_seed(seed)
    net = mlp(4, 8, 6, 1)
    return net, torch.optim.Adam(net.parameters(), 1e-2)


class Recording(dp.Probe):
    """Notes the updates at which it fired."""

    name = "recording"

    def __init__(self, every: int = 1) -> None:
        super().__init__(every)
        self.fired: list[int] = []

    def fire(self, site: dp.Site) -> None:
        self.fired.append(site.step)


class Failing(dp.Probe):
    """Fails at its third firing."""

    name = "failing"

    def fire(self, site: dp.Site) -> None:
        if site.step == 3:
            raise RuntimeError("a bug in a probe")


# --- the clock ------------------------------------------------------------------------------------


def test_the_clock_counts_optimizer_steps() -> None:
    net, optimizer = small()
    probe = Recording(every=3)
    with dp.watch(net, optimizer, probe) as watch:
        train(net, optimizer, loss, 10)
    assert watch.step == 10
    assert probe.fired == [3, 6, 9]


def test_a_step_that_a_fused_optimizer_was_told_to_skip_does_not_count() -> None:
    net, _ = small()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    with dp.watch(net, optimizer, Recording()) as watch:
        train(net, optimizer, loss, 2)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
        before = net[0].weight.detach().clone()
        train(net, optimizer, loss, 1)
        assert torch.equal(before, net[0].weight)
        optimizer.found_inf = torch.tensor(0.0)
        train(net, optimizer, loss, 1)
    assert watch.step == 3


def test_a_closure_optimizer_ticks_once_a_step() -> None:
    net, _ = small()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4)
    x = torch.randn(16, 4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = net(x).square().mean()
        value.backward()
        return value

    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        for _ in range(3):
            optimizer.step(closure)
    assert watch.step == 3
    assert len(watch.history.series("dormancy/tau=0.1")[0]) == 3


# --- what counts ----------------------------------------------------------------------------------


def expected_scores(net: nn.Sequential, batches: list[Tensor]) -> list[Tensor]:
    """Scores over all rows of some batches, from a plain pass in float64."""
    h, found = torch.cat(batches).double(), []
    for layer in copy.deepcopy(net).double():
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            found.append(normalised_scores(h.detach().abs().mean(0)))
    return found


def test_micro_batches_of_an_update_count_and_acting_evaluation_and_target_passes_do_not() -> None:
    net, optimizer = small()
    micro = [torch.randn(5, 4), torch.randn(9, 4)]
    expected = expected_scores(net, micro)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        net(torch.randn(7, 4))  # acting with gradients on, but no backward pass
        with torch.no_grad():
            net(torch.randn(50, 4))
        for batch in micro:
            net(batch).square().mean().backward()
        net.eval()
        net(torch.randn(3, 4))
        net.train()
        optimizer.step()
    assert watch.history.samples("dormancy/tau=0.1") == 14
    for name, scores in zip(("0", "2"), expected, strict=True):
        seen = torch.tensor(watch.history.latest(f"dormancy/scores/{name}"))
        assert torch.allclose(seen, scores, rtol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_each_sample_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 8, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=reentrant)

    torch.manual_seed(0)
    model = Checkpointed()
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(11, 4, requires_grad=True)
    expected = expected_scores(model.net, [x.detach()])
    with dp.watch(model, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        model(x).square().mean().backward()
        optimizer.step()
    assert watch.history.samples("dormancy/tau=0.1") == 11
    seen = torch.tensor(watch.history.latest("dormancy/scores/net.0"))
    assert torch.allclose(seen, expected[0], rtol=1e-6)


def test_scores_of_several_updates_accumulate() -> None:
    net, _ = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    batches = [torch.randn(6, 4) for _ in range(10)]
    with dp.watch(net, optimizer, dp.Dormancy(every=10, updates=3), on_error="raise") as watch:
        for batch in batches:
            net(batch).square().mean().backward()
            optimizer.step()
    expected = expected_scores(net, batches[7:])
    seen = torch.tensor(watch.history.latest("dormancy/scores/2"))
    assert watch.history.samples("dormancy/tau=0.1") == 18
    assert torch.allclose(seen, expected[1], rtol=1e-6)


def test_a_later_change_in_place_does_not_change_what_was_read() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = F.gelu(self.a(x))
            out = self.b(h.clone())
            h.mul_(100)
            return out + 0 * h.sum()

    torch.manual_seed(0)
    model, x = InPlace(), torch.randn(9, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with dp.watch(model, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        model(x).square().mean().backward()
        optimizer.step()
    expected = normalised_scores(F.gelu(model.a(x)).abs().mean(0).detach().double())
    seen = torch.tensor(watch.history.latest("dormancy/scores/a"))
    assert torch.allclose(seen, expected, rtol=1e-6)


def test_a_deep_copy_of_a_watched_model_carries_no_probe() -> None:
    net, optimizer = small()
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        train(net, optimizer, loss, 1)
        target = copy.deepcopy(net)
        stored = io.BytesIO()
        torch.save(net, stored)
        stored.seek(0)
        loaded = torch.load(stored, weights_only=False)
        x = torch.randn(30, 4)
        for other in (target, loaded):
            other(x).sum().backward()
        net(torch.randn(5, 4)).sum().backward()
        optimizer.step()
    assert watch.history.samples("dormancy/tau=0.1") == 5


def test_the_first_reading_shows_the_network_as_initialised() -> None:
    net, optimizer = small()
    plant_dead(net[0], 0, 1, 2)
    with dp.watch(net, optimizer, dp.Dormancy(every=100), on_error="raise") as watch:
        train(net, optimizer, loss, 150)
    steps, values = watch.history.series("dormancy/first/tau=0.0")
    assert steps.tolist() == [1, 100]
    assert (values == 3 / 14).all()


# --- whom it is attached to -----------------------------------------------------------------------


def test_several_watches_on_one_model_do_not_know_of_each_other() -> None:
    net, optimizer = small()
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as outer:
        train(net, optimizer, loss, 2)
        with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as inner:
            train(net, optimizer, loss, 2)
        train(net, optimizer, loss, 2)
    assert (outer.step, inner.step) == (6, 2)
    steps, values = outer.history.series("dormancy/tau=0.1")
    assert values[2:4].tolist() == inner.history.series("dormancy/tau=0.1")[1].tolist()
    assert len(steps) == 6


class Agent(nn.Module):
    """An agent in CleanRL's style: two networks, no forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp(4, 8, 3), mlp(4, 10, 1)

    def get_value(self, x: Tensor) -> Tensor:
        return self.critic(x)

    def get_action(self, x: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=self.actor(x)).sample()


def test_an_agent_without_a_forward_of_its_own_is_watched_by_what_is_called() -> None:
    torch.manual_seed(0)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters())
    with dp.watch(agent, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        for _ in range(3):
            with torch.no_grad():
                agent.get_action(torch.randn(2, 4))
            x = torch.randn(12, 4)
            (agent.get_value(x).square().mean() + agent.actor(x).logsumexp(-1).mean()).backward()
            optimizer.step()
    assert watch.history.samples("dormancy/layer/actor.0/tau=0.1") == 12
    assert watch.history.samples("dormancy/layer/critic.0/tau=0.1") == 12
    assert "critic.2" in str(watch.doctor())


def test_one_watch_with_several_optimizers_counts_the_steps_of_the_first() -> None:
    torch.manual_seed(0)
    agent = Agent()
    critic = torch.optim.Adam(agent.critic.parameters())
    actor = torch.optim.Adam(agent.actor.parameters())
    with dp.watch(agent, [critic, actor], dp.Dormancy(every=1), on_error="raise") as watch:
        for update in range(6):
            if update % 2:  # a delayed actor
                agent.actor(torch.randn(5, 4)).sum().backward()
                actor.step()
            agent.critic(torch.randn(7, 4)).sum().backward()
            critic.step()
    assert watch.step == 6
    assert len(watch.history.series("dormancy/layer/critic.0/tau=0.1")[0]) == 6
    assert watch.history.series("dormancy/layer/actor.0/tau=0.1")[0].tolist() == [2, 4, 6]


def test_a_data_parallel_wrapper_is_looked_through() -> None:
    net, optimizer = small()
    wrapped = nn.DataParallel(net)
    with dp.watch(wrapped, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        train(wrapped, optimizer, loss, 2)
    assert "dormancy/layer/0/tau=0.1" in watch.history.tags()


def test_a_distributed_wrapper_is_looked_through(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net, _ = small()
        wrapped = nn.parallel.DistributedDataParallel(net)
        optimizer = torch.optim.Adam(wrapped.parameters())
        with dp.watch(wrapped, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
            train(wrapped, optimizer, loss, 3)
        assert watch.history.series("dormancy/samples")[1].tolist() == [16, 16, 16]
    finally:
        torch.distributed.destroy_process_group()


def test_the_decorator_finds_model_and_optimizer_among_the_arguments() -> None:
    net, optimizer = small()
    target, criterion = copy.deepcopy(net), nn.MSELoss()

    @dp.watched([dp.Dormancy(every=2)], on_error="raise")
    def run(target: nn.Module, criterion: nn.Module, *, parts: dict, updates: int) -> str:
        train(parts["net"], parts["optimizer"], loss, updates)
        return "done"

    for updates in (4, 6):
        parts = {"net": net, "optimizer": optimizer}
        assert run(target, criterion, parts=parts, updates=updates) == "done"
        assert run.watch.step == updates
        assert run.watch.model is net


def test_the_decorator_hands_each_call_fresh_instruments_and_the_very_target_network() -> None:
    net, optimizer = small()
    plant_dead(net[0], 1)
    target = copy.deepcopy(net)

    @dp.watched([dp.ReDo(tau=0.0, every=2, mirror=target)], on_error="raise")
    def run(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train(net, optimizer, loss, 2)

    run(net, optimizer)
    assert [e.kind for e in run.watch.events][:1] == ["recycled"]
    assert torch.equal(target[0].weight[1], net[0].weight[1])
    run(net, optimizer)


def test_the_decorator_refuses_what_it_cannot_serve() -> None:
    @dp.watched([dp.Dormancy()])
    def run(*things: object) -> None: ...

    net, optimizer = small()
    with pytest.raises(ValueError, match="pass the model and its optimizer"):
        run(net)
    with pytest.raises(ValueError, match="pass the model and its optimizer"):
        run(mlp(2, 2, 1), optimizer)
    with pytest.raises(TypeError, match="with dp.watch"):

        @dp.watched([dp.Dormancy()])
        def steps():
            yield 1


# --- letting go -----------------------------------------------------------------------------------


def test_an_exception_in_the_loop_closes_the_watch_and_flushes_the_log(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    net, optimizer = small()
    with pytest.raises(KeyError, match="3 a.m."):
        with dp.watch(net, optimizer, dp.Dormancy(every=1), log_dir=tmp_path):
            train(net, optimizer, loss, 5)
            raise KeyError("3 a.m.")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    log = EventAccumulator(str(tmp_path)).Reload()
    assert len(log.Scalars("dormancy/tau=0.1")) == 5


def test_closing_twice_is_fine_and_stops_everything() -> None:
    net, optimizer = small()
    watch = dp.watch(net, optimizer, dp.Dormancy(every=1))
    train(net, optimizer, loss, 2)
    watch.close()
    watch.close()
    train(net, optimizer, loss, 2)
    assert watch.step == 2


def test_a_failing_probe_disables_itself_says_so_once_and_training_goes_on() -> None:
    net, optimizer = small()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with dp.watch(net, optimizer, [Failing(1), dp.Dormancy(every=1)]) as watch:
            train(net, optimizer, loss, 6)
    assert [w.category for w in caught] == [dp.DynamoProbeWarning]
    assert watch.step == 6
    disabled = [event for event in watch.events if event.kind == "disabled"]
    assert [(event.step, event.subject) for event in disabled] == [(3, "failing")]
    assert "a bug in a probe" in str(watch.doctor())
    assert len(watch.history.series("dormancy/tau=0.1")[0]) == 6


def test_a_failing_probe_does_not_stop_training_where_warnings_are_errors() -> None:
    net, optimizer = small()
    with dp.watch(net, optimizer, Failing(1)) as watch:
        train(net, optimizer, loss, 5)
    assert watch.step == 5


# --- wrong calls ----------------------------------------------------------------------------------


def test_an_optimizer_of_another_model_is_refused() -> None:
    net, _ = small()
    with pytest.raises(ValueError, match="make it with model.parameters()"):
        dp.watch(net, torch.optim.SGD(mlp(4, 8, 1).parameters(), 0.1), dp.Dormancy())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("net", [nn.Linear(4, 1), nn.Embedding(3, 2)])
def test_a_model_without_a_hidden_layer_is_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="at least two Linear or Conv layers"):
        dp.watch(net, torch.optim.SGD(net.parameters(), 0.1), dp.Dormancy())


def test_wrong_instruments_are_refused_with_the_fix() -> None:
    net, optimizer = small()
    with pytest.raises(TypeError, match="call it: Dormancy()"):
        dp.watch(net, optimizer, [dp.Dormancy])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"derive it from dp\.Probe"):
        dp.watch(net, optimizer, ["dormancy"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="such as"):
        dp.watch(net, optimizer, [])
    probe = dp.Dormancy()
    with dp.watch(net, optimizer, probe):
        with pytest.raises(ValueError, match="make a new one"):
            dp.watch(net, optimizer, probe)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dp.Dormancy(tau=-0.1), "give 0 or more"),
        (lambda: dp.Dormancy(tau=()), "0.1 is usual"),
        (lambda: dp.Dormancy(every=0), "give 1 or more"),
        (lambda: dp.Dormancy(updates=0), "give 1 or more"),
        (lambda: dp.ReDo(tau=-1), "give 0 or more"),
        (lambda: dp.ReDo(moments="mean"), "give one of zero"),
        (lambda: dp.ReDo(start=5, end=3), "exchange them"),
        (lambda: dp.Rank(delta=0), "between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_log_directory_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    net, optimizer = small()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        dp.watch(net, optimizer, dp.Dormancy(), log_dir=tmp_path / "file" / "log")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_activations_that_are_not_finite_are_told_and_never_counted() -> None:
    net, optimizer = small()
    with dp.watch(net, optimizer, dp.Dormancy(every=1), on_error="raise") as watch:
        train(net, optimizer, loss, 1)
        with torch.no_grad():
            net[0].bias[3] = float("nan")
        for _ in range(2):
            net(torch.randn(4, 4)).sum().backward()
            optimizer.step()
    # The unit itself, and all six units of the next layer, which read it.
    assert watch.history.series("dormancy/nonfinite")[1].tolist() == [0, 7, 7]
    assert [event.kind for event in watch.events] == ["alert"]
    assert watch.history.series("dormancy/layer/0/tau=0.1")[0].tolist() == [1, 2, 3]
    assert watch.history.series("dormancy/layer/2/tau=0.1")[0].tolist() == [1]


def test_a_probe_that_emits_a_tensor_is_told_what_to_emit_and_others_go_on() -> None:
    class Careless(dp.Probe):
        name = "careless"

        def fire(self, site: dp.Site) -> None:
            site.emit("careless/loss", torch.tensor(1.0))  # type: ignore[arg-type]

    net, optimizer = small()
    with pytest.warns(dp.DynamoProbeWarning, match=r"tensor\.item\(\)"):
        with dp.watch(net, optimizer, [Careless(1), dp.Dormancy(every=1)]) as watch:
            train(net, optimizer, loss, 3)
    assert watch.history.series("dormancy/tau=0.1")[0].tolist() == [1, 2, 3]


def test_the_first_training_batch_is_kept_as_the_fixed_batch_whatever_the_loop_does_to_it() -> None:
    net, optimizer = small()
    buffer = torch.randn(20, 4)
    first = buffer.clone()
    with dp.watch(net, optimizer, dp.Dormancy(every=1, on="probe"), on_error="raise") as watch:
        with torch.no_grad():
            net(torch.randn(2, 4))  # acting comes first and is not what is kept
        for _ in range(3):
            net(buffer).square().mean().backward()
            optimizer.step()
            buffer.normal_()
    expected = expected_scores(net, [first])
    assert watch.history.samples("dormancy/tau=0.1") == 20
    assert torch.allclose(torch.tensor(watch.history.latest("dormancy/scores/2")), expected[1])


def test_a_reason_that_was_told_before_a_checkpoint_is_not_told_again_after_it() -> None:
    class Closed(dp.Probe):
        name = "closed"

        def fire(self, site: dp.Site) -> None:
            raise dp.NotMeasurable("there is nothing to see")

    net, optimizer = small()
    with dp.watch(net, optimizer, Closed(1), on_error="raise") as first:
        train(net, optimizer, loss, 2)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
    file.seek(0)
    with dp.watch(net, optimizer, Closed(1), on_error="raise") as second:
        second.load_state_dict(torch.load(file, weights_only=True))
        train(net, optimizer, loss, 2)
    assert [(e.step, e.kind) for e in second.events] == [(1, "skipped")]
