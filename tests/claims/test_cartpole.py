"""DQN on CartPole: dormancy grows, more with more updates for each step; ReDo lowers it.

After 2,500 steps at a learning rate of 3e-3 the dormant fraction (tau 0.025) was, over seeds 1 to
6, 0.07 to 0.11 before training, 0.17 to 0.25 at a replay ratio of 0.25, 0.24 to 0.32 at 1 and 0.29
to 0.41 at 4, in this order on every seed.
"""

from dataclasses import replace
from statistics import fmean

import pytest

from benchmarks.papers import cartpole
from benchmarks.papers.arms import DEFAULT_REDO

pytestmark = pytest.mark.claims


def test_dormancy_grows_with_training_and_with_the_replay_ratio(run_seeds):
    settings = [replace(setting, steps=2_500, read_every=125) for setting in cartpole.GROWTH]
    runs = run_seeds([(cartpole.run, "base", setting) for setting in settings])
    quarter, one, four = ([run.dormant[0.025][-1] for run in arm] for arm in runs)
    start = [run.dormant[0.025][0] for run in runs[0]]
    assert all(last - first > 0.05 for first, last in zip(start, quarter, strict=True))
    assert all(high - low > 0.06 for low, high in zip(quarter, four, strict=True))
    assert fmean(quarter) < fmean(one) < fmean(four)


def test_redo_lowers_dormancy(run_seeds):
    short = replace(cartpole.FAST, steps=3_000)
    runs = run_seeds([(cartpole.run, arm, short) for arm in ("base", DEFAULT_REDO)])
    for base, redo in zip(*runs, strict=True):
        assert redo.recycled > 50
        assert base.dormant[0.025][-1] - redo.dormant[0.025][-1] > 0.15
        assert base.dormant[0.0][-1] - redo.dormant[0.0][-1] > 0.25
