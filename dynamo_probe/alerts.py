"""Ready-made alerts. Each returns a `dynamo_probe.Alert`, to be given among the instruments.

Example:
    >>> import dynamo_probe as dp
    >>> watched = [dp.Dormancy(every=100), dp.alerts.dead_layer(), dp.alerts.non_finite()]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.probes.alert import Alert

Then = Callable[[Event], object] | None
"""What is called with the event of an alert."""


def dead_layer(
    share: float = 0.95, *, tau: float = 0.0, for_updates: int = 0, then: Then = None
) -> Alert:
    """Tell of each layer in which (nearly) every unit is dormant. Needs `Dormancy`.

    Args:
        share: the alert is raised where more than this share of a layer's units is dormant.
        tau: the threshold of dormancy, one of those that `Dormancy` measures; 0 counts dead units.
        for_updates: for how many updates it has to last.
        then: called with the event.
    """
    tag = f"dormancy/layer/*/tau={float(tau)}"
    return Alert(tag, above=share, for_updates=for_updates, then=then, name="dead_layer")


def rank_collapse(
    share: float = 0.5,
    *,
    figure: Literal["effective", "srank", "stable", "participation"] = "effective",
    for_updates: int = 0,
    then: Then = None,
) -> Alert:
    """Tell of each layer whose features have lost rank since the first reading. Needs `Rank`.

    Args:
        share: the alert is raised below this share of the first reading, and ends a tenth above it.
        figure: which of the ranks.
        for_updates: for how many updates it has to last.
        then: called with the event.
    """
    return Alert(
        f"rank/*/{figure}",
        below=share,
        clear=1.1 * share,
        relative_to="first",
        for_updates=for_updates,
        then=then,
        name="rank_collapse",
    )


def gradient_spike(
    times: float = 10.0,
    *,
    tag: str = "gradients/norm_before_clipping",
    window: int = 32,
    then: Then = None,
) -> Alert:
    """Tell of a gradient norm far above the median of the readings before it. Needs `Gradients`.

    Args:
        times: the alert is raised above this multiple of the median, and ends at half of it.
        tag: which norm; after clipping (`gradients/norm`) a spike may no longer show.
        window: how many readings the median is taken over; none is judged before that many.
        then: called with the event.
    """
    return Alert(
        tag,
        above=times,
        clear=times / 2,
        relative_to="median",
        window=window,
        then=then,
        name="gradient_spike",
    )


def induction_damage(drop: float = 0.3, *, for_updates: int = 0, then: Then = None) -> Alert:
    """Tell of induction heads that have lost a part of their best score. Needs `Induction`.

    Args:
        drop: the alert is raised where the sum of prefix matching has fallen by more than this
            share of its highest so far, and ends at half of it.
        for_updates: for how many updates it has to last.
        then: called with the event.
    """
    return Alert(
        "induction/damage",
        above=drop,
        clear=drop / 2,
        for_updates=for_updates,
        then=then,
        name="induction_damage",
    )


def repeated_data(share: float = 0.1, *, for_updates: int = 0, then: Then = None) -> Alert:
    """Tell of training data of which more than a share was seen before. Needs `Repetition`.

    Args:
        share: of the tokens since the last reading; the alert ends at half of it.
        for_updates: for how many updates it has to last.
        then: called with the event.
    """
    return Alert(
        "repetition/fraction",
        above=share,
        clear=share / 2,
        for_updates=for_updates,
        then=then,
        name="repeated_data",
    )


def non_finite(tag: str = "*", *, then: Then = None) -> Alert:
    """Tell of NaN and infinity in any reading, also in one figure per unit.

    Readings that count what is not finite (`dormancy/nonfinite`) are judged by their count.

    Args:
        tag: what to look at.
        then: called with the event, whose value is how many figures are not finite.
    """
    return Alert(tag, above=0, figure=_count_non_finite, then=then, name="non_finite")


def idle_treatment(name: str = "redo", *, for_updates: int, then: Then = None) -> Alert:
    """Tell of a treatment that has not treated anything, whether or not it was ever due.

    Args:
        name: the treatment's; its reading `NAME/recycled_total` is what counts.
        for_updates: how many updates may go by; take several of the treatment's periods.
        then: called with the event.
    """
    return Alert(
        f"{name}/recycled_total",
        below=1,
        missing=0.0,
        for_updates=for_updates,
        then=then,
        name=f"idle_treatment/{name}",
    )


def _count_non_finite(reading: Reading) -> float:
    bad = int(np.size(reading.value) - np.isfinite(reading.value).sum())
    if not bad and reading.scalar and reading.tag.endswith("/nonfinite"):
        return float(reading.value)
    return float(bad)
