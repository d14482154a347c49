"""The Lightning callback in real trainers: counts, layers, resume, and no trace of it."""

import copy
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dynamo_probe as dp
from dynamo_probe.functional import normalised_scores
from tests.integrations.first import First
from tests.models import mlp
from tests.training import everything, identical, seeded

pytest.importorskip("lightning")

import lightning.pytorch as lightning  # noqa: E402

from dynamo_probe.integrations.lightning import DynamoProbe  # noqa: E402

# Lightning asks torch's pytree in a way that newer versions of torch call outdated.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\).*"),
    # Its advice to give the loaders more workers does not fit data of 40 rows.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]

DATA = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield


class Regression(lightning.LightningModule):
    """Its steps call `self.model`, as most do, so that its own forward never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp(4, 8, 6, 1)
        self.batches: list[Tensor] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.batches.append(batch[0].clone())
        return self.model(batch[0]).sub(batch[0].sum(1, keepdim=True)).square().mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.model(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class ThroughForward(Regression):
    """The same network, called as `self(x)`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.batches.append(batch[0].clone())
        return self(batch[0]).sub(batch[0].sum(1, keepdim=True)).square().mean()


def trainer(callbacks: list[Any], tmp_path: Path, package: Any = lightning, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "callbacks": callbacks,
        "default_root_dir": tmp_path,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "logger": False,
        "max_steps": 8,
    }
    return package.Trainer(**(settings | more))


def loaders() -> dict[str, DataLoader]:
    data = TensorDataset(DATA)
    return {
        "train_dataloaders": DataLoader(data, batch_size=5),
        "val_dataloaders": DataLoader(data, batch_size=7),
    }


def seen(callback: DynamoProbe) -> dp.Watch:
    assert callback.watch is not None
    return callback.watch


@pytest.mark.parametrize("kind", [Regression, ThroughForward])
def test_two_micro_batches_are_one_update_and_validation_does_not_count(
    kind: type[Regression], tmp_path: Path
) -> None:
    seeded()
    module = kind()
    initial = copy.deepcopy(module.model).double()
    probes = [dp.Dormancy(every=1), dp.Dormancy(every=1, on="probe")]
    first = First()
    callback = DynamoProbe(probes, sinks=[first], on_error="raise")
    run = trainer([callback], tmp_path, accumulate_grad_batches=2)
    run.fit(module, **loaders())
    history = seen(callback).history
    assert seen(callback).step == run.global_step == 8
    steps, values = history.series("dormancy/samples")
    assert steps.tolist() == list(range(1, 9))
    assert (values == 2 * 5).all()
    # The probe batch is the first training batch, not one of the sanity check before it.
    assert (history.series("dormancy-2/samples")[1] == 5).all()
    h = torch.cat(module.batches[:2]).double()
    for index, layer in enumerate(initial):
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            expected = normalised_scores(h.detach().abs().mean(0))
            assert torch.allclose(first.scores(f"model.{index - 1}"), expected, rtol=1e-5)


def fitted(tmp_path: Path, callbacks: list[Any], **more: Any) -> list[Any]:
    seeded()
    module = Regression()
    run = trainer(callbacks, tmp_path, accumulate_grad_batches=2, **more)
    run.fit(module, **loaders())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert not run.optimizers[0]._optimizer_step_post_hooks
    return everything([module], run.optimizers)


def test_a_fit_with_probes_is_bit_identical_to_the_fit_without(tmp_path: Path) -> None:
    probes = [dp.Dormancy(every=1), dp.Rank(every=2)]
    callback = DynamoProbe(probes, log_dir=tmp_path / "log", on_error="raise")
    assert identical(fitted(tmp_path, []), fitted(tmp_path, [callback]))
    assert seen(callback).step == 8
    assert list((tmp_path / "log").glob("events*"))


@pytest.mark.parametrize("kind", [Regression, ThroughForward])
def test_a_step_that_data_parallelism_sends_through_forward_is_not_taken_for_it(
    kind: type[Regression], tmp_path: Path
) -> None:
    callback = DynamoProbe(dp.Dormancy(every=1), on_error="raise")
    run = trainer([callback], tmp_path, strategy="ddp", devices=1)
    with mock.patch.dict(os.environ):  # Lightning leaves its address and port there
        try:
            run.fit(kind(), **loaders())
        finally:
            torch.distributed.destroy_process_group()
    scores = [tag for tag in seen(callback).history.tags() if "scores" in tag]
    assert scores == ["dormancy/scores/model.0", "dormancy/scores/model.2"]
    assert (seen(callback).history.series("dormancy/samples")[1] == 5).all()


def instruments() -> list[dp.Instrument]:
    return [dp.Dormancy(every=1, tau=0.4), dp.ReDo(every=3, tau=0.4), dp.Rank(every=4)]


def test_a_fit_resumed_from_a_checkpoint_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = DynamoProbe(instruments(), on_error="raise")
    expected = fitted(tmp_path, [whole])
    assert {event.kind for event in seen(whole).events} >= {"recycled"}

    seeded()
    first = trainer(
        [DynamoProbe(instruments(), on_error="raise")],
        tmp_path,
        accumulate_grad_batches=2,
        max_steps=4,
    )
    first.fit(Regression(), **loaders())
    first.save_checkpoint(tmp_path / "at4.ckpt")
    state = torch.get_rng_state()

    torch.manual_seed(99)
    module, callback = Regression(), DynamoProbe(instruments(), on_error="raise")
    second = trainer([callback], tmp_path, accumulate_grad_batches=2)
    torch.set_rng_state(state)
    second.fit(module, **loaders(), ckpt_path=tmp_path / "at4.ckpt", weights_only=True)
    for one, other in zip(module.parameters(), expected, strict=False):
        assert torch.equal(one, other)
    assert seen(callback).history.tags() == seen(whole).history.tags()
    for tag in seen(whole).history.tags():
        steps, values = seen(whole).history.series(tag)
        again, figures = seen(callback).history.series(tag)
        assert steps.tolist() == again.tolist()
        assert all((a == b).all() for a, b in zip(values, figures, strict=True))
    assert list(map(str, seen(callback).events)) == list(map(str, seen(whole).events))


def test_a_checkpoint_without_a_watch_still_gives_the_step_numbers(tmp_path: Path) -> None:
    plain = trainer([], tmp_path)
    plain.fit(Regression(), **loaders())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    callback = DynamoProbe(dp.Dormancy(every=dp.Every(3)), on_error="raise")
    run = trainer([callback], tmp_path, max_steps=14)
    run.fit(Regression(), **loaders(), ckpt_path=tmp_path / "plain.ckpt")
    assert seen(callback).history.series("dormancy/samples")[0].tolist() == [9, 12]
    assert (seen(callback).history.series("dormancy/samples")[1] == 5).all()


def test_a_fit_that_fails_leaves_no_hook_and_keeps_its_readings(tmp_path: Path) -> None:
    class Failing(Regression):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            if index == 3:
                raise RuntimeError("out of luck")
            return super().training_step(batch, index)

    module, callback = Failing(), DynamoProbe(dp.Dormancy(every=1))
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer([callback], tmp_path).fit(module, **loaders())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert seen(callback).history.series("dormancy/samples")[0].tolist() == [1, 2, 3]


def test_a_second_fit_of_the_same_module_goes_on_and_of_another_begins_anew(
    tmp_path: Path,
) -> None:
    module, callback = Regression(), DynamoProbe(dp.Dormancy(every=1), on_error="raise")
    trainer([callback], tmp_path, max_steps=3).fit(module, **loaders())
    trainer([callback], tmp_path, max_steps=2).fit(module, **loaders())
    assert seen(callback).history.series("dormancy/samples")[0].tolist() == [1, 2, 3, 4, 5]
    trainer([callback], tmp_path, max_steps=2).fit(Regression(), **loaders())
    assert seen(callback).history.series("dormancy/samples")[0].tolist() == [1, 2]


def test_two_submodules_with_their_own_optimizers_are_told_apart(tmp_path: Path) -> None:
    class Adversaries(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = mlp(4, 8, 4), mlp(4, 7, 1)

        def training_step(self, batch: list[Tensor], index: int) -> None:
            generator, critic = self.optimizers()
            for _ in range(2):
                critic.zero_grad()
                self.manual_backward(self.critic(batch[0]).square().mean())
                critic.step()
            generator.zero_grad()
            self.manual_backward(self.generator(batch[0]).square().mean())
            generator.step()

        def configure_optimizers(self) -> Any:
            parts = (self.generator, self.critic)
            return [torch.optim.SGD(part.parameters(), 0.01) for part in parts], []

    callbacks = [
        DynamoProbe(dp.Dormancy(every=1), model=name, on_error="raise")
        for name in ("generator", "critic")
    ]
    assert callbacks[0].state_key != callbacks[1].state_key
    run = trainer(callbacks, tmp_path, max_steps=-1, max_epochs=1)
    run.fit(Adversaries(), train_dataloaders=loaders()["train_dataloaders"])
    assert [seen(callback).step for callback in callbacks] == [8, 16]
    for callback in callbacks:
        assert (seen(callback).history.series("dormancy/samples")[1] == 5).all()


def test_the_log_goes_where_the_trainer_logs(tmp_path: Path) -> None:
    logger = lightning.loggers.CSVLogger(tmp_path)
    callback = DynamoProbe(dp.Dormancy(every=1), on_error="raise")
    trainer([callback], tmp_path, logger=logger, log_every_n_steps=1).fit(Regression(), **loaders())
    assert list(Path(logger.log_dir).glob("events*"))


def test_the_callback_also_works_in_the_trainer_of_pytorch_lightning(tmp_path: Path) -> None:
    package = pytest.importorskip("pytorch_lightning")

    class Other(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp(4, 8, 6, 1)

        training_step = Regression.training_step
        configure_optimizers = Regression.configure_optimizers
        batches: list[Tensor] = []

    callback = DynamoProbe(dp.Dormancy(every=1), on_error="raise")
    run = trainer([callback], tmp_path, package, max_steps=3)
    run.fit(Other(), train_dataloaders=loaders()["train_dataloaders"])
    assert (seen(callback).history.series("dormancy/samples")[1] == 5).all()
    assert seen(callback).step == 3
