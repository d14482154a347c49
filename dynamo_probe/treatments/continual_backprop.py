"""Continual backpropagation: replace the least useful mature units, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynamo_probe.functional.moments import Moments
from dynamo_probe.functional.selection import select_exact
from dynamo_probe.functional.utility import Reduce, outgoing_magnitudes
from dynamo_probe.observation.running_utility import RunningUtility
from dynamo_probe.observation.statistics import MAGNITUDE
from dynamo_probe.schedule import Every
from dynamo_probe.site import Site
from dynamo_probe.treatments.recycling import Recycling, check_choice


class ContinualBackprop(Recycling):
    """Replace a small share of the least useful units all the time (Dohare et al. 2024).

    *Loss of plasticity in deep continual learning* (Nature 632), algorithm 1. At every update the
    utility of each unit is averaged, u <- decay u + (1 - decay) E|h| sum|w_out|, with h before the
    update and w_out after it. Units older than `maturity` updates may be replaced;
    `replacement_rate` of them are due at each update, and the fractions of a unit that this makes
    are saved up, layer by layer. The least useful one gets incoming weights from its layer's
    initial distribution, a zero bias, zero outgoing weights, age 0 and utility 0.

    Where the authors' public code differs from the paper:

    - it takes the mean of the outgoing |w|: `outgoing="mean"`, which ranks the units of a layer
      alike;
    - it divides u by 1 - decay^age, so that a young unit is not taken for a useless one: done here,
      unless `bias_correction=False`;
    - without its option to accumulate, a fraction of a unit is a probability; not offered;
    - it adds what a replaced unit gave on average to the biases that follow; not done here, as in
      the paper;
    - its Adam counts steps by weight, and begins anew with a replaced unit's. torch counts by
      tensor: see `moments`.

    With `every=n` the work is done at each n-th update, from that update's batch, with `decay` and
    `replacement_rate` meant per update as before: n times as many units are due, and the average
    forgets as much (decay^n). On one thread, beside a fused Adam and batches of 32, looking at
    every update adds 0.65 ms to the 0.34 ms of a 64-128-128-10 network and 0.86 ms to the 1.33 ms
    of a convolution and two linear layers on 4x10x10; `every=10` adds 0.09 and 0.15 ms, and an
    update at which units are replaced some 0.7 ms (`benchmarks/overhead/continual_backprop.py`).

    Readings, at updates at which units were replaced, and every `read_every`:
    `continual_backprop/recycled` (at this update), `.../recycled_total`, `.../age` (mean age of
    all units, in updates) and, with a probe batch, `.../output_change`. Each layer's replacements
    are an event as in `ReDo`. While it is switched off nothing falls due.
    """

    name = "continual_backprop"

    def __init__(
        self,
        replacement_rate: float = 1e-4,
        *,
        maturity: int = 100,
        decay: float = 0.99,
        every: int = 1,
        bias_correction: bool = True,
        outgoing: Reduce = "sum",
        init: Literal["own", "xavier"] = "own",
        moments: Moments = "live-mean",
        mirror: nn.Module | Sequence[nn.Module] = (),
        layers: Sequence[str] | None = None,
        read_every: int = 100,
    ) -> None:
        """Set how many units are replaced.

        Args:
            replacement_rate: share of the mature units of a layer that is replaced at each update.
            maturity: updates for which a new unit is left alone.
            decay: of the utility, per update.
            every: updates between two observations.
            bias_correction: correct the average for its beginning at 0.
            outgoing: `sum` of the outgoing |w| as in the paper, `mean` as in the authors' code.
            init: `own` draws incoming weights from the layer's distribution as it was at attach;
                `xavier` from xavier_uniform.
            moments: what becomes of the optimizer's state at the touched weights; see
                `dynamo_probe.functional.recycle`.
            mirror: networks of the same shape, such as target networks, that get the same weights.
            layers: names of the layers to treat; None takes all that can be recycled.
            read_every: updates between two readings where nothing was replaced.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(Every(every), init=init, moments=moments, mirror=mirror, layers=layers)
        if not 0 <= replacement_rate <= 1:
            raise ValueError(f"replacement_rate is {replacement_rate}; give 0 to 1 (1e-4 is usual)")
        if maturity < 0:
            raise ValueError(f"maturity is {maturity}; give 0 or more (100 is usual)")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; give a number from 0 to below 1 (0.99 is usual)")
        check_choice(outgoing, ("sum", "mean"), "outgoing")
        if read_every < 1:
            raise ValueError(f"read_every is {read_every}; give 1 or more")
        self.replacement_rate = float(replacement_rate)
        self.maturity, self.decay, self.every = maturity, float(decay), every
        self.bias_correction = bias_correction
        self.outgoing: Reduce = outgoing
        self.read_every = read_every
        self._running = RunningUtility(self.decay)
        self._owed: dict[str, float] = {}

    def attach(self, site: Site) -> None:
        """Record the initial distributions and ask for the activations.

        Raises:
            ValueError: when a mirror is not a network of the same shape, or a layer that was named
                does not exist.
        """
        super().attach(site)
        self.source = site.observe(self, (MAGNITUDE,))

    def fire(self, site: Site) -> None:
        """Observe the units, and replace those that are due."""
        sums = self.source.read()
        wirings = self._wirings(site, sums)
        weights = outgoing_magnitudes(wirings, self.outgoing)
        masks = {
            name: self._due(site, name, sums[name].mean_magnitude() * weights[name])
            for name in wirings
        }
        due = {name: mask for name, mask in masks.items() if mask is not None}
        reading = site.step % self.read_every < self.every
        if not due and not reading:
            return
        samples = min(one.samples for one in sums.values())
        self._recycle(site, {name: wirings[name] for name in due}, due, samples)
        for name, mask in due.items():
            self._running.restart(name, mask)
        ages = torch.cat([self._ages(site, name, w.units) for name, w in wirings.items()])
        site.emit(f"{self.name}/age", float(ages.double().mean()))

    def _due(self, site: Site, name: str, observed: Tensor) -> Tensor | None:
        """Take an observation of a layer; return which of its units are to be replaced now."""
        utility = self._running.observe(name, observed, site.step, corrected=self.bias_correction)
        # What was never finite has no utility: it is no candidate.
        mature = (self._ages(site, name, len(observed)) > self.maturity) & utility.isfinite()
        eligible = int(mature.sum())
        owed = self._owed.get(name, 0.0) + eligible * self.replacement_rate * self.every
        count = min(int(owed), eligible)
        self._owed[name] = owed - count
        return select_exact(-utility, count, among=mature) if count else None

    def state_dict(self) -> dict[str, Any]:
        """Return utilities, births, what is saved up, and the recorded distributions."""
        state = super().state_dict()
        return {**state, "utility": self._running.state_dict(), "owed": dict(self._owed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._running.load_state_dict(state["utility"])
        self._owed = dict(state["owed"])

    def report(self) -> list[str]:
        """Say what was replaced."""
        rate = f"{self.replacement_rate:g} of the mature ones an update"
        lines = [f"replaced {self.total} units ({rate}, maturity {self.maturity} updates)"]
        if self._owed and not self.total:
            most = max(self._owed.values())
            lines.append(f"no unit was due yet: the most that a layer has saved up is {most:.2g}")
        return lines
