"""ReDo: recycle dormant neurons while training goes on (Sokar et al. 2023, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from dynamo_probe.functional.dormancy import check_tau, normalised_scores
from dynamo_probe.functional.moments import Moments
from dynamo_probe.observation.statistics import MAGNITUDE
from dynamo_probe.schedule import Every, Schedule
from dynamo_probe.site import Site
from dynamo_probe.treatments.recycling import Choice, Recycling, check_choice

Score = Literal["dormancy", "random", "inverted"]


class ReDo(Recycling):
    """Recycle dormant neurons (Sokar et al. 2023, algorithm 1).

    Every `every` updates, each hidden unit with a score of at most `tau` gets fresh incoming
    weights from its layer's initial distribution and a zero bias; its outgoing weights are set to
    zero, its norm entries to the identity, and the optimizer's state is reset at exactly those
    coordinates. All incoming weights are drawn before any outgoing one is zeroed, so that a weight
    between two recycled units ends at 0.

    Readings: `redo/recycled` (units recycled at this update), `redo/recycled_total`,
    `redo/dormant_again` (share of the units recycled earlier that are dormant now) and, with a
    probe batch, `redo/output_change` (largest change of an output). Each layer's recycling is an
    event with the units, their ages in updates, and the change of the output.
    """

    name = "redo"

    def __init__(
        self,
        tau: float = 0.1,
        every: int | Schedule = 1000,
        start: int = 0,
        end: int | None = None,
        score: Score = "dormancy",
        *,
        updates: int = 1,
        init: Literal["own", "xavier"] = "own",
        moments: Moments = "live-mean",
        mirror: nn.Module | Sequence[nn.Module] = (),
        on: Literal["training", "probe"] = "training",
        layers: Sequence[str] | None = None,
    ) -> None:
        """Set what is recycled, when and how.

        Args:
            tau: threshold of the score, at least 0.
            every: period in updates, or a schedule (then without `start` and `end`).
            start: nothing is recycled before this update.
            end: nothing is recycled after this update.
            score: which units: `dormancy` the dormant ones; `random` and `inverted` (highest scores
                first) are controls that take as many units a layer as are dormant in it.
            updates: how many updates before a firing are gathered for the scores. The reference
                scores 256 states; with small batches take more than one update.
            init: `own` draws incoming weights from the layer's distribution as it was at attach;
                `xavier` from xavier_uniform, which is what the reference does, whatever the layer
                had.
            moments: what becomes of the optimizer's state at the touched weights; see
                `dynamo_probe.functional.recycle`.
            mirror: networks of the same shape, such as target networks, that get the same weights.
            on: score on the `training` batches, or on the watch's `probe` batch.
            layers: names of the layers to treat; None takes all that can be recycled.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(
            period(every, start, end), init=init, moments=moments, mirror=mirror, layers=layers
        )
        check_tau(tau)
        check_choice(score, ("dormancy", "random", "inverted"), "score")
        check_choice(on, ("training", "probe"), "on")
        if updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        self.tau = float(tau)
        self.score: Score = score
        self.updates = updates
        self.where: Literal["training", "probe"] = on
        self._firings = 0

    def attach(self, site: Site) -> None:
        """Record the initial distributions and ask for scores.

        Raises:
            ValueError: when a mirror is not a network of the same shape, or a layer that was named
                does not exist.
        """
        super().attach(site)
        self.source = site.observe(self, (MAGNITUDE,), self.where)

    def fire(self, site: Site) -> None:
        """Score the units, recycle those that are due, and report what was changed."""
        sums = self.source.read()
        scores = {n: normalised_scores(one.mean_magnitude()) for n, one in sums.items()}
        choice: Choice = "dormant" if self.score == "dormancy" else self.score
        samples = min(one.samples for one in sums.values())
        self._recycle_dormant(site, scores, self.tau, choice, samples)
        self._firings += 1

    def state_dict(self) -> dict[str, Any]:
        """Return ages, counts and the recorded initial distributions."""
        return {**super().state_dict(), "firings": self._firings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._firings = int(state["firings"])

    def report(self) -> list[str]:
        """Say what was recycled, and what cannot be."""
        return threshold_report(self.total, self._firings, self.tau)


def period(every: int | Schedule, start: int, end: int | None) -> Schedule:
    """Return the schedule of a period between two updates, or the given one.

    Raises:
        ValueError: when a schedule comes with a start or end.
    """
    if isinstance(every, int):
        return Every(every, start=start, end=end)
    if start or end is not None:
        raise ValueError("start and end belong to a period; put them into the schedule")
    return every


def threshold_report(total: int, firings: int, tau: float) -> list[str]:
    """Say what was recycled by a threshold."""
    lines = [f"recycled {total} units in {firings} firings (tau={tau:g})"]
    if firings and not total:
        lines.append("it has fired and never found a unit to recycle: tau may be too low")
    return lines
