"""Damage to induction heads: against their own best, against another run, and in effective size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dynamo_probe.functional.effective_size import effective_size
from dynamo_probe.functional.snapshot import settled
from dynamo_probe.sinks.memory import History

METRICS = ("test_loss", "copy_loss", "prefix_matching")
Reference = Mapping[int, float] | History


class Damage:
    """Compares what was read with what there was before, elsewhere, or in smaller models.

    Args:
        reference: of a run without damage: its history, or {update: sum of prefix matching}.
        baselines: {metric: {size: value}} of runs without repeated data, for metrics of `METRICS`.
        size: of this model, as in the baselines.
        evaluate: returns the test loss.

    Raises:
        TypeError: when an argument is of another kind.
        ValueError: when a metric or a size is missing.
    """

    def __init__(
        self,
        reference: Reference | None,
        baselines: Mapping[str, Mapping[float, float]] | None,
        size: float | None,
        evaluate: Callable[[], float] | None,
    ) -> None:
        """Check, and begin without a peak."""
        if evaluate is not None and not callable(evaluate):
            raise TypeError(
                f"evaluate is a {type(evaluate).__name__}; give a function without arguments that "
                "returns the test loss"
            )
        self.baselines = {name: dict(table) for name, table in (baselines or {}).items()}
        unknown = self.baselines.keys() - set(METRICS)
        if unknown:
            raise ValueError(f"there is no metric {min(unknown)!r}; baselines are of {METRICS}")
        if self.baselines and size is None:
            raise ValueError("baselines need size=, the size of this model in the same unit")
        if "test_loss" in self.baselines and evaluate is None:
            raise ValueError("a baseline of the test loss needs evaluate=, which measures it")
        for table in self.baselines.values():
            effective_size(table, next(iter(table.values()), math.nan))  # refuses a bad table now
        self.size = size
        self.evaluate = evaluate
        self._reference = _points(reference)
        self.peak = 0.0

    def test_loss(self, model: nn.Module) -> float | None:
        """Return what `evaluate` gives, with everything that it touches put back."""
        if self.evaluate is None:
            return None
        with settled(model), torch.no_grad():
            return float(self.evaluate())

    def drop(self, total: float, step: int) -> Iterator[tuple[str, float]]:
        """Yield (figure, value): the drop from the running peak, and from the reference.

        Args:
            total: sum of prefix matching over heads.
            step: the update.
        """
        self.peak = max(self.peak, total)
        yield "damage", 1 - total / self.peak if self.peak > 0 else 0.0
        if self._reference is not None:
            steps, values = self._reference
            if steps[0] <= step <= steps[-1]:
                there = float(np.interp(step, steps, values))
                if there > 0:
                    yield "damage_vs_reference", 1 - total / there

    def multipliers(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, float, str | None]]:
        """Yield (figure, value, why there is none): effective size over size, for each metric.

        Below 1 the model is worth a smaller one. `disproportion` is the multiplier of the copy loss
        over that of the test loss: below 1 copying is hurt more.
        """
        found: dict[str, float] = {}
        for name, table in self.baselines.items():
            if name not in metrics or self.size is None:
                continue
            size = effective_size(table, metrics[name])
            found[name] = size / self.size
            yield f"multiplier/{name}", found[name], size.reason
        if "copy_loss" in found and "test_loss" in found:
            if not math.isnan(found["copy_loss"] + found["test_loss"]):
                yield "disproportion", found["copy_loss"] / found["test_loss"], None

    def state_dict(self) -> dict[str, Any]:
        """Return the peak."""
        return {"peak": self.peak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.peak = float(state["peak"])


def _points(reference: Reference | None) -> tuple[np.ndarray, np.ndarray] | None:
    if reference is None:
        return None
    if isinstance(reference, History):
        steps, values = reference.series("induction/sum")
    elif isinstance(reference, Mapping):
        ordered = sorted(reference.items())
        steps = np.array([step for step, _ in ordered])
        values = np.array([value for _, value in ordered], dtype=float)
    else:
        raise TypeError(
            f"reference is a {type(reference).__name__}; give the history of another watch, or a "
            "mapping {update: sum of prefix matching}"
        )
    if not len(steps):
        raise ValueError("the reference has no reading of induction/sum; give one that has")
    return steps, values
