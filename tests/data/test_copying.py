"""The copy task: what a sample is, that it is always the same, and how its numbers are spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dynamo_probe.data import CopyTask


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**63), index=st.integers(0, 999),
    lag=st.tuples(st.integers(1, 20), st.integers(1, 20)).map(sorted), more=st.integers(1, 40),
)  # fmt: skip
def test_a_sample_is_its_first_segment_repeated_to_the_end(seed, index, lag, more):
    task = CopyTask(1000, seed=seed, lag=tuple(lag), length=lag[1] + more, vocab_size=7)
    tokens, period = task[index].tolist(), int(task.lags([index]))
    assert lag[0] <= period <= lag[1]
    assert tokens == [tokens[place % period] for place in range(lag[1] + more)]
    assert set(tokens) <= set(range(7))


def test_a_sample_is_the_same_whenever_and_with_whatever_it_is_asked_for():
    task, again = CopyTask(100, seed=3), CopyTask(50_000, seed=3)
    together = task.tokens(range(100))
    for index in (99, 7, 0, 7):
        assert torch.equal(task[index], together[index])
        assert torch.equal(again[index], together[index])
    assert torch.equal(task[-1], together[99])
    assert not torch.equal(CopyTask(100, seed=4)[0], together[0])


def test_neither_the_state_of_torch_nor_that_of_numpy_is_used():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    CopyTask(10).tokens(range(10))
    assert torch.equal(torch.get_rng_state(), torch_state)
    for before, after in zip(numpy_state, np.random.get_state(), strict=True):
        assert np.array_equal(before, after)


def test_samples_are_all_different_and_held_out_ones_are_none_of_them():
    task = CopyTask(3_000, seed=0)
    held_out = task.held_out(3_000)
    every = torch.cat([task.tokens(range(3_000)), held_out.tokens(range(3_000))])
    assert len(torch.unique(every, dim=0)) == 6_000
    assert torch.equal(task.chain, held_out.chain)


def test_all_lags_are_alike():
    lags = CopyTask(20_000, lag=(8, 32)).lags(range(20_000))
    counts = torch.bincount(lags, minlength=33)[8:].double()
    assert int(counts.sum()) == 20_000
    # Pearson's statistic has 24 degrees of freedom: a mean of 24, above 60 once in 16,000.
    assert ((counts - 800).square() / 800).sum() < 60


def test_the_first_segment_follows_the_chain():
    task = CopyTask(20_000, seed=1, lag=16, length=17, vocab_size=5)
    segment = task.tokens(range(20_000))[:, :16]
    pairs = segment[:, :-1] * 5 + segment[:, 1:]
    counts = torch.bincount(pairs.flatten(), minlength=25).view(5, 5).double()
    rows = counts.sum(1, keepdim=True)
    deviation = (task.chain * (1 - task.chain) / rows).sqrt()
    assert torch.allclose(task.chain.sum(1), torch.ones(5, dtype=torch.float64))
    assert ((counts / rows - task.chain).abs() < 5 * deviation).all()
    first = torch.bincount(segment[:, 0], minlength=5).double()
    assert ((first - 4_000).abs() < 5 * (20_000 * 0.2 * 0.8) ** 0.5).all()


def test_a_row_of_the_chain_has_the_entropy_of_a_dirichlet():
    chain = CopyTask(1, seed=5, vocab_size=400).chain
    entropy = torch.special.entr(chain).sum(1).mean().item()
    # psi(V / 2 + 1) - psi(3 / 2): the expected entropy of Dirichlet(1/2) in V dimensions.
    psi = torch.special.digamma(torch.tensor([201.0, 1.5], dtype=torch.float64))
    assert entropy == pytest.approx((psi[0] - psi[1]).item(), abs=0.02)


def test_with_a_fixed_lag_the_place_tells_what_comes():
    task = CopyTask(200, lag=16, length=64)
    tokens = task.tokens(range(200))
    assert task.lags(range(200)).unique().tolist() == [16]
    assert torch.equal(tokens[:, 16:], tokens[:, :-16])


def test_a_loader_gives_its_samples():
    task = CopyTask(20)
    batches = list(DataLoader(task, batch_size=8))
    assert torch.equal(torch.cat(batches), task.tokens(range(20)))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (0, {}),
        (1, {"seed": -1}),
        (1, {"lag": 0}),
        (1, {"lag": 64}),
        (1, {"lag": (20, 10)}),
        (1, {"vocab_size": 1}),
        (1, {"first": -1}),
    ],
)
def test_numbers_out_of_range_are_refused(size, options):
    with pytest.raises(ValueError, match="give"):
        CopyTask(size, **options)


def test_there_is_no_sample_beyond_the_last():
    with pytest.raises(IndexError, match="sample 10 of 10"):
        CopyTask(10)[10]
    assert len(list(CopyTask(10))) == 10
