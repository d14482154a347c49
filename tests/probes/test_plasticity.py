"""The probe of pruning plasticity: in a watched run, beside others, without a trace."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import dynamo_probe as dp
from dynamo_probe.functional.plasticity import pruning_plasticity
from dynamo_probe.instrument import fresh_copy
from dynamo_probe.probes.plasticity import PruningPlasticity
from dynamo_probe.treatments.sparse import RigL, StaticSparse
from tests.distributed import on_two_ranks
from tests.models import mlp
from tests.training import everything, identical, seeded


def dropout_mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)
    )


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
    "Adam on a tensor": lambda p: torch.optim.Adam(p, torch.tensor(1e-2)),
}


class Run:
    """A run with a scheduler, whose data for measurements is its own."""

    def __init__(self, optimizer: str = "SGD with momentum", net: nn.Module | None = None) -> None:
        seeded()
        self.net = dropout_mlp() if net is None else net
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 25, 0.5)
        self.own = torch.Generator().manual_seed(7)

    def loss(self, generator: torch.Generator | None = None) -> Tensor:
        x = torch.randn(16, 6, generator=generator)
        return F.cross_entropy(self.net(x), x[:, :3].argmax(1))

    def update(self, generator: torch.Generator | None = None) -> None:
        self.net.train()
        self.optimizer.zero_grad()
        self.loss(generator).backward()
        self.optimizer.step()
        self.scheduler.step()

    def train(self, updates: int) -> None:
        for _ in range(updates):
            self.update()

    def score(self) -> float:
        self.net.eval()
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            score = -float(F.cross_entropy(self.net(x), x[:, :3].argmax(1)))
        self.net.train()
        return score

    def probe(self, every: Any = 20, **keywords: Any) -> PruningPlasticity:
        keywords = {"updates": 6, "also": (self.scheduler, self.own)} | keywords
        return PruningPlasticity(
            every, train_step=lambda: self.update(self.own), evaluate=self.score, **keywords
        )

    def all(self) -> list[Any]:
        state = self.scheduler.state_dict()
        return [*everything([self.net], [self.optimizer]), state, self.own.get_state()]


def readings(watch: dp.Watch) -> dict[str, Any]:
    tags = [tag for tag in watch.history.tags() if not tag.startswith("pruning_plasticity")]
    return {tag: [part.tolist() for part in watch.history.series(tag)] for tag in tags}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_60_updates_are_bit_identical_and_other_probes_read_the_same(optimizer: str) -> None:
    runs, others = [], []
    for kind in ("bare", "without", "with"):
        run = Run(optimizer)
        probes: list[dp.Instrument] = [
            dp.Dormancy(every=4, updates=3),
            dp.Gradients(every=5, updates=2),
            dp.Updates(every=20),
        ]
        if kind == "with":
            probes.insert(1, run.probe(regenerate=[None, "restore", "zero-cost"]))
        if kind == "bare":
            run.train(60)
        else:
            with dp.watch(run.net, run.optimizer, probes, on_error="raise") as watch:
                run.train(60)
            assert watch.step == 60
            others.append(readings(watch))
        runs.append(run.all())
    assert identical(runs[0], runs[1])
    assert identical(runs[0], runs[2])
    assert others[0] == others[1]
    assert len(watch.history.series("pruning_plasticity/rate=0.9/plasticity")[0]) == 3
    assert not run.optimizer._optimizer_step_post_hooks
    assert not any(module._forward_hooks for module in run.net.modules())


def test_the_readings_are_those_of_the_function_after_the_same_update() -> None:
    run = Run()
    probe = run.probe(rates=(0.5, 0.9), regenerate=[None, "zero-cost"], curve_every=2)
    with dp.watch(run.net, run.optimizer, probe, on_error="raise") as watch:
        run.train(20)
    plain = Run()
    for _ in range(20):
        plain.net.train()
        plain.optimizer.zero_grad()
        plain.loss().backward()
        plain.optimizer.step()
        if plain.scheduler.last_epoch < 19:
            plain.scheduler.step()
    report = pruning_plasticity(
        plain.net,
        plain.optimizer,
        lambda: plain.update(plain.own),
        plain.score,
        rates=(0.5, 0.9),
        updates=6,
        curve_every=2,
        regenerate=[None, "zero-cost"],
        also=(plain.scheduler, plain.own),
        outputs={"5"},
    )
    latest = watch.history.latest
    assert latest("pruning_plasticity/before") == report.before
    assert latest("pruning_plasticity/control") == report.control.scores[-1]
    assert latest("pruning_plasticity/control_curve").tolist() == list(report.control.scores)  # type: ignore[union-attr]
    assert latest("pruning_plasticity/lr") == 0.1
    for rate in (0.5, 0.9):
        for variant in (None, "zero-cost"):
            record = report.at(rate, variant)
            tag = f"pruning_plasticity/rate={rate}"
            tag += "" if variant is None else f"/regenerate={variant}"
            assert latest(f"{tag}/plasticity") == record.plasticity
            assert latest(f"{tag}/plasticity_vs_control") == record.plasticity_vs_control
            assert latest(f"{tag}/immediate") == record.immediate
            assert latest(f"{tag}/after") == record.after
            assert latest(f"{tag}/sparsity") == record.sparsity
            assert latest(f"{tag}/curve").tolist() == list(record.curve.scores)  # type: ignore[union-attr]
    assert list(report.at(0.5).kept) == ["0.weight", "3.weight"]


def test_a_step_inside_a_gradient_scaler_is_measured_and_the_scaler_goes_on() -> None:
    found = []
    for fused in (False, True):
        runs = []
        for watched in (False, True):
            seeded()
            net = mlp(6, 16, 8, 3)
            optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=fused)
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
            own = torch.Generator().manual_seed(2)

            def update(generator: torch.Generator | None = None) -> None:
                x = torch.randn(16, 6, generator=generator)
                optimizer.zero_grad()  # noqa: B023
                scaler.scale(net(x).square().mean()).backward()  # noqa: B023
                scaler.step(optimizer)  # noqa: B023
                scaler.update()  # noqa: B023

            probe = PruningPlasticity(
                4,
                train_step=lambda: update(own),  # noqa: B023
                evaluate=lambda: float(net[0].weight.detach().sum()),  # noqa: B023
                updates=5,
                also=[own],
                regenerate="zero-cost",
            )
            watch = dp.watch(net, optimizer, probe, on_error="raise") if watched else None
            for _ in range(12):
                update()
            if watch is not None:
                watch.close()
                tag = "pruning_plasticity/rate=0.5/regenerate=zero-cost/plasticity"
                assert len(watch.history.series(tag)[0]) == 3
                found.append(watch.history.series(tag)[1].tolist())
            runs.append([*everything([net], [optimizer]), scaler.state_dict()])
        assert identical(*runs)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_masks_of_a_sparse_treatment_hold_and_the_treatment_goes_on_as_without() -> None:
    treatments = [
        lambda: StaticSparse(density=0.3),
        lambda: RigL(density=0.3, every=5, stop=50),
        lambda: RigL(density=0.3, every=5, stop=50, mask_grads="backward"),
    ]
    found = []
    for make in treatments:
        runs = []
        for measured in (False, True):
            run = Run()
            instruments: list[dp.Instrument] = [make()]
            if measured:
                instruments.append(run.probe(rates=(0.5, 0.9), regenerate=[None, "restore"]))
            with dp.watch(run.net, run.optimizer, instruments, on_error="raise") as watch:
                run.train(60)
            runs.append([*run.all(), readings(watch)])
        assert identical(*runs)
        latest = watch.history.latest
        control = watch.history.series("pruning_plasticity/control")[1]
        size = 6 * 24 + 24 * 16
        there = round(0.3 * size) / size
        assert latest("pruning_plasticity/rate=0.5/sparsity") == pytest.approx(1 - there)
        assert latest("pruning_plasticity/rate=0.5/after") == control[-1]
        assert latest("pruning_plasticity/rate=0.5/immediate") == 0.0
        assert latest("pruning_plasticity/rate=0.9/sparsity") == pytest.approx(0.9, abs=1e-3)
        restored = latest("pruning_plasticity/rate=0.9/regenerate=restore/sparsity")
        assert restored == pytest.approx(1 - there)
        found.append(latest("pruning_plasticity/rate=0.9/regenerate=restore/after"))
    # The last two are the same run: the dense gradient is seen wherever a treatment masks it.
    assert found[1] == found[2] != found[0]


def test_what_cannot_be_measured_is_skipped_with_the_reason_and_training_goes_on() -> None:
    run = Run()
    nan = float("nan")
    # Two points a network: pruned to 0.5 first without a figure, then all with, then none at all.
    scores = iter([1.0, 1.0, 1.0, nan, *[1.0] * 2, *[1.0] * 7, nan])
    probe = run.probe(rates=(0.5, 0.9), updates=1)
    probe.evaluate = lambda: next(scores)
    with dp.watch(run.net, run.optimizer, probe, on_error="raise") as watch:
        run.train(60)
    assert watch.step == 60
    assert watch.history.series("pruning_plasticity/rate=0.5/plasticity")[0].tolist() == [40]
    assert watch.history.series("pruning_plasticity/rate=0.9/plasticity")[0].tolist() == [20, 40]
    skipped = {e.subject: e.detail["reason"] for e in watch.events if e.kind == "skipped"}
    assert "nan at rate=0.5" in skipped["pruning_plasticity/rate=0.5"]
    assert "nan before pruning" in skipped["pruning_plasticity"]


def test_a_train_step_that_does_not_step_disables_the_probe_and_nothing_else() -> None:
    runs = []
    for watched in (False, True):
        run = Run()
        if watched:
            probe = run.probe()
            probe.train_step = lambda: run.loss(run.own).backward()  # noqa: B023
            with pytest.warns(dp.DynamoProbeWarning, match="did not step SGD"):
                with dp.watch(run.net, run.optimizer, [probe, dp.Updates(every=10)]) as watch:
                    run.train(40)
            assert watch.history.series("updates/relative")[0].tolist() == [1, 10, 20, 30, 40]
        else:
            run.train(40)
        runs.append(run.all())
    assert identical(*runs)


def test_arguments_are_checked_at_once() -> None:
    run = Run()
    with pytest.raises(TypeError, match="train_step is a int"):
        PruningPlasticity(5, train_step=3, evaluate=run.score)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="evaluate is a NoneType"):
        PruningPlasticity(5, train_step=run.update, evaluate=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rates"):
        run.probe(rates=(1.5,))
    with pytest.raises(ValueError, match="no weight to prune"):
        dp.watch(run.net, run.optimizer, run.probe(exclude=["*"]))
    with pytest.raises(ValueError, match="names no parameter"):
        dp.watch(run.net, run.optimizer, run.probe(include=["nothing"]))


def test_a_copy_of_the_probe_trains_the_same_network() -> None:
    run = Run()
    probe = PruningPlasticity(20, train_step=run.update, evaluate=run.score, also=[run.scheduler])
    copied = fresh_copy(probe)
    assert isinstance(copied, PruningPlasticity)
    assert copied.train_step.__self__ is run  # type: ignore[attr-defined]
    assert copied.also[0] is run.scheduler
    assert copied._settings == probe._settings

    @dp.watched([probe], on_error="raise")
    def train(net: nn.Module, optimizer: Optimizer) -> None:
        run.train(20)

    train(run.net, run.optimizer)
    tag = "pruning_plasticity/rate=0.9/plasticity"
    assert len(train.watch.history.series(tag)[0]) == 1  # type: ignore[attr-defined]


def test_doctor_says_what_is_measured() -> None:
    run = Run()
    probe = run.probe(regenerate=["restore", "zero-cost"], growth="random")
    with dp.watch(run.net, run.optimizer, probe, on_error="raise") as watch:
        run.train(2)
        text = str(watch.doctor())
    assert "prunes 0.5, 0.9 of the weights by global magnitude" in text
    assert "regenerates (restore, zero-cost) by random, turnover 0.3" in text


def test_a_state_dict_resumes_the_schedule() -> None:
    series = []
    for cut in (False, True):
        run = Run()
        watch = dp.watch(run.net, run.optimizer, run.probe(), on_error="raise")
        run.train(30)
        if cut:
            state = copy.deepcopy(watch.state_dict())
            watch.close()
            watch = dp.watch(run.net, run.optimizer, run.probe(), on_error="raise")
            watch.load_state_dict(state)
        run.train(30)
        watch.close()
        series.append(watch.history.series("pruning_plasticity/rate=0.9/after")[1].tolist())
    assert series[0] == series[1]
    assert len(series[0]) == 3


# --- several processes ----------------------------------------------------------------------------


def two_ranks(rank: int, wrapper: str) -> Any:
    found = []
    for measured in (False, True):
        seeded()
        run = Run(net=mlp(6, 24, 16, 3))
        net = run.net
        if wrapper == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            outer: nn.Module = fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
            run.optimizer = torch.optim.SGD(net.parameters(), 0.1)
            run.scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 25, 0.5)
        else:
            outer = nn.parallel.DistributedDataParallel(net)
        run.net = outer
        probes = [run.probe(every=4)] if measured else [dp.Updates(every=50)]
        with dp.watch(outer, run.optimizer, probes, on_error="raise") as watch:
            for update in range(8):
                torch.manual_seed(2 * update + rank)
                run.own.manual_seed(2 * update + rank)
                run.update()
        weights: list[Any] = [p.detach().clone() for p in net.parameters()]
        if wrapper == "fsdp":
            weights = [w.full_tensor() for w in weights]
        found.append(weights)
    tags = watch.history.tags()
    events = [str(event) for event in watch.events]
    return found, {tag: watch.history.series(tag)[1].tolist() for tag in tags}, events


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_ranks_train_together_or_say_why_not(wrapper: str) -> None:
    (weights, found, events), other = on_two_ranks(two_ranks, wrapper)
    assert identical(weights[0], weights[1])
    assert identical(weights[1], other[0][1])
    if wrapper == "ddp":
        assert len(found["pruning_plasticity/rate=0.9/plasticity"]) == 2
        assert found == other[1]
    else:
        assert not found
        assert any("sharded over ranks" in event for event in events)
