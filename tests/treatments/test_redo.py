"""ReDo in a training loop: what it recycles, what it leaves, what it reports, how it resumes."""

import copy

import pytest
import torch
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.treatments import recycling
from tests.models import ConvNet, mlp, plant_dead
from tests.training import everything, identical, seeded, train


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(16, 4)).sin().square().mean()


def planted(seed: int = 0) -> tuple[nn.Sequential, torch.optim.Adam]:
    """A network with dead units 2 and 5 in the first hidden layer and 1 in the second."""
    torch.manual_seed(seed)
    net = mlp(4, 12, 10, 2)
    with torch.no_grad():
        net[0].bias.fill_(1)  # no unit but the planted ones is dead
        net[2].bias.fill_(1)
    plant_dead(net[0], 2, 5)
    plant_dead(net[2], 1)
    return net, torch.optim.Adam(net.parameters(), 1e-3)


def recycled(watch: dp.Watch) -> dict[str, list[int]]:
    return {e.subject: e.detail["units"] for e in watch.events if e.kind == "recycled"}


def test_exactly_the_dead_units_are_recycled_and_the_rest_is_bit_identical() -> None:
    runs = []
    for treated in (False, True):
        net, optimizer = planted()
        torch.manual_seed(1)
        redo = dp.ReDo(tau=0.0, every=4, end=4, moments="zero")
        probes = [redo] if treated else [dp.Dormancy(every=4)]
        with dp.watch(net, optimizer, probes, on_error="raise") as watch:
            train(net, optimizer, loss, 4)
        runs.append((net, optimizer, watch))
    (plain, plain_optimizer, _), (net, optimizer, watch) = runs
    assert recycled(watch) == {"0": [2, 5], "2": [1]}
    touched = {
        "0.weight": lambda t: t[[2, 5]],
        "0.bias": lambda t: t[[2, 5]],
        "2.weight": lambda t: torch.cat([t[[1]].flatten(), t[:, [2, 5]].flatten()]),
        "2.bias": lambda t: t[[1]],
        "4.weight": lambda t: t[:, [1]],
    }
    for name, parameter in net.named_parameters():
        other = plain.get_parameter(name)
        states = (optimizer.state[parameter], plain_optimizer.state[other])
        pairs = [(parameter, other), *((states[0][k], states[1][k]) for k in states[0])]
        for now, then in pairs:
            same = now.detach() == then.detach()
            if name in touched and now.dim():
                marked = torch.zeros_like(now)
                # Mark through the same selection what may differ; everything else must not.
                index = torch.arange(now.numel()).view(now.shape)
                marked.view(-1)[touched[name](index).flatten()] = 1
                assert same[marked == 0].all(), name
            else:
                assert same.all(), name
    assert (net[2].weight[:, [2, 5]].detach() == 0).all()  # also between two recycled units
    assert (net[4].weight[:, 1].detach() == 0).all()
    assert (net[0].weight[[2, 5]].detach() != 0).any()


def test_fresh_weights_have_the_spread_the_layer_was_initialised_with_not_the_default() -> None:
    torch.manual_seed(0)
    net = mlp(64, 256, 2)
    bound = (6 / 64) ** 0.5
    nn.init.kaiming_uniform_(net[0].weight, nonlinearity="relu")
    with torch.no_grad():
        net[0].bias[:200] = -100.0
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    with dp.watch(net, optimizer, dp.ReDo(every=1, end=1), on_error="raise") as watch:
        before = net[0].weight.detach().clone()
        train(net, optimizer, lambda m: m(torch.randn(32, 64)).sum(), 1)
    rows = net[0].weight.detach()[:200]
    assert len(recycled(watch)["0"]) >= 200
    assert (rows != before[:200]).all()
    assert 0.99 * bound < rows.abs().max() <= 1.001 * bound
    assert abs(rows.std() * 3**0.5 - bound) < 0.02 * bound


def test_probes_read_an_update_before_a_treatment_acts_whatever_the_order() -> None:
    for order in (0, 1):
        net, optimizer = planted()
        instruments = [dp.ReDo(tau=0.0, every=3), dp.Dormancy(every=3, on="probe")]
        probe_batch = torch.randn(64, 4)
        if order:
            instruments.reverse()
        with dp.watch(
            net, optimizer, instruments, probe_batch=probe_batch, on_error="raise"
        ) as watch:
            train(net, optimizer, loss, 3)
        assert watch.history.latest("dormancy/dead") == 3 / 22


def test_the_target_network_follows_in_the_same_entries_only() -> None:
    net, optimizer = planted()
    target = copy.deepcopy(net)
    before = copy.deepcopy(target)
    redo = dp.ReDo(tau=0.0, every=2, end=2, mirror=[target])
    with dp.watch(net, optimizer, redo, on_error="raise"):
        train(net, optimizer, loss, 2)
    assert torch.equal(target[0].weight[[2, 5]], net[0].weight[[2, 5]])
    assert (target[4].weight[:, 1] == 0).all()
    live = [i for i in range(12) if i not in (2, 5)]
    assert torch.equal(target[0].weight[live], before[0].weight[live])


def test_a_mirror_of_another_shape_is_refused_at_once() -> None:
    net, optimizer = planted()
    with pytest.raises(ValueError, match="same architecture"):
        dp.watch(net, optimizer, dp.ReDo(mirror=[mlp(4, 3, 2)]))


@pytest.mark.parametrize("score", ["random", "inverted"])
def test_controls_recycle_as_many_units_as_are_dormant(score: str) -> None:
    net, optimizer = planted()
    batch = torch.randn(200, 4)
    probe = dp.Dormancy(every=3, on="probe")
    redo = dp.ReDo(tau=0.0, every=3, score=score, on="probe")
    with dp.watch(net, optimizer, [probe, redo], probe_batch=batch, on_error="raise") as watch:
        train(net, optimizer, loss, 3)
    found = recycled(watch)
    assert {name: len(units) for name, units in found.items()} == {"0": 2, "2": 1}
    if score == "inverted":
        scores = watch.history.latest("dormancy/scores/0")
        assert found["0"] == sorted(scores.argsort()[::-1][:2].tolist())


def test_events_tell_units_ages_output_change_and_what_fell_dormant_again() -> None:
    net, optimizer = planted()
    batch = torch.randn(30, 4)
    redo = dp.ReDo(tau=0.0, every=2)
    with dp.watch(net, optimizer, redo, probe_batch=batch, on_error="raise") as watch:
        train(net, optimizer, loss, 3)
        plant_dead(net[0], 2)
        train(net, optimizer, loss, 1)
    events = [e for e in watch.events if e.kind == "recycled"]
    assert [(e.step, e.subject, e.detail["units"]) for e in events[:2]] == [
        (2, "0", [2, 5]),
        (2, "2", [1]),
    ]
    assert events[0].detail["ages"] == [2, 2]
    assert [(e.step, e.detail["units"], e.detail["ages"]) for e in events[2:]] == [(4, [2], [2])]
    assert watch.history.series("redo/dormant_again")[0].tolist() == [4]
    assert watch.history.latest("redo/dormant_again") == pytest.approx(1 / 3)
    assert watch.history.series("redo/recycled")[1].tolist() == [3, 1]
    # Dead units contribute nothing, so that recycling them leaves the output as it was.
    assert events[2].detail["output_change"] <= 1e-6


def test_without_a_probe_batch_the_output_change_is_said_to_be_unknown() -> None:
    net, optimizer = planted()
    with dp.watch(net, optimizer, dp.ReDo(tau=0.0, every=2), on_error="raise") as watch:
        train(net, optimizer, loss, 2)
    assert "not measured" in watch.events[0].detail["output_change"]


def test_a_treatment_that_never_finds_a_unit_says_so() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters())
    with dp.watch(net, optimizer, dp.ReDo(tau=0.0, every=2), on_error="raise") as watch:
        train(net, optimizer, loss, 6)
    assert "never found a unit" in str(watch.doctor())
    assert watch.history.series("redo/recycled")[1].tolist() == [0, 0, 0]


def test_a_treatment_that_is_switched_off_changes_nothing() -> None:
    runs = []
    for treated in (False, True):
        seeded()
        net, optimizer = planted()
        redo = dp.ReDo(tau=0.0, every=2)
        redo.enabled = False
        watch = dp.watch(net, optimizer, redo, on_error="raise") if treated else None
        train(net, optimizer, loss, 6)
        if watch is not None:
            watch.close()
        runs.append(everything([net], [optimizer]))
    assert identical(*runs)


def test_recycling_does_not_consume_the_trainings_random_numbers() -> None:
    states = []
    for treated in (False, True):
        net, optimizer = planted()
        torch.manual_seed(5)
        watch = dp.watch(net, optimizer, dp.ReDo(tau=0.0, every=2)) if treated else None
        train(net, optimizer, loss, 4)
        states.append(torch.get_rng_state())
        if watch is not None:
            assert recycled(watch)
            watch.close()
    assert torch.equal(*states)


def test_the_same_seed_recycles_alike_and_another_seed_does_not() -> None:
    weights = []
    for seed in (1, 1, 2):
        net, optimizer = planted()
        torch.manual_seed(9)
        with dp.watch(net, optimizer, dp.ReDo(tau=0.0, every=2), seed=seed, on_error="raise"):
            train(net, optimizer, loss, 2)
        weights.append(net[0].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_failure_in_the_middle_leaves_model_and_optimizer_as_they_were(monkeypatch) -> None:
    net, optimizer = planted()
    train(net, optimizer, loss, 1)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug in recycling")

    before = everything([net], [optimizer])
    monkeypatch.setattr(recycling, "recycle_units", broken)
    torch_state = torch.get_rng_state()
    with pytest.warns(dp.DynamoProbeWarning, match="a bug in recycling"):
        with dp.watch(net, optimizer, dp.ReDo(tau=0.0, every=1)) as watch:
            optimizer.zero_grad()
            with torch.random.fork_rng():
                loss(net).backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            for parameter in net.parameters():
                parameter.grad = None
            optimizer.step()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert watch.step == 1
    assert identical(before, everything([net], [optimizer]))


def test_a_layer_without_private_outgoing_weights_is_measured_but_not_recycled() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x))
            return self.head(torch.relu(h + self.second(h)))

    torch.manual_seed(0)
    net = Residual()
    optimizer = torch.optim.Adam(net.parameters())
    plant_dead(net.first, 3)
    instruments = [dp.Dormancy(every=1), dp.ReDo(tau=0.0, every=1)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        train(net, optimizer, loss, 2)
    assert watch.history.latest("dormancy/layer/first/tau=0.0") >= 1 / 6
    assert not recycled(watch)
    report = str(watch.doctor())
    assert "not recyclable" in report and "residual" in report


# --- resume ---------------------------------------------------------------------------------------


def conv_loss(model: nn.Module) -> Tensor:
    return model(torch.randn(4, 2, 10, 10)).square().mean()


@pytest.mark.parametrize("at", [7, 10, 12])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(at: int, tmp_path) -> None:
    def begin(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, dp.Watch]:
        seeded(seed)
        net = ConvNet()
        plant_dead(net.conv2, 1, 3)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        instruments = [
            dp.Dormancy(every=3, updates=2),
            dp.ReDo(tau=0.3, every=5, updates=3),
            dp.Rank(every=4, layers="all"),
            dp.Dormancy(every=4, on="probe"),
        ]
        return net, optimizer, dp.watch(net, optimizer, instruments, on_error="raise")

    net, optimizer, watch = begin(0)
    train(net, optimizer, conv_loss, 20)
    whole = everything([net], [optimizer])

    first, first_optimizer, first_watch = begin(0)
    train(first, first_optimizer, conv_loss, at)
    torch.save(
        {
            "model": first.state_dict(),
            "optimizer": first_optimizer.state_dict(),
            "watch": first_watch.state_dict(),
            "random": torch.get_rng_state(),
        },
        tmp_path / "checkpoint",
    )
    first_watch.close()

    again, again_optimizer, again_watch = begin(1)
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    again.load_state_dict(saved["model"])
    again_optimizer.load_state_dict(saved["optimizer"])
    again_watch.load_state_dict(saved["watch"])
    torch.set_rng_state(saved["random"])
    train(again, again_optimizer, conv_loss, 20 - at)
    numbers = len(whole) - 5  # Python's and NumPy's generators are not part of this checkpoint
    assert identical(whole[:numbers], everything([again], [again_optimizer])[:numbers])
    assert recycled(watch), "the run must recycle something for this to mean anything"
    assert again_watch.history.tags() == watch.history.tags()
    for tag in watch.history.tags():
        if "scores" not in tag:
            steps, values = watch.history.series(tag)
            resumed = again_watch.history.series(tag)
            assert steps.tolist() == resumed[0].tolist(), tag
            assert values.tolist() == resumed[1].tolist(), tag
    assert [str(e) for e in again_watch.events] == [str(e) for e in watch.events]


def test_a_checkpoint_of_another_model_or_other_instruments_is_refused_and_nothing_changes() -> (
    None
):
    net, optimizer = planted()
    with dp.watch(net, optimizer, dp.ReDo(every=2), on_error="raise") as watch:
        train(net, optimizer, loss, 3)
        state = watch.state_dict()
    other = mlp(4, 9, 2)
    other_optimizer = torch.optim.Adam(other.parameters())
    with dp.watch(other, other_optimizer, dp.ReDo(every=2)) as wrong_model:
        with pytest.raises(ValueError, match="saved for another model"):
            wrong_model.load_state_dict(state)
        assert wrong_model.step == 0
    net, optimizer = planted()
    with dp.watch(net, optimizer, dp.Dormancy(every=2)) as wrong_instruments:
        with pytest.raises(ValueError, match="give dp.watch the same ones"):
            wrong_instruments.load_state_dict(state)
        assert wrong_instruments.step == 0
