"""Supervised learning whose labels change from task to task: does the network keep learning?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import dynamo_probe as dp
from agents.runs import processor_settings
from benchmarks.papers.arms import OTHER_ARMS, TREATED_ARMS, treatments
from dynamo_probe.functional import dormancy_scores, dormant_fraction

ARMS = (*TREATED_ARMS, "layer norm", "stationary")
CONTROLS = ("redo random", "redo inverted")
EVERY_ARM = (*ARMS, *CONTROLS, "redo live-mean xavier", *OTHER_ARMS)
TAUS = (0.0, 0.025, 0.1)


@dataclass(frozen=True, slots=True)
class Setting:
    """What shapes the training.

    Attributes:
        widths: of the layers, from the inputs to the classes.
        kaiming: Kaiming-uniform weights and zero biases; otherwise torch's own initialisation.
        tasks: how often the labels are drawn.
        updates: of a task.
        batch_size: samples of an update.
        learning_rate: of Adam.
        redo_every: updates between two recyclings.
        redo_updates: ReDo scores the units on the batches of so many updates.
        redo_tau: it recycles units with a score of at most this.
    """

    widths: tuple[int, ...]
    kaiming: bool
    tasks: int
    updates: int
    batch_size: int
    learning_rate: float
    redo_every: int
    redo_updates: int
    redo_tau: float


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        arm: which arm.
        seed: of weights, data, labels and batches; the same in every arm.
        online_accuracy: of each batch before its update, mean over a task; `[tasks]`.
        accuracy: on all samples at the end of each task; `[tasks]`.
        dormant: {tau: dormant fraction on all samples, before training and just before each task
            ends and anything is recycled; `[1 + tasks]`}.
        recycled: units recycled in all.
        seconds: processor time.
    """

    arm: str
    seed: int
    online_accuracy: tuple[float, ...]
    accuracy: tuple[float, ...]
    dormant: dict[float, tuple[float, ...]]
    recycled: int
    seconds: float


def run(
    setting: Setting,
    inputs: Tensor,
    labels: Sequence[Tensor],
    arm: str,
    seed: int,
    *,
    writer: SummaryWriter | None = None,
    report: Callable[[int, float, float], None] = lambda task, accuracy, dormant: None,
    watchers: Sequence[dp.Instrument] = (),
) -> Run:
    """Train through the tasks under a watch.

    Args:
        setting: the shape of the training.
        inputs: all samples, `[samples, features]`.
        labels: the classes of all samples in each task, `[samples]` each.
        arm: one of `ARMS`.
        seed: of weights and batches.
        writer: where to log, if anywhere.
        report: called after each task with its number from 1, online accuracy, dormant fraction.
        watchers: what else the watch carries.
    """
    if arm not in EVERY_ARM:
        raise ValueError(f"the arm is {arm!r}; give one of {', '.join(EVERY_ARM)}")
    if arm == "stationary":
        labels = [labels[0]] * len(labels)
    started = time.process_time()
    with processor_settings(threads=1):
        network = make_network(setting, arm, seed)
        optimizer = torch.optim.Adam(network.parameters(), setting.learning_rate, fused=True)
        batches = shuffled(len(inputs), setting.batch_size, seed)
        dormancy = dp.Dormancy(TAUS, every=setting.updates, on=inputs)
        treated = treatments(
            arm, tau=setting.redo_tau, every=setting.redo_every, updates=setting.redo_updates
        )
        initial = dormancy_scores(network, inputs)
        dormant = {tau: [dormant_fraction(initial, tau)] for tau in TAUS}
        online: list[float] = []
        final: list[float] = []
        sinks = [] if writer is None else [writer]
        with dp.watch(
            network,
            optimizer,
            [dormancy, *watchers, *treated],
            sinks=sinks,
            seed=seed,
            on_error="raise",
        ) as watch:
            for task, classes in enumerate(labels, start=1):
                correct = torch.zeros((), dtype=torch.int64)
                for _ in range(setting.updates):
                    rows = next(batches)
                    logits = network(inputs[rows])
                    optimizer.zero_grad()
                    F.cross_entropy(logits, classes[rows]).backward()
                    optimizer.step()
                    correct += (logits.argmax(1) == classes[rows]).sum()
                online.append(correct.item() / (setting.updates * setting.batch_size))
                with torch.no_grad():
                    final.append((network(inputs).argmax(1) == classes).float().mean().item())
                for tau, fractions in dormant.items():
                    fractions.append(float(watch.history.latest(f"dormancy/tau={tau}")))
                if writer is not None:
                    writer.add_scalar("charts/online_accuracy", online[-1], watch.step)
                report(task, online[-1], dormant[0.025][-1])
            totals = [tag for tag in watch.history.tags() if tag.endswith("/recycled_total")]
            recycled = sum(int(watch.history.latest(tag)) for tag in totals)
    return Run(
        arm=arm,
        seed=seed,
        online_accuracy=tuple(online),
        accuracy=tuple(final),
        dormant={tau: tuple(fractions) for tau, fractions in dormant.items()},
        recycled=recycled,
        seconds=time.process_time() - started,
    )


def make_network(setting: Setting, arm: str, seed: int) -> nn.Sequential:
    """Return an MLP with ReLU; some arms have a layer norm before each, or an injectable head."""
    modules: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inward, outward in zip(setting.widths[:-1], setting.widths[1:], strict=True):
            modules += [nn.Linear(inward, outward)]
            if arm.startswith("layer norm"):
                modules += [nn.LayerNorm(outward)]
            modules += [nn.ReLU()]
        network = nn.Sequential(*(modules[:-2] if arm.startswith("layer norm") else modules[:-1]))
        for module in network:
            if setting.kaiming and isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
    if arm.startswith("injection"):
        # The last hidden layer belongs to the head, as in the paper's setting on Atari.
        network = nn.Sequential(*network[:-3], dp.Injectable(network[-3:]))
    return network


def shuffled(samples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield rows, `[batch]`, epoch after epoch without an end; an incomplete batch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(samples, generator=generator)
        yield from order[: samples - samples % batch_size].split(batch_size)
