"""What a run is worth in unrepeated ones: the size or the compute at which a baseline is as good.

Hernandez et al. 2022 state the harm of repeated data as effective size: a model of N parameters
that was trained with repeats does as well as one of N_eff parameters without. The same question
can be put to any metric. Where N / N_eff is larger for copying than for the test loss, copying is
hurt more than the loss tells.

The baseline here is a table of a few runs. Between two of its points the metric is taken to be
linear in the logarithm of the size. Beyond its ends nothing is claimed, nor where more than one
size would give the metric: the result is then NaN and carries the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


class EffectiveSize(float):
    """A size, or NaN with the reason why there is none.

    Attributes:
        reason: why there is no size; None where there is one.
    """

    __slots__ = ("reason",)
    reason: str | None

    def __new__(cls, size: float, reason: str | None = None) -> EffectiveSize:
        """Make a float that carries a reason."""
        made = super().__new__(cls, size)
        made.reason = reason
        return made

    def __repr__(self) -> str:
        """Show the reason, too."""
        return super().__repr__() if self.reason is None else f"nan ({self.reason})"


class ComputeEquivalentLoss(float):
    """A share of compute that was lost, or NaN with the reason why there is none.

    Attributes:
        effective_compute: at which an unrepeated run has the same loss, in the baseline's unit.
        reason: why there is no share; None where there is one.
    """

    __slots__ = ("effective_compute", "reason")
    effective_compute: float
    reason: str | None

    def __new__(
        cls, share: float, effective_compute: float, reason: str | None = None
    ) -> ComputeEquivalentLoss:
        """Make a float that carries the compute and a reason."""
        made = super().__new__(cls, share)
        made.effective_compute = effective_compute
        made.reason = reason
        return made

    def __getnewargs__(self) -> tuple[float, float, str | None]:  # type: ignore[override]
        """Let copies and pickles keep what it carries."""
        return float(self), self.effective_compute, self.reason

    def __repr__(self) -> str:
        """Show the reason, too."""
        return super().__repr__() if self.reason is None else f"nan ({self.reason})"


def effective_size(baseline: Mapping[float, float], metric: float) -> EffectiveSize:
    """Return the size at which unrepeated runs have a metric (Hernandez et al. 2022, section 2).

    Args:
        baseline: {size: metric} of at least two unrepeated runs, such as parameters without the
            embeddings and the test loss in nats. Losses, scores, anything that changes with size.
        metric: of the run with repeats.

    Returns:
        The size, interpolated linearly in the metric against log(size); `N / size` is how many
        times smaller the repeats have made a model of N parameters. NaN with a `reason` where the
        metric is outside the baseline's range or not finite, or where several sizes have it.

    Raises:
        ValueError: when the baseline has fewer than two runs, a size that is not positive and
            finite, or a metric that is not finite.

    Example:
        >>> baseline = {1e6: 4.0, 1e7: 3.5, 1e8: 3.0}
        >>> round(effective_size(baseline, 3.75))
        3162278
        >>> effective_size(baseline, 4.5)
        nan (the metric 4.5 is outside the baseline's range, 3 to 4)
    """
    size, reason = _invert(baseline, metric)
    return EffectiveSize(size, reason)


def compute_equivalent_loss(
    baseline: Mapping[float, float], loss: float, compute: float
) -> ComputeEquivalentLoss:
    """Return the share of compute that a run has lost, in terms of unrepeated runs.

    Chudnovsky et al. 2026 (arXiv 2606.24998) find a run with repeats as good as an unrepeated one
    with 67% of its FLOPs; that is 0.33 here. They read it off a fitted scaling law, this is
    log-linear interpolation of a table: the two agree as far as the table is dense.

    Args:
        baseline: {compute: loss} of at least two unrepeated runs.
        loss: of the run with repeats.
        compute: of the run with repeats, in the same unit.

    Returns:
        `1 - C_eff / compute`, with `effective_compute` C_eff; negative where the run is better than
        unrepeated ones. NaN with a `reason` where `effective_size` would have one.

    Raises:
        ValueError: when the baseline has fewer than two runs, a compute that is not positive and
            finite, or a loss that is not finite; or when `compute` is not positive and finite.

    Example:
        >>> lost = compute_equivalent_loss({1e18: 3.0, 1e20: 2.0}, loss=2.5, compute=2e19)
        >>> round(lost, 3), f"{lost.effective_compute:.0e}"
        (0.5, '1e+19')
    """
    if not (compute > 0 and math.isfinite(compute)):
        raise ValueError(f"the compute is {compute}; give a positive, finite number")
    effective, reason = _invert(baseline, loss)
    return ComputeEquivalentLoss(1.0 - effective / compute, effective, reason)


def _invert(baseline: Mapping[float, float], metric: float) -> tuple[float, str | None]:
    """Return where the interpolated baseline has the metric, or NaN and why not."""
    points = _checked(baseline)
    if not math.isfinite(metric):
        return math.nan, f"the metric is {metric}"
    found: set[float] = set()
    for (left, at_left), (right, at_right) in zip(points[:-1], points[1:], strict=True):
        if at_left == at_right == metric:
            # Every size between the two has it.
            found.update((left, right))
        elif min(at_left, at_right) <= metric <= max(at_left, at_right):
            found.add(_between(left, at_left, right, at_right, metric))
    if len(found) == 1:
        return found.pop(), None
    metrics = [value for _, value in points]
    if found:
        reason = (
            f"the baseline has the metric {metric:g} at {len(found)} sizes or more, from "
            f"{min(found):g} to {max(found):g}: it does not go one way there"
        )
    else:
        reason = (
            f"the metric {metric:g} is outside the baseline's range, {min(metrics):g} to "
            f"{max(metrics):g}"
        )
    return math.nan, reason


def _between(left: float, at_left: float, right: float, at_right: float, metric: float) -> float:
    # The ends are themselves, so that two pieces that meet there find the same size.
    if metric == at_left:
        return left
    if metric == at_right:
        return right
    part = (metric - at_left) / (at_right - at_left)
    return math.exp((1 - part) * math.log(left) + part * math.log(right))


def _checked(baseline: Mapping[float, float]) -> list[tuple[float, float]]:
    """Return the baseline's points by size."""
    if len(baseline) < 2:
        raise ValueError(
            f"the baseline has {len(baseline)} runs; give at least two of different size: "
            "{size: metric, ...}"
        )
    points = sorted((float(size), float(value)) for size, value in baseline.items())
    for size, value in points:
        if not (size > 0 and math.isfinite(size)):
            raise ValueError(f"the baseline has the size {size}; give positive, finite sizes")
        if not math.isfinite(value):
            raise ValueError(f"the baseline's metric at {size:g} is {value}; leave that run out")
    return points
