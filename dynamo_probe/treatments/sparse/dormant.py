"""Exchange connections for the sake of dormant units: scores that look at activations.

A unit that is dead for every sample gets no gradient, so that growing by gradient passes it by for
good. Li et al. 2024 (*NeurRev: train better sparse neural network practically via neuron
revitalization*) take away what keeps it silent. These scores reimplement the idea on this engine:
negative connections into dormant units go first, and new ones are steered towards such units.
In benchmarks/papers/RESULTS.md this lowers dormancy and does not help accuracy: compare first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynamo_probe.functional.dormancy import check_tau, normalised_scores
from dynamo_probe.functional.importance import magnitude
from dynamo_probe.instrument import Instrument
from dynamo_probe.observation.statistics import MAGNITUDE
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable
from dynamo_probe.treatments.sparse.scores import Evidence, Score


class _Dormant(Score):
    """Knows which units are dormant on the batches of the update.

    Where a layer's activations cannot be read, its connections are scored as if no unit were.
    """

    def __init__(self, tau: float = 0.1) -> None:
        """Set the threshold of the dormancy score (Sokar et al. 2023, eq. 1).

        Raises:
            ValueError: when tau is negative.
        """
        check_tau(tau)
        self.tau = float(tau)
        self._dormant: dict[str, Tensor] = {}
        self._told = False

    def attach(self, site: Site, instrument: Instrument) -> None:
        """Ask for the activations of the update of the masks."""
        self._source = site.observe(instrument, (MAGNITUDE,))

    def prepare(self, site: Site) -> None:
        """Score the units."""
        self._dormant = {}
        try:
            sums = self._source.read()
        except NotMeasurable as reason:
            if not self._told:
                self._told = True
                site.note("skipped", self.name, reason=f"no unit's activation was read: {reason}")
            return
        for name, one in sums.items():
            self._dormant[name] = normalised_scores(one.mean_magnitude()) <= self.tau

    def leading_into_dormant(self, evidence: Evidence) -> Tensor | None:
        """Return which connections lead into dormant units; None where none is known to be."""
        units = self._dormant.get(evidence.where.layer)
        if units is None or not bool(units.any()):
            return None
        shape = [1] * evidence.weight.dim()
        shape[evidence.where.unit_dim] = -1
        return units.to(evidence.weight.device).view(shape).expand(evidence.weight.shape)


class KeepsSilent(_Dormant):
    """A prune score: magnitude, but negative connections into dormant units go first (NeurRev)."""

    name = "keeps-silent"

    def __call__(self, evidence: Evidence) -> Tensor:
        """Return |w|; w, which is below 0, for negative connections into dormant units."""
        worth = magnitude(evidence.weight)
        into = self.leading_into_dormant(evidence)
        if into is None:
            return worth
        return torch.where(into & (evidence.weight < 0), -worth, worth)


class TowardsDormant(_Dormant):
    """A grow score: the gradient, and for connections into dormant units a draw against it.

    Such connections have a gradient of 0 or nearly so. They get `strength` x the largest gradient
    of the layer x a uniform random number instead, where that is more.
    """

    name = "towards-dormant"
    needs_gradient = True

    def __init__(self, tau: float = 0.1, strength: float = 1.0) -> None:
        """Set the threshold, and how hard growing is steered.

        Args:
            tau: threshold of the dormancy score.
            strength: 0 is growing by gradient; at 1 most of what grows leads into dormant units,
                as long as there are any.

        Raises:
            ValueError: when one is negative.
        """
        super().__init__(tau)
        if strength < 0:
            raise ValueError(f"strength is {strength}; give 0 or more")
        self.strength = float(strength)

    def __call__(self, evidence: Evidence) -> Tensor:
        """Return |g|, or the draw where it is more and leads into a dormant unit."""
        assert evidence.gradient is not None
        worth = magnitude(evidence.gradient)
        into = self.leading_into_dormant(evidence)
        if into is None:
            return worth
        drawn = torch.rand(evidence.where.shape, generator=evidence.generator).to(worth)
        return torch.where(into, torch.maximum(worth, self.strength * worth.max() * drawn), worth)
