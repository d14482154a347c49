"""Pruning plasticity over training: how well the network would recover if it were pruned now."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_probe.anatomy.shards import is_sharded
from dynamo_probe.anatomy.weights import find_weights
from dynamo_probe.functional.one_shot import Scope
from dynamo_probe.functional.plasticity import (
    MaskGradients,
    check_plasticity,
    pruning_plasticity,
)
from dynamo_probe.functional.plasticity_report import PlasticityReport
from dynamo_probe.functional.plasticity_trial import Growth, Regenerate
from dynamo_probe.functional.unmeasurable import Unmeasurable
from dynamo_probe.instrument import Probe
from dynamo_probe.schedule import Schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable


class PruningPlasticity(Probe):
    """Prune the network in one shot, train it on for some updates, and put everything back.

    Plasticity is the score after recovery at the learning rate of now - the score before pruning
    (Liu et al. 2021, *Sparse Training via Boosting Pruning Plasticity with Neuroregeneration*); see
    `functional.pruning_plasticity` for what exactly is done. Readings:

    - `pruning_plasticity/before`: the score before pruning;
    - `pruning_plasticity/control`: that of the unpruned network after as many updates, and
      `pruning_plasticity/control_curve`: along them, [points];
    - `pruning_plasticity/lr`: the learning rate of the first group, `.../lr/group=1` and so on of
      others;
    - for each rate, such as `pruning_plasticity/rate=0.9/...`: `plasticity` (after - before),
      `plasticity_vs_control` (after - control), `immediate` (just after pruning - before), `after`,
      `sparsity` (share of the weights that is not there, counted) and `curve`, the scores along the
      recovery, [points]. With regeneration the tag names it:
      `pruning_plasticity/rate=0.9/regenerate=zero-cost/...`, with `growth=random` where it is not
      by gradient.

    The points of a curve are at update 0, every `curve_every` updates, and the last.

    Output layers stay whole unless `include` names them. The masks of sparse treatments of the same
    watch hold in every network. Treatments do not act, probes see and count nothing, and the
    training goes on bit-identically, provided that `train_step` and `evaluate` take data of their
    own and whatever else they change is in `also`. Under data parallelism every rank trains, and
    `evaluate` has to give the same figure on all of them.

    Each firing costs (1 + number of rates) x `updates` updates, and the memory of the parameters,
    gradients and optimizer state once more.
    """

    name = "pruning_plasticity"

    def __init__(
        self,
        every: int | Schedule = 5000,
        *,
        train_step: Callable[[], Any],
        evaluate: Callable[[], Any],
        rates: Sequence[float] = (0.5, 0.9),
        updates: int = 100,
        scope: Scope = "global",
        regenerate: Regenerate | None | Sequence[Regenerate | None] = None,
        growth: Growth = "gradient",
        turnover: float = 0.3,
        frozen: bool = True,
        curve_every: int | None = None,
        also: Iterable[Any] = (),
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        mask_grads: MaskGradients = "step",
        keep_hooks: bool = False,
    ) -> None:
        """Set times and what is measured; see `functional.pruning_plasticity`.

        Args:
            every: period in updates, or a schedule.
            train_step: makes one update of the watched model with the watched optimizers, from a
                batch of its own.
            evaluate: gives the score; more is better.
            rates: shares of the prunable weights to prune.
            updates: how many updates each network is trained on.
            scope: `global` or `uniform` magnitude.
            regenerate: None, `restore`, `zero-cost`, or several of these.
            growth: what is regenerated: by `gradient`, or at `random`.
            turnover: share of each layer's connections that `zero-cost` exchanges.
            frozen: hold the learning rates.
            curve_every: period of the scores along the recovery; None takes about ten in all.
            also: what `train_step` changes beside the model and its optimizers.
            include: patterns of names of weights or layers to prune; None takes all but output
                layers.
            exclude: patterns of those to leave whole.
            mask_grads: mask gradients before the `step`, or in the `backward` pass.
            keep_hooks: let the user's own hooks on the optimizers' steps work on meanwhile.

        Raises:
            TypeError: when `train_step` or `evaluate` cannot be called.
            ValueError: when an argument is out of range.
        """
        super().__init__(every)
        for what, given in (("train_step", train_step), ("evaluate", evaluate)):
            if not callable(given):
                raise TypeError(
                    f"{what} is a {type(given).__name__}; give a function without arguments"
                )
        variants = check_plasticity(
            rates, updates, scope, regenerate, growth, turnover, curve_every, mask_grads
        )
        self.train_step = train_step
        self.evaluate = evaluate
        self.also = tuple(also)
        # Not `updates`, which would be how many updates of the training are gathered.
        self.recovery_updates = updates
        self._include = include
        self._exclude = tuple(exclude)
        self._settings: dict[str, Any] = {
            "rates": tuple(rates),
            "scope": scope,
            "regenerate": variants,
            "growth": growth,
            "turnover": turnover,
            "frozen": frozen,
            "curve_every": curve_every,
            "mask_grads": mask_grads,
            "keep_hooks": keep_hooks,
        }
        self._told: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> PruningPlasticity:
        """Copy the settings; the functions and what they change stay those of the loop."""
        for thing in (self.train_step, self.evaluate, *self.also):
            memo[id(thing)] = thing
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def attach(self, site: Site) -> None:
        """Check that there is something to prune.

        Raises:
            ValueError: when a pattern matches nothing, or no weight can be pruned.
        """
        found = find_weights(
            site.model, site.optimizers, include=self._include, exclude=self._exclude
        )
        if not found.found:
            raise ValueError(
                "there is no weight to prune that an optimizer of the watch holds; see include= "
                "and exclude="
            )

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        if any(is_sharded(parameter) for _, parameter in site.parameters()):
            raise NotMeasurable("the parameters are sharded over ranks (DTensor)")
        try:
            report = pruning_plasticity(
                site.model,
                site.optimizers,
                self.train_step,
                self.evaluate,
                updates=self.recovery_updates,
                also=self.also,
                masks=_held_masks(site),
                include=self._include,
                exclude=self._exclude,
                outputs=_outputs(site),
                generator=site.generator(self.name),
                **self._settings,
            )
        except Unmeasurable as reason:
            raise NotMeasurable(str(reason)) from reason
        self._emit(site, report)
        for label, reason in report.skipped.items():
            if f"{label}: {reason}" not in self._told:
                self._told.add(f"{label}: {reason}")
                site.note("skipped", f"{self.name}/{label}", reason=reason)
        for note in report.notes:
            if note not in self._told:
                self._told.add(note)
                site.note("alert", self.name, reason=note)

    def _emit(self, site: Site, report: PlasticityReport) -> None:
        site.emit(f"{self.name}/before", report.before)
        site.emit(f"{self.name}/control", report.control.scores[-1])
        site.emit(f"{self.name}/control_curve", np.array(report.control.scores))
        for index, rate in enumerate(report.learning_rates):
            site.emit(f"{self.name}/lr" + (f"/group={index}" if index else ""), rate)
        for record in report.records:
            tag = f"{self.name}/{record.label}"
            site.emit(f"{tag}/plasticity", record.plasticity)
            site.emit(f"{tag}/plasticity_vs_control", record.plasticity_vs_control)
            site.emit(f"{tag}/immediate", record.immediate)
            site.emit(f"{tag}/after", record.after)
            site.emit(f"{tag}/sparsity", record.sparsity)
            site.emit(f"{tag}/curve", np.array(record.curve.scores))

    def report(self) -> list[str]:
        """Say what is measured."""
        chosen = self._settings
        rates = ", ".join(f"{rate:g}" for rate in chosen["rates"])
        grown = [v for v in chosen["regenerate"] if v is not None]
        lines = [
            f"prunes {rates} of the weights by {chosen['scope']} magnitude and trains on for "
            f"{self.recovery_updates} updates, learning rates "
            + ("frozen" if chosen["frozen"] else "as scheduled")
        ]
        if grown:
            how = f"regenerates ({', '.join(grown)}) by {chosen['growth']}"
            share = f", turnover {chosen['turnover']:g}" if "zero-cost" in grown else ""
            lines.append(how + share)
        return lines


def _outputs(site: Site) -> set[str]:
    """Return the names of the output layers."""
    if site.last:
        return site.last
    # No forward pass could be looked into: the last layer that holds connections has to do.
    weights = find_weights(site.model, site.optimizers).found
    return {list(weights.values())[-1].layer} if weights else set()


def _held_masks(site: Site) -> dict[str, Tensor]:
    """Return the masks of sparse treatments, those that hold."""
    found: dict[str, Tensor] = {}
    for connections in site.connections:
        # Before its masks are made, or after its end, a treatment's weights are not 0 there.
        for name, weight in connections.weights.items():
            try:
                mask = connections.mask_of(name)
            except KeyError:
                continue
            if not bool(torch.any(weight.parameter.detach()[~mask] != 0)):
                found[name] = mask & found[name] if name in found else mask
    return found
