"""The networks of one measurement of pruning plasticity, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.functional.contraining import Contraining, Held
from dynamo_probe.functional.importance import magnitude
from dynamo_probe.functional.one_shot import (
    Masks,
    Scope,
    counts,
    one_shot_masks,
    regrown,
    thinned,
)
from dynamo_probe.functional.plasticity_report import Curve, PlasticityReport, Recovery
from dynamo_probe.functional.snapshot import Snapshot, settled
from dynamo_probe.functional.unmeasurable import Unmeasurable

Regenerate = Literal["restore", "zero-cost"]
Growth = Literal["gradient", "random"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What the networks of a measurement have in common; see `pruning_plasticity`.

    Attributes:
        named: every parameter of the model, by all its names.
        weights: those that are pruned.
        given: the masks that hold in every network.
        in_backward: whether gradients are masked as soon as they are made.
    """

    model: nn.Module
    evaluate: Callable[[], Any]
    snapshot: Snapshot
    contraining: Contraining
    optimizers: tuple[Optimizer, ...]
    named: Mapping[str, nn.Parameter]
    weights: Mapping[str, nn.Parameter]
    given: Masks
    scope: Scope
    growth: Growth
    turnover: float
    in_backward: bool
    generator: torch.Generator

    def report(
        self,
        rates: Sequence[float],
        variants: Sequence[Regenerate | None],
        updates: int,
        every: int | None,
        *,
        alone: bool,
    ) -> PlasticityReport:
        """Train the unpruned network, then each pruned one.

        Args:
            rates: the pruning rates.
            variants: the regenerations, each at each rate.
            updates: how many updates each network gets.
            every: period of the scores; None takes about ten in all.
            alone: whether nothing is put back beside the model and the optimizers.
        """
        every = max(1, updates // 10) if every is None else every
        with self.snapshot.trial():
            before = self._score("before pruning")
        with self.snapshot.trial():
            control = self._recover(self.given, updates, every, "of the unpruned network")
            idle = self.contraining.idle(self.weights.values())
        if idle is not None:
            raise ValueError(
                f"train_step never stepped {type(idle).__name__}, which holds weights that are "
                "pruned; leave them whole with exclude=, or give only optimizers that it steps"
            )
        records: list[Recovery] = []
        skipped: dict[str, str] = {}
        for rate in rates:
            for variant in variants:
                label = label_of(rate, variant, self.growth)
                try:
                    record = self._record(rate, variant, label, before, control, updates, every)
                except Unmeasurable as reason:
                    skipped[label] = str(reason)
                else:
                    records.append(record)
        notes = []
        if alone and self.contraining.moved:
            notes.append(
                "train_step sets the learning rate, and nothing is in also=: a scheduler that it "
                "steps was not put back"
            )
        return PlasticityReport(
            before,
            control,
            tuple(records),
            skipped,
            self.contraining.learning_rates,
            self.contraining.frozen,
            updates,
            self.scope,
            sum(weight.numel() for weight in self.weights.values()),
            tuple(notes),
        )

    def _record(
        self,
        rate: float,
        variant: Regenerate | None,
        label: str,
        before: float,
        control: Curve,
        updates: int,
        every: int,
    ) -> Recovery:
        values = {name: weight.detach() for name, weight in self.weights.items()}
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise Unmeasurable(f"{name} has weights that are not finite")
        there = {
            name: self.given.get(name, torch.ones_like(value, dtype=torch.bool))
            for name, value in values.items()
        }
        stay = one_shot_masks(values, rate, self.scope, there)
        live = stay
        masks = stay
        if variant is not None:
            scores = self._scores(stay)
            first, second = counts(there), counts(stay)
            number: int | dict[str, int] = {n: first[n] - second[n] for n in stay}
            if variant == "zero-cost":
                live = thinned(stay, values, self.turnover)
                third = counts(live)
                number = {n: second[n] - third[n] for n in stay}
            elif self.scope == "global":
                number = sum(number.values())
            masks = regrown(live, scores, number)
        kept = counts(masks)
        gone = sum(counts(there).values()) - sum(counts(live).values())
        with self.snapshot.trial():
            self._held(live).clear()
            curve = self._recover(self.given | masks, updates, every, f"at {label}")
        return Recovery(
            rate,
            "none" if variant is None else f"{variant} by {self.growth}",
            label,
            before,
            curve,
            control,
            gone,
            sum(kept.values()) - sum(counts(live).values()),
            kept,
            sum(value.numel() for value in values.values()),
        )

    def _recover(self, masks: Masks, updates: int, every: int, which: str) -> Curve:
        """Train on from where the network is, and return the scores."""
        points, scores = [0], [self._score(which)]

        def look(update: int) -> None:
            if update % every == 0 or update == updates:
                points.append(update)
                scores.append(self._score(which))

        self.contraining.run(updates, self._held(masks), done=look)
        return Curve(tuple(points), tuple(scores))

    def _scores(self, stay: Masks) -> dict[str, Tensor]:
        """Score what may come back."""
        if self.growth == "random":
            return {
                name: torch.rand(mask.shape, generator=self.generator).to(mask.device)
                for name, mask in stay.items()
            }
        found: dict[str, Tensor] = {}

        def look(optimizer: Optimizer) -> None:
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    found[name] = magnitude(weight.grad).clone()

        with self.snapshot.trial():
            self._held(stay).clear()
            self.contraining.run(1, look=look)
        for name in stay:
            if name not in found:
                raise Unmeasurable(f"{name} got no gradient, by which to regenerate")
            if not bool(found[name].isfinite().all()):
                raise Unmeasurable(f"the gradient of {name} is not finite")
        return {name: found[name] for name in stay}

    def _held(self, masks: Masks) -> Held:
        return Held(self.named, masks, self.optimizers, in_backward=self.in_backward)

    def _score(self, which: str) -> float:
        torch.clear_autocast_cache()  # it may hold weights of before
        with settled(self.model):
            given = self.evaluate()
        try:
            score = float(given.detach() if isinstance(given, Tensor) else given)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"evaluate returned a {type(given).__name__}; return a number of which more is "
                "better"
            ) from error
        if not math.isfinite(score):
            raise Unmeasurable(f"evaluate returned {score} {which}")
        return score


def label_of(rate: float, variant: Regenerate | None, growth: Growth) -> str:
    """Return what a record is called in tags."""
    if variant is None:
        return f"rate={rate:g}"
    return f"rate={rate:g}/regenerate={variant}" + ("/growth=random" if growth == "random" else "")
