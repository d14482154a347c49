"""Interquartile means with bootstrap intervals, as Agarwal et al. 2021 recommend for few runs.

*Deep Reinforcement Learning at the Edge of the Statistical Precipice*. Their package, rliable, asks
for statsmodels and arch; SciPy has what is needed: `trim_mean` cuts a quarter at each end, and
`bootstrap` draws runs with replacement, percentiles of 2,000 draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half of the values."""
    return float(stats.trim_mean(np.asarray(values, dtype=np.float64), 0.25))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the interquartile mean; NaN from one value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # all values are equal
        found = stats.bootstrap(
            (np.asarray(values, dtype=np.float64),),
            lambda sample, axis: stats.trim_mean(sample, 0.25, axis=axis),
            confidence_level=confidence,
            n_resamples=2_000,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    low, high = found.confidence_interval
    return float(low), float(high)


def with_interval(values: Sequence[float], digits: int = 1) -> str:
    """Return `mean [low, high]` of the interquartile mean."""
    low, high = interval(values)
    mean = interquartile_mean(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
