"""Forward times of models, interleaved, and what of a difference is more than noise."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from dynamo_probe.anatomy.twin import devices_of, untouched_randomness
from dynamo_probe.observation.batch import Batch

_SAMPLE = 2e-3
"""Seconds that one sample should take at least, so that the clock's own steps do not count."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a forward pass, one entry for each round.

    A round times the given model, a second copy of it and the exported model, in turns. The two
    copies show the noise (A/A): their ratio is 1 but for what the machine does meanwhile.

    Attributes:
        original: of the given model.
        again: of a second copy of it.
        exported: of the exported model.
    """

    original: tuple[float, ...]
    again: tuple[float, ...]
    exported: tuple[float, ...]

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return len(self.original)

    @property
    def before(self) -> float:
        """Median time of the given model."""
        return median(self.original)

    @property
    def after(self) -> float:
        """Median time of the exported model."""
        return median(self.exported)

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Median over rounds of exported / given, and the ends of its interval."""
        return _ratio(self.exported, self.original)

    @property
    def noise(self) -> tuple[float, float, float]:
        """Median over rounds of the second copy / given, and the ends of its interval."""
        return _ratio(self.again, self.original)

    @property
    def faster(self) -> bool:
        """Whether all of the ratio's interval lies below 1 and below that of the noise."""
        return self.ratio[2] < min(1.0, self.noise[1])

    @property
    def slower(self) -> bool:
        """Whether all of the ratio's interval lies above 1 and above that of the noise."""
        return self.ratio[1] > max(1.0, self.noise[2])

    @property
    def verdict(self) -> str:
        """Say it in words, with the figures."""
        (ratio, low, high), (_, quiet, loud) = self.ratio, self.noise
        figures = (
            f"{ratio:.2f} of the time ({low:.2f} to {high:.2f}; the same model against itself: "
            f"{quiet:.2f} to {loud:.2f}; {self.rounds} rounds)"
        )
        if self.faster:
            return f"faster by a factor of {1 / ratio:.2f}: {figures}"
        return f"not faster, {'but slower' if self.slower else 'within the noise'}: {figures}"


def time_forwards(models: Sequence[nn.Module], batch: Batch, rounds: int) -> list[list[float]]:
    """Time forward passes of several models in turns, with torch's threads as they are.

    Args:
        models: copies that nobody else sees, in evaluation mode.
        batch: the inputs.
        rounds: how often each is timed. The order rotates from round to round.

    Returns:
        Seconds of one pass: [models][rounds].
    """
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for model in models:
            stack.enter_context(untouched_randomness(model))
        for model in models:
            _sample(model, batch, 2)
        repeats = min(100, math.ceil(_SAMPLE / max(_sample(models[0], batch, 2), 1e-7)))
        for turn in range(rounds):
            for position in range(len(models)):
                which = (turn + position) % len(models)
                times[which].append(_sample(models[which], batch, repeats))
    return times


def _sample(model: nn.Module, batch: Batch, repeats: int) -> float:
    own = batch.clone()
    _wait(model)
    start = time.perf_counter()
    for _ in range(repeats):
        own.run(model)
    _wait(model)
    return (time.perf_counter() - start) / repeats


def _wait(model: nn.Module) -> None:
    for device in devices_of(model):
        torch.get_device_module(device).synchronize(device)


def _ratio(times: Sequence[float], of: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of paired ratios and its 95% interval from order statistics."""
    ratios = sorted(a / b for a, b in zip(times, of, strict=True))
    count = len(ratios)
    # A ratio is below the median with probability 1/2: the rank of the end is binomial.
    cut = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return median(ratios), ratios[cut], ratios[count - 1 - cut]
