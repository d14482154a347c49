"""The share of dormant units over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dynamo_probe.functional.dormancy import check_tau, dormant_units, normalised_by_replica
from dynamo_probe.functional.overlap import overlap_coefficient
from dynamo_probe.instrument import Probe
from dynamo_probe.observation.statistics import HIGHEST, LOWEST, MAGNITUDE, SATURATED, UnitSums
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import Where, as_where

_MOST_SCALARS = 64


class Dormancy(Probe):
    """Measure dormant units: score at most tau (Sokar et al. 2023, eq. 1).

    Readings, each with its number of samples:

    - `dormancy/tau=T`: the share of dormant units, pooled over units; `dormancy/layer/NAME/tau=T`
      for one layer;
    - `dormancy/first/tau=T`: the pooled share at the first reading. Growth is against that, not
      against 0. Riding on the training, the first reading is at update 1, whose activations come
      from the initial weights; on a probe batch it is taken after update 1;
    - `dormancy/overlap`: overlap coefficient of this dormant set and the last one;
    - `dormancy/dead`: the share of units that never fired;
    - `dormancy/constant` (no variance) and `dormancy/saturated` (at a bound of the activation
      function), with companions;
    - `dormancy/nonfinite`: the number of units with NaN or infinite activations. They are neither
      dormant nor alive and take no part in the shares;
    - `dormancy/replicas/tau=T` [replicas] and `dormancy/replica/R/tau=T`, where the model is
      several networks stacked in one (`axes=` of `dp.watch`); every score is then relative to the
      layer of its own replica;
    - `dormancy/samples`, and the scores themselves, `dormancy/scores/NAME`, an array [units].
    """

    name = "dormancy"

    def __init__(
        self,
        tau: float | Sequence[float] = (0.0, 0.025, 0.1),
        every: int | Schedule = 100,
        on: Literal["training", "probe"] | Any = "training",
        *,
        updates: int = 1,
        companions: bool | None = None,
    ) -> None:
        """Set thresholds and times.

        Args:
            tau: thresholds, each at least 0.
            every: period in updates, or a schedule.
            on: `training` takes the loop's own batches, `probe` the watch's probe batch; or give a
                batch. A live batch confounds the network with its inputs; a fixed one does not.
            updates: how many updates before a reading are gathered. With small batches a unit that
                fires seldom looks dead: gather some hundred samples.
            companions: also measure constant and saturated units, which costs two more passes over
                the activations. None: only on a probe batch.

        Raises:
            ValueError: when a threshold is negative or there is none, or `updates < 1`.
        """
        super().__init__(as_schedule(every, first=True))
        self.taus = tuple(sorted({float(t) for t in _listed(tau)}))
        if not self.taus:
            raise ValueError("no tau was given; 0.1 is usual")
        for one in self.taus:
            check_tau(one)
        if updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        self.updates = updates
        self.where: Where = as_where(on)
        self.companions = self.where != "training" if companions is None else companions
        self._first: dict[str, float] = {}
        self._dormant: dict[str, Tensor] = {}
        self._warned = False

    @property
    def primary_tau(self) -> float:
        """The threshold of dormant sets: 0.1 if it is among them, otherwise the largest."""
        return 0.1 if 0.1 in self.taus else self.taus[-1]

    def attach(self, site: Site) -> None:
        """Ask for the statistics."""
        extra = (HIGHEST, LOWEST, SATURATED) if self.companions else ()
        self.source = site.observe(self, (MAGNITUDE, *extra), self.where)

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        sums = self.source.read(replicas=True)
        scores = {
            name: normalised_by_replica(one.mean_magnitude(), one.replicas)
            for name, one in sums.items()
        }
        counts = self._counts(scores)
        samples = min(one.samples for one in sums.values())
        finite = sum(count[1] for count in counts.values())
        self._report_nonfinite(site, {n: len(scores[n]) - counts[n][1] for n in counts})
        if finite:
            self._report_fractions(site, counts, sums, samples, finite)
            self._report_replicas(site, scores, sums, samples)
            self._report_overlap(site, scores, samples)
            self._report_companions(site, sums, samples, finite)
        for name, layer in scores.items():
            site.emit(f"{self.name}/scores/{name}", layer.numpy(), sums[name].samples)
        site.emit(f"{self.name}/samples", float(samples))

    def _counts(self, scores: Mapping[str, Tensor]) -> dict[str, tuple[list[int], int]]:
        """Return each layer's dormant units by threshold, and its units with a finite score."""
        # One pass over all layers: on small layers the calls cost more than the arithmetic.
        pooled = torch.cat(list(scores.values()))
        flags = [pooled.isfinite(), *(dormant_units(pooled, tau) for tau in self.taus)]
        starts = np.cumsum([0, *(len(layer) for layer in scores.values())])[:-1]
        counts = np.add.reduceat(torch.stack(flags).numpy(), starts, axis=1, dtype=np.int64)
        return {
            name: (dormant, finite)
            for name, (finite, *dormant) in zip(scores, counts.T.tolist(), strict=True)
        }

    def _report_fractions(
        self,
        site: Site,
        counts: Mapping[str, tuple[list[int], int]],
        sums: Mapping[str, UnitSums],
        samples: int,
        finite: int,
    ) -> None:
        for index, tau in enumerate(self.taus):
            pooled = sum(dormant[index] for dormant, _ in counts.values()) / finite
            site.emit(f"{self.name}/tau={tau}", pooled, samples)
            site.emit(f"{self.name}/first/tau={tau}", self._first.setdefault(str(tau), pooled))
            for name, (dormant, of) in counts.items():
                if of:
                    tag = f"{self.name}/layer/{name}/tau={tau}"
                    site.emit(tag, dormant[index] / of, sums[name].samples)

    def _report_replicas(
        self, site: Site, scores: Mapping[str, Tensor], sums: Mapping[str, UnitSums], samples: int
    ) -> None:
        """Give the dormant fraction of each of the networks that are stacked in one model."""
        counts = {one.replicas for one in sums.values()}
        if counts == {1}:
            return
        if len(counts) > 1:
            site.note("skipped", f"{self.name}/replicas", reason="layers have different numbers")
            return
        (replicas,) = counts
        rows = torch.cat([layer.view(replicas, -1) for layer in scores.values()], 1)
        finite = rows.isfinite().sum(1)
        for tau in self.taus:
            fractions = dormant_units(rows, tau).sum(1).double() / finite
            site.emit(f"{self.name}/replicas/tau={tau}", fractions.numpy(), samples)
            # TensorBoard becomes slow beyond a hundred scalars or so.
            if replicas * len(self.taus) <= _MOST_SCALARS:
                for index, fraction in enumerate(fractions.tolist()):
                    site.emit(f"{self.name}/replica/{index}/tau={tau}", fraction, samples)

    def _report_overlap(self, site: Site, scores: Mapping[str, Tensor], samples: int) -> None:
        dormant = {name: layer <= self.primary_tau for name, layer in scores.items()}
        shared = [name for name in dormant if name in self._dormant]
        if shared:
            now, then = (torch.cat([d[n] for n in shared]) for d in (dormant, self._dormant))
            if now.any() and then.any():
                site.emit(f"{self.name}/overlap", overlap_coefficient(now, then), samples)
        self._dormant = dormant

    def _report_companions(
        self, site: Site, sums: Mapping[str, UnitSums], samples: int, finite: int
    ) -> None:
        dead = int((torch.cat([one.values["magnitude"] for one in sums.values()]) == 0).sum())
        site.emit(f"{self.name}/dead", dead / finite, samples)
        if not self.companions:
            return
        constant = sum(
            int((one.values["highest"] == -one.values["lowest"]).sum()) for one in sums.values()
        )
        site.emit(f"{self.name}/constant", constant / finite, samples)
        bounded = [one for one in sums.values() if one.bounds[1] - one.bounds[0] < float("inf")]
        units = sum(len(one.values["saturated"]) for one in bounded)
        if units:
            at_bound = sum(
                int((one.values["saturated"] > 0.99 * one.samples).sum()) for one in bounded
            )
            site.emit(f"{self.name}/saturated", at_bound / units, samples)

    def _report_nonfinite(self, site: Site, bad: Mapping[str, int]) -> None:
        total = sum(bad.values())
        site.emit(f"{self.name}/nonfinite", float(total))
        if total and not self._warned:
            layers = {name: count for name, count in bad.items() if count}
            site.note("alert", self.name, reason="activations are not finite", units=layers)
        self._warned = bool(total)

    def state_dict(self) -> dict[str, Any]:
        """Return the first reading and the last dormant set."""
        return {"first": self._first, "dormant": self._dormant, "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._first, self._dormant = dict(state["first"]), dict(state["dormant"])
        self._warned = bool(state["warned"])


def _listed(tau: float | Sequence[float]) -> list[float]:
    return [tau] if isinstance(tau, (int, float)) else list(tau)
