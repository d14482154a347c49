"""The how-to for Accelerate in `dynamo_probe.integrations` runs, as it is printed there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import dynamo_probe as dp
import dynamo_probe.integrations
from tests.models import mlp
from tests.training import everything, identical, seeded

accelerate = pytest.importorskip("accelerate")


def printed() -> Callable[..., dp.Watch]:
    """Return the function in the docstring."""
    assert dynamo_probe.integrations.__doc__
    [code] = re.findall(r"```python\n(.*?)```", dynamo_probe.integrations.__doc__, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "the how-to", "exec"), names)
    return names["train"]


def loader(start: int = 0, stop: int = 1000) -> DataLoader:
    inputs = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(
        TensorDataset(inputs[start:stop], inputs[start:stop].sum(1, keepdim=True)), batch_size=2
    )


def test_two_micro_batches_are_one_update(tmp_path: Path) -> None:
    seeded()
    net = mlp(4, 8, 6, 1)
    watch = printed()(net, loader(), F.mse_loss, log_dir=tmp_path)
    assert watch.step == 1000 / 2 / 2
    assert watch.history.series("dormancy/samples")[0].tolist() == [1, 100, 200]
    assert (watch.history.series("dormancy/samples")[1] == 4).all()
    assert list(tmp_path.glob("events*"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_it_goes_on_from_accelerates_checkpoint_as_if_never_interrupted(tmp_path: Path) -> None:
    runs, watches = [], []
    for halves in ([(0, 1000)], [(0, 500), (500, 1000)]):
        saved = None
        for number, (start, stop) in enumerate(halves):
            seeded()
            net = mlp(4, 8, 6, 1)
            target = tmp_path / f"{len(halves)}-{number}"
            watch = printed()(
                net, loader(start, stop), F.mse_loss, resume_from=saved, save_to=target
            )
            saved = target
        runs.append(list(net.parameters()))
        watches.append(watch)
    whole, resumed = watches
    assert identical(*runs)
    assert resumed.step == whole.step == 250
    for tag in whole.history.tags():
        for one, other in zip(whole.history.series(tag), resumed.history.series(tag), strict=True):
            assert (one == other).all()


def test_training_under_accelerate_is_bit_identical_with_and_without_probes() -> None:
    runs = []
    for watched in (False, True):
        seeded()
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=2)
        net = mlp(4, 8, 6, 1)
        model, optimizer, batches = accelerator.prepare(
            net, torch.optim.AdamW(net.parameters(), 1e-2), loader(0, 80)
        )
        probes = [dp.Dormancy(every=1), dp.Rank(every=3)]
        watch = dp.watch(model, optimizer.optimizer, probes, on_error="raise") if watched else None
        for inputs, targets in batches:
            with accelerator.accumulate(model):
                accelerator.backward(F.mse_loss(model(inputs), targets))
                optimizer.step()
                optimizer.zero_grad()
        if watch is not None:
            watch.close()
            assert watch.step == 20
        runs.append(everything([net], [optimizer.optimizer]))
    assert identical(*runs)
