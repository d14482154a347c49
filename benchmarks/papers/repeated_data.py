"""Learning from repeated data: is a middle number of repeats the worst, and is copying hurt most?

The experiment of Hernandez et al. 2022 (*Scaling laws and interpretability of learning from
repeated data*) with models of 6,000 to 100,000 parameters: a share of the training samples are
repeats of a small pool, the rest comes once, and the number of updates stays the same.

An arm is named by its width and data: `d=64` without repeats; `d=64 50% x100` has half of its
samples from a pool, 100 times each; `d=64 50% unique` has only the other half, in half the updates:
what it does better than `d=64 50% x100` is harm by the repeats, not a want of fresh samples.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from agents.runs import processor_settings
from benchmarks.papers import repeated_data_tasks as tasks
from benchmarks.papers.models.gpt import GPT, Shape
from benchmarks.papers.repeated_data_measure import (
    copy_loss,
    losses,
    random_copies,
)
from dynamo_probe.data import RepeatedMixture, SampleOrder
from dynamo_probe.functional.heads import head_scores

FORMED = 0.3
"""Prefix matching from which a head counts as an induction head; chance is 0.03 to 0.04."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What shapes the training.

    Attributes:
        task: `copy`, or a corpus.
        length: tokens of a sample.
        lag: shortest and longest segment that is copied, in tokens.
        period: tokens of the random segments that out-of-distribution copying is measured with.
        updates: of every arm but those that have only the unique samples.
        batch_size: samples of an update.
        learning_rate: of AdamW after 50 updates of warmup; it stays.
        evaluate_every: updates between two points of the curves.
        layers: of the model.
        heads: of each layer.
        test_samples: for the figures at the end; the curves take the first 128.
    """

    task: str = tasks.COPY_TASK
    length: int = 64
    lag: tuple[int, int] = (8, 32)
    period: int = 20
    updates: int = 1_500
    batch_size: int = 32
    learning_rate: float = 3e-3
    evaluate_every: int = 50
    layers: int = 2
    heads: int = 4
    test_samples: int = 1_024


COPY = Setting()
PYTHON, DOCS = (
    Setting(name, length=128, lag=(16, 64), period=25, batch_size=16, updates=500)
    for name in ("python", "docs")
)
COPY_ARMS = (
    *(f"d={width}" for width in (16, 24, 28, 32, 40, 48, 64)),
    *(f"d=64 {kind}" for kind in ("50% x10", "50% x100", "50% x1000", "50% unique")),
    *(f"d=64 {kind}" for kind in ("90% x18", "90% x180", "90% x1800", "90% unique")),
    *(f"d=64 {kind}" for kind in ("10% x10", "10% x100", "10% x1200", "10% unique")),
    *(f"d=32 {kind}" for kind in ("50% x10", "50% x100", "50% x1000", "50% unique")),
)
TEXT_ARMS = (
    *(f"d={width}" for width in (16, 32, 64)),
    *(f"d=64 {kind}" for kind in ("50% x10", "50% x100", "50% x1000", "50% unique")),
)
SHORT = replace(COPY, updates=600)
EXPERIMENTS = (
    ("copy", COPY, COPY_ARMS),
    ("python", PYTHON, TEXT_ARMS),
    ("docs", DOCS, TEXT_ARMS),
    # One layer cannot look for an earlier copy; with a fixed lag it need not.
    ("control/2-layers", SHORT, ("d=64",)),
    ("control/1-layer", replace(SHORT, layers=1), ("d=64",)),
    ("control/2-layers-lag-16", replace(SHORT, lag=(16, 16)), ("d=64",)),
    ("control/1-layer-lag-16", replace(SHORT, lag=(16, 16), layers=1), ("d=64",)),
)


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of a model after an update; losses in nats per token.

    Attributes:
        update: updates made.
        test: loss on held-out samples.
        copy: loss on copies 2 and later of held-out segments.
        random_copy: the same of random tokens, which training has nothing like.
        prefix_matching: of each head, `[layers][heads]`, on the random tokens.
        repeated: loss on the samples that are repeated; None without repeats.
    """

    update: int
    test: float
    copy: float
    random_copy: float
    prefix_matching: list[list[float]]
    repeated: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        arm: width and data.
        seed: of the weights, of the choice of the pool and of the order.
        size: parameters without the embeddings and the output layer.
        last: the figures at the end.
        formed: update at which a head's prefix matching was first seen above 0.3, or None.
        curve: the figures over training, on fewer samples.
        seconds: processor time.
    """

    arm: str
    seed: int
    size: int
    last: Point
    formed: int | None
    curve: list[Point]
    seconds: float


@dataclass(frozen=True, slots=True)
class Arm:
    """What the name of an arm says.

    Attributes:
        width: of the model.
        percent: of the samples that are repeats; 0 without.
        repeats: of each sample of the pool; None leaves the repeats out.
    """

    width: int
    percent: int = 0
    repeats: int | None = None


def parse(arm: str) -> Arm:
    """Read the name of an arm.

    Raises:
        ValueError: when it is not such a name.
    """
    match = re.fullmatch(r"d=(\d+)(?: (\d+)% (?:x(\d+)|unique))?", arm)
    if match is None:
        raise ValueError(f"the arm is {arm!r}; give 'd=64', 'd=64 50% x100' or 'd=64 50% unique'")
    width, percent, repeats = match.groups()
    return Arm(int(width), int(percent or 0), int(repeats) if repeats else None)


def samples(arm: Arm, setting: Setting, data: Any, seed: int) -> tuple[SampleOrder[Any], Tensor]:
    """Return the training samples in their order, and the indices of those that are repeated."""
    total = setting.updates * setting.batch_size
    if arm.percent == 0:
        # Any mixture with the right total has the baseline's samples.
        return RepeatedMixture(data, 1.0, total // 2, 2, seed).unrepeated(), torch.empty(0).long()
    repeated = total * arm.percent // 100
    if arm.repeats is None:
        return RepeatedMixture(data, arm.percent / 100, repeated // 10, 10, seed).unique_only(), (
            torch.empty(0).long()
        )
    pool = round(repeated / arm.repeats)
    mixture = RepeatedMixture(data, arm.percent / 100, pool, arm.repeats, seed)
    return mixture, mixture.pool_indices


def run(arm: str, seed: int, *, setting: Setting = COPY) -> Run:
    """Train one arm."""
    started = time.process_time()
    parsed = parse(arm)
    with processor_settings(threads=1):
        total = setting.updates * setting.batch_size
        task = tasks.load(setting.task, setting.length, setting.lag, total, setting.test_samples)
        order, pool = samples(parsed, setting, task.train, seed)
        repeated = torch.stack(task.train.__getitems__(pool[:128].tolist())) if len(pool) else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT(
                Shape(task.vocab_size, setting.length, parsed.width, setting.layers, setting.heads)
            )
        curve = []
        for update in train(model, order, setting):
            if update % setting.evaluate_every == 0:
                curve.append(evaluate(model, task, repeated, setting, update, 128))
        updates = -(-len(order) // setting.batch_size)
        last = evaluate(model, task, repeated, setting, updates, setting.test_samples)
    above = (p.update for p in curve if max(map(max, p.prefix_matching)) > FORMED)
    return Run(arm, seed, model.size, last, next(above, None), curve, time.process_time() - started)


def train(model: GPT, order: SampleOrder[Any], setting: Setting) -> Iterator[int]:
    """Train on every sample once; give the number of the update after each."""
    optimizer = torch.optim.AdamW(
        model.parameters(), setting.learning_rate, betas=(0.9, 0.95), fused=True
    )
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=50)
    loader = DataLoader(order.dataset, setting.batch_size, sampler=order.sampler())
    for update, tokens in enumerate(loader, start=1):
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        yield update


@torch.no_grad()
def evaluate(
    model: GPT, task: tasks.Task, repeated: Tensor | None, setting: Setting, update: int, count: int
) -> Point:
    """Return the figures of a model, from the first samples of each kind."""
    probe = random_copies(
        task.vocab_size, setting.period, setting.length // setting.period, sequences=32
    )
    scores = head_scores(model, task.vocab_size, tokens=probe)
    return Point(
        update=update,
        test=losses(model, task.test[:count]).mean().item(),
        copy=copy_loss(model, task.copies[:count], task.lags[:count]),
        random_copy=copy_loss(model, probe, torch.full((len(probe),), setting.period)),
        prefix_matching=scores.prefix_matching.tolist(),
        repeated=None if repeated is None else losses(model, repeated).mean().item(),
    )
