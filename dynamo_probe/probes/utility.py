"""The contribution utility of units over training, as in continual backpropagation."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynamo_probe.anatomy.wiring import Wiring
from dynamo_probe.functional.dormancy import normalised_scores
from dynamo_probe.functional.utility import Reduce, outgoing_magnitudes
from dynamo_probe.instrument import Probe
from dynamo_probe.observation.running_utility import RunningUtility
from dynamo_probe.observation.statistics import MAGNITUDE
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable


class ContinualBackpropUtility(Probe):
    """Measure the contribution utility of units (Dohare et al. 2024, eq. 1).

    u_i = decay u_i + (1 - decay) E|h_i| sum_k |w_ik|, with the outgoing weights after the update
    and the activations before it, and u_i / (1 - decay^age) as its bias-corrected value, which is
    what is read. The decay is that of one update: between observations that lie n updates apart the
    average decays by decay^n, so that it forgets as fast as the paper's, which observes every one.

    Readings, of the utility relative to the mean over its layer:

    - `utility/min`, `utility/median`, and `utility/below=X`, the share of units below X times the
      mean; pooled over units, and for one layer under `utility/layer/NAME/`;
    - `utility/values/NAME`: the utilities themselves, an array [units].

    A unit that is recycled during training keeps its average: continual backpropagation would start
    it anew. A layer whose outgoing weights are not its own (a residual stream) is left out, and its
    name told.
    """

    name = "utility"

    def __init__(
        self,
        every: int | Schedule = 100,
        *,
        decay: float = 0.99,
        outgoing: Reduce = "sum",
        below: float = 0.1,
        updates: int = 1,
    ) -> None:
        """Set times and the average.

        Args:
            every: period of observations in updates, or a schedule; 1 is the paper's.
            decay: of the running average, by update; 0.99 in the paper.
            outgoing: `sum` of |w| as in the paper's eq. 1, or `mean` as in the authors' code.
            below: share of the layer's mean below which a unit counts as of low utility.
            updates: how many updates before an observation are gathered for E|h|.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(as_schedule(every, first=True))
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; give a number from 0 to below 1 (0.99 is usual)")
        if outgoing not in ("sum", "mean"):
            raise ValueError(f"outgoing is {outgoing!r}; give 'sum' or 'mean'")
        if not below > 0:
            raise ValueError(f"below is {below}; give a number above 0 (0.1 is usual)")
        if updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        self.decay = float(decay)
        self.outgoing: Reduce = outgoing
        self.below = float(below)
        self.updates = updates
        self._running = RunningUtility(self.decay)
        self._told: set[str] = set()

    def attach(self, site: Site) -> None:
        """Ask for the activations."""
        self.source = site.observe(self, (MAGNITUDE,))

    def begin(self, site: Site) -> None:
        """Resolve the wiring once, and tell which layers have none of their own."""
        for name, wiring in site.wiring().items():
            if isinstance(wiring, str) and name not in self._told:
                self._told.add(name)
                site.note("skipped", f"{self.name}: {name}", reason=wiring)

    def fire(self, site: Site) -> None:
        """Take an observation and give the readings of this update."""
        sums = self.source.read()
        wirings = {n: w for n, w in site.wiring().items() if isinstance(w, Wiring) and n in sums}
        if not wirings:
            raise NotMeasurable("no layer that was seen has outgoing weights of its own")
        weights = outgoing_magnitudes(wirings, self.outgoing)
        utilities = {
            name: self._running.observe(
                name, sums[name].mean_magnitude() * weights[name], site.step
            )
            for name in wirings
        }
        samples = {name: sums[name].samples for name in utilities}
        relative = {name: normalised_scores(u).numpy() for name, u in utilities.items()}
        self._report(
            site, self.name, np.concatenate(list(relative.values())), min(samples.values())
        )
        for name, values in relative.items():
            self._report(site, f"{self.name}/layer/{name}", values, samples[name])
            site.emit(f"{self.name}/values/{name}", utilities[name].numpy(), samples[name])

    def _report(self, site: Site, prefix: str, relative: np.ndarray, samples: int) -> None:
        finite = relative[np.isfinite(relative)]
        if len(finite):
            site.emit(f"{prefix}/min", float(finite.min()), samples)
            site.emit(f"{prefix}/median", float(np.median(finite)), samples)
            site.emit(f"{prefix}/below={self.below}", float((finite < self.below).mean()), samples)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages."""
        return {**self._running.state_dict(), "told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._running.load_state_dict(state)
        self._told = set(state["told"])
