"""A resumed run is the uninterrupted one, to the bit, wherever it was cut."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from tests.models import mlp
from tests.training import everything, identical, seeded, train

METHODS: dict[str, Callable[[], dp.SparseTraining]] = {
    "granet": lambda: dp.GraNet(0.2, 0.6, end=30, every=6, accumulate=4),
    "granet from dense": lambda: dp.GraNet(0.2, start=6, end=30, every=6),
    "snfs": lambda: dp.SNFS(0.3, stop=30, every=6),
    "unfired": lambda: dp.SET(0.3, every=6, grow="random-unfired"),
    "snip": lambda: dp.StaticSparse(0.3, "snip"),
    "acdc": lambda: dp.ACDC(0.3, start=3, end=30, sparse_for=6, dense_for=6),
    "2:4": lambda: dp.RigL(0.5, stop=30, every=6, granularity="2:4"),
    "backward": lambda: dp.RigL(0.5, stop=30, every=6, accumulate=3, mask_grads="backward"),
}


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 8)
    return F.mse_loss(model(x), x[:, :2].sin())


def saved(model: nn.Module, optimizer: Any, watch: dp.Watch) -> io.BytesIO:
    file = io.BytesIO()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "watch": watch.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(state, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cut", [1, 4, 6, 11, 33])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(name: str, cut: int) -> None:
    seeded()
    model = mlp(8, 16, 16, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    with dp.watch(model, optimizer, METHODS[name](), on_error="raise") as watch:
        train(model, optimizer, loss, cut)
        file = saved(model, optimizer, watch)
        train(model, optimizer, loss, 40 - cut)
        readings = watch.history.series("sparsity/density")
    whole = everything([model], [optimizer])

    seeded(99)
    model = mlp(8, 16, 16, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    treatment = METHODS[name]()
    with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
        watch.load_state_dict(state["watch"])
        torch.set_rng_state(state["random"])
        train(model, optimizer, loss, 40 - cut)
        resumed = watch.history.series("sparsity/density")
    seeded()  # the states of NumPy and Python do not matter here
    torch.set_rng_state(whole[-5])
    assert identical(everything([model], [optimizer])[:-5], whole[:-5])
    assert [list(series) for series in readings] == [list(series) for series in resumed]


def test_masks_take_a_bit_a_weight_in_the_checkpoint() -> None:
    seeded()
    model = mlp(8, 16, 16, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with dp.watch(model, optimizer, dp.StaticSparse(0.3), on_error="raise") as watch:
        train(model, optimizer, loss, 2)
        network = watch.state_dict()["instruments"]["sparsity"]["state"]["network"]
    sizes = {name: mask["bits"].numel() for name, mask in network["masks"].items()}
    assert sizes == {"0.weight": 16, "2.weight": 32}


def _without_masks(state: dict[str, Any]) -> None:
    del state["instruments"]["sparsity"]["state"]["network"]


def _other_shape(state: dict[str, Any]) -> None:
    state["instruments"]["sparsity"]["state"]["network"]["masks"]["0.weight"]["shape"] = [8, 16]


def _other_weight(state: dict[str, Any]) -> None:
    inner = state["instruments"]["sparsity"]["state"]
    inner["weights"][0] = "9.weight"
    inner["network"]["masks"]["9.weight"] = inner["network"]["masks"].pop("0.weight")


@pytest.mark.parametrize(
    ("spoil", "fix"),
    [
        (_without_masks, "has no masks"),
        (_other_shape, "saved with another model"),
        (_other_weight, "same include="),
    ],
)
def test_masks_that_are_missing_or_do_not_fit_are_refused_and_nothing_changes(
    spoil: Callable[[dict[str, Any]], None], fix: str
) -> None:
    seeded()
    model = mlp(8, 16, 16, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with dp.watch(model, optimizer, dp.StaticSparse(0.3), on_error="raise") as watch:
        train(model, optimizer, loss, 2)
        state = copy.deepcopy(watch.state_dict())
    spoil(state)
    fresh = mlp(8, 16, 16, 2)
    before = [p.detach().clone() for p in fresh.parameters()]
    optimizer = torch.optim.SGD(fresh.parameters(), 1e-2)
    with dp.watch(fresh, optimizer, dp.StaticSparse(0.3), on_error="raise") as watch:
        with pytest.raises(ValueError, match=fix):
            watch.load_state_dict(state)
        assert watch.step == 0
    for parameter, kept in zip(fresh.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)


def test_a_watch_state_of_another_treatment_is_refused() -> None:
    seeded()
    model = mlp(8, 16, 16, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with dp.watch(model, optimizer, dp.Dormancy(every=2), on_error="raise") as watch:
        train(model, optimizer, loss, 2)
        state = watch.state_dict()
    with dp.watch(model, optimizer, dp.StaticSparse(0.3), on_error="raise") as watch:
        with pytest.raises(ValueError, match="give dp.watch the same ones"):
            watch.load_state_dict(state)
