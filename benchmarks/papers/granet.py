"""Sparse training of small MLPs: which way of getting sparse keeps the most accuracy?

GraNet (Liu et al. 2021, *Sparse training via boosting pruning plasticity with neuroregeneration*)
against the methods that it builds on: RigL without the pruning, gradual magnitude pruning without
the regeneration. As published, GraNet and gradual pruning choose their layers' densities by global
magnitude, while RigL, SET and the static mask keep an ERK distribution; the arms that end in
`, ERK` prune every layer to its ERK density, so that all methods have the same one.

The number after GMP and GraNet is the sparsity that training begins with. GraNet and RigL grow by
the gradient, `GraNet(0) random` grows at random, and GMP lets nothing grow: `GMP(0.5)` is there to
tell what GraNet(0.5) has from regenerating from what it has from its schedule.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

import dynamo_probe as dp
from agents.runs import processor_settings
from benchmarks.papers.continual import shuffled
from benchmarks.papers.small_data import Data, load
from dynamo_probe.schedule import Cosine
from dynamo_probe.treatments.sparse.engine import SparseTraining

SPARSITIES = (90, 95, 98)
FIXED = ("static", "SET", "RigL")
GRADUAL = ("GMP(0.5)", "GraNet(0.5)", "GMP(0)", "GraNet(0)", "GraNet(0) random")
METHODS = (*FIXED, *GRADUAL, *(f"{method}, ERK" for method in GRADUAL))
ARMS = ("dense", *(f"{method} {sparsity}" for method in METHODS for sparsity in SPARSITIES))
TURNOVER_ARMS = tuple(
    arm for arm in ARMS if arm.startswith(("RigL", "GMP", "GraNet")) and "random" not in arm
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What shapes the training.

    Attributes:
        data: name of the data set.
        widths: of the layers, from the inputs to the classes.
        updates: of the whole training.
        batch_size: samples of an update.
        learning_rate: of SGD with Nesterov momentum 0.9; times 0.1 at 1/2 and at 3/4.
        weight_decay: of SGD.
        mask_every: updates between two updates of the masks.
        turnover: share of each layer's connections that is exchanged at first, cosine to 0.
        prune_until: share of training after which the density is the final one.
        turnover_until: share of training after which nothing is exchanged.
    """

    data: str
    widths: tuple[int, ...]
    updates: int
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    mask_every: int = 20
    turnover: float = 0.5
    prune_until: float = 0.5
    turnover_until: float = 0.75


DIGITS = Setting("digits", (64, 128, 128, 10), updates=800)
MNIST1D = Setting("mnist1d", (40, 200, 200, 10), updates=1_200)
LITTLE_TURNOVER = replace(MNIST1D, turnover=0.1)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        arm: the method and, after a space, the sparsity in per cent; or `dense`.
        seed: of weights, batches and masks.
        accuracy: on the test set after the last update.
        densities: of each weight at the end, and of all of them together as `all`.
        seconds: processor time.
    """

    arm: str
    seed: int
    accuracy: float
    densities: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Training:
    """A network, how it is trained, and what on."""

    network: nn.Sequential
    optimizer: torch.optim.SGD
    schedule: LRScheduler
    batches: Iterator[Tensor]
    data: Data

    def update(self) -> None:
        """Make one update on the next batch; the learning rate stays."""
        self.update_on(next(self.batches))

    def update_on(self, rows: Tensor) -> None:
        """Make one update on some samples."""
        logits = self.network(self.data.inputs[rows])
        self.optimizer.zero_grad()
        F.cross_entropy(logits, self.data.labels[rows]).backward()
        self.optimizer.step()

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of the test set that is classified right."""
        guesses = self.network(self.data.test_inputs).argmax(1)
        return (guesses == self.data.test_labels).float().mean().item()


def run(arm: str, seed: int, *, setting: Setting = MNIST1D) -> Run:
    """Train one arm."""
    if arm not in ARMS:
        raise ValueError(f"the arm is {arm!r}; give one of {', '.join(ARMS)}")
    started = time.process_time()
    with processor_settings(threads=1):
        training = begin(setting, seed)
        sparse = method(arm, setting)
        with watched(training, sparse, seed):
            for _ in range(setting.updates):
                training.update()
                training.schedule.step()
            densities = {} if sparse is None else found_densities(sparse)
        return Run(
            arm=arm,
            seed=seed,
            accuracy=training.accuracy(),
            densities=densities,
            seconds=time.process_time() - started,
        )


def watched(
    training: Training, sparse: SparseTraining | None, seed: int
) -> AbstractContextManager[Any]:
    """Return a watch over the training; nothing where it stays dense."""
    if sparse is None:
        return nullcontext()
    return dp.watch(training.network, training.optimizer, [sparse], seed=seed, on_error="raise")


def begin(setting: Setting, seed: int) -> Training:
    """Return a fresh network with all that trains it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = mlp(setting.widths)
    optimizer = torch.optim.SGD(
        network.parameters(),
        setting.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=setting.weight_decay,
    )
    drops = [setting.updates // 2, setting.updates * 3 // 4]
    data = load(setting.data)
    return Training(
        network,
        optimizer,
        MultiStepLR(optimizer, drops, gamma=0.1),
        shuffled(len(data.inputs), setting.batch_size, seed),
        data,
    )


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers with ReLU between them, in torch's own initialisation."""
    modules: list[nn.Module] = []
    for inward, outward in zip(widths[:-1], widths[1:], strict=True):
        modules += [nn.Linear(inward, outward), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def method(arm: str, setting: Setting) -> SparseTraining | None:
    """Return the treatment of an arm; None is dense.

    Every weight is masked, the output layer too (`include=["*"]`), and counted in the sparsity.
    """
    if arm == "dense":
        return None
    name, _, sparsity = arm.rpartition(" ")
    density = round(1 - int(sparsity) / 100, 2)
    end = round(setting.updates * setting.prune_until)
    stop = round(setting.updates * setting.turnover_until)
    turnover = {"turnover": setting.turnover, "stop": stop}
    common = {"every": setting.mask_every, "include": ["*"]}
    if name.endswith(", ERK"):
        name, common = name.removesuffix(", ERK"), {**common, "scope": "layer"}
    begins = 0.5 if "(0.5)" in name else 1.0
    if name == "static":
        return dp.StaticSparse(density, **common)
    if name == "SET":
        # The same turnover as RigL, so that only the choice of what grows differs.
        same = {**turnover, "turnover": Cosine(setting.turnover, 0.0, 0, stop)}
        return dp.SET(density, **same, **common)
    if name == "RigL":
        return dp.RigL(density, **turnover, **common)
    if name.startswith("GMP"):
        return dp.GradualMagnitudePruning(density, begins, end=end, **common)
    grow = "random" if name.endswith("random") else "gradient"
    return dp.GraNet(density, begins, end=end, grow=grow, final_turnover=0.0, **turnover, **common)


def found_densities(sparse: SparseTraining) -> dict[str, float]:
    """Return the share of the connections that is there, by weight and of all."""
    masks = {name: sparse.connections.mask_of(name) for name in sparse.connections.weights}
    total = sum(int(mask.sum()) for mask in masks.values())
    return {
        **{name: mask.double().mean().item() for name, mask in masks.items()},
        "all": total / sum(mask.numel() for mask in masks.values()),
    }
