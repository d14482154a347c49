"""Where a series changes its level, if it does: one split into two constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """The best split of a series into two constants.

    Attributes:
        index: of the first value behind the change, from 1 to the length less 1.
        gain: share of the variance that the split explains, from 0 to 1; NaN where the series is
            constant and there is none to explain.
        before: mean of the values before `index`.
        after: mean of the others.
        p_value: at most this share of series of independent normal noise has a gain as large.
        significant: `p_value` is below the level that was asked for. A slow rise is significant as
            well as a step: it says that the level is not constant, not that it jumps.
    """

    index: int
    gain: float
    before: float
    after: float
    p_value: float
    significant: bool


def change_point(
    values: Sequence[float] | NDArray[np.floating] | Tensor, *, level: float = 0.01
) -> ChangePoint:
    """Split a series into two constants with the least squared error, in O(n).

    Args:
        values: the series, 3 values or more.
        level: noise alone is called a change at most this often.

    Returns:
        The split; of several that are as good, the first.

    Raises:
        ValueError: when there are too few values, some are not finite, or the level is not between
            0 and 1.

    Source: Page 1955 and Hinkley 1970, *Inference about the change-point in a sequence of random
    variables* (the likelihood's maximum for normal noise is the least squared error). The p-value
    is that of the F test of a known split, times the number of splits (Bonferroni; Worsley 1979),
    with the tail of its Beta(1/2, (n - 2)/2) bounded in closed form. Noise that is correlated from
    one value to the next is called a change more often.

    Example:
        >>> found = change_point([0.0, 0.1, 0.0, 0.9, 1.0, 0.9])
        >>> found.index, round(found.gain, 3), found.significant
        (3, 0.989, True)
    """
    if isinstance(level, bool) or not 0 < level < 1:
        raise ValueError(f"level is {level!r}; give a share of false alarms between 0 and 1")
    series = _series(values)
    count = len(series)
    with np.errstate(over="ignore"):
        moved = series - series[0]  # exact where values lie close together
    if not np.isfinite(moved).all():
        raise ValueError("the values lie too far apart for float64; scale them down")
    size = float(np.abs(moved).max())
    if size == 0:
        level_of_all = float(series[0])
        return ChangePoint(1, math.nan, level_of_all, level_of_all, 1.0, False)
    moved /= size
    centred = moved - moved.mean()
    splits = np.arange(1, count)
    # The sum of squares between two parts with means a and b is k (n - k) / n * (a - b)^2.
    between = np.cumsum(centred)[:-1] ** 2 * count / (splits * (count - splits))
    # Splits that are equally good differ by rounding: the first of them is taken.
    rounding = 8 * count * np.finfo(np.float64).eps
    index = int(np.argmax(between >= between.max() * (1 - rounding))) + 1
    gain = min(1.0, float(between[index - 1] / np.square(centred).sum()))
    p_value = _p_value(gain, count)
    before, after = _mean(series[:index]), _mean(series[index:])
    return ChangePoint(index, gain, before, after, p_value, p_value < level)


def _series(values: Sequence[float] | NDArray[np.floating] | Tensor) -> NDArray[np.float64]:
    given = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    series = np.array(given, dtype=np.float64)
    if series.ndim != 1 or len(series) < 3:
        raise ValueError(f"values have shape {list(series.shape)}; give a series of 3 or more")
    if not np.isfinite(series).all():
        raise ValueError("some values are not finite; leave them out")
    return series


def _p_value(gain: float, count: int) -> float:
    """Return how likely noise is to explain as much by one of all splits, at most."""
    half = (count - 2) / 2
    if gain >= 1:
        return 0.0
    beta = math.lgamma(0.5) + math.lgamma(half) - math.lgamma(half + 0.5)
    tail = half * math.log1p(-gain) - 0.5 * math.log(gain) - math.log(half) - beta
    return min(1.0, math.exp(min(0.0, math.log(count - 1) + tail)))


def _mean(values: NDArray[np.float64]) -> float:
    return math.fsum(values.tolist()) / len(values)
