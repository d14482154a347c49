"""The sampler of an order: on any loader, sharded, resumed anywhere, never a silent second pass."""

from __future__ import annotations

from itertools import islice, zip_longest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from dynamo_probe.data import RepeatedMixture

DATA = TensorDataset(torch.arange(1_000))


def mixture(seed: int = 0) -> RepeatedMixture:
    """30 + 30 positions."""
    return RepeatedMixture(DATA, 0.5, 3, 10, seed)


def read(loader) -> list[int]:
    return [int(sample) for (batch,) in loader for sample in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_the_dataset_with_the_sampler_reads_what_a_loader_of_the_mixture_reads(workers):
    order = mixture()
    by_sampler = DataLoader(DATA, batch_size=7, sampler=order.sampler(), num_workers=workers)
    by_dataset = DataLoader(order, batch_size=7, num_workers=workers)
    assert read(by_sampler) == read(by_dataset) == order.order.tolist()


@settings(deadline=None)
@given(world=st.integers(1, 70))
def test_every_position_is_read_once_by_all_ranks_together(world):
    order = mixture()
    samplers = [order.sampler(rank=rank, world=world) for rank in range(world)]
    lengths = [len(sampler) for sampler in samplers]
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == lengths
    assert sorted(sum(shares, [])) == sorted(order.order.tolist())
    assert max(lengths) - min(lengths) <= 1


def test_a_batch_of_each_rank_makes_the_batch_of_one_process():
    order = mixture()
    loaders = [
        DataLoader(DATA, batch_size=3, sampler=order.sampler(rank=rank, world=4))
        for rank in range(4)
    ]
    together = [
        sorted(int(x) for (b,) in batches for x in b) for batches in zip(*loaders, strict=True)
    ]
    alone = DataLoader(DATA, batch_size=12, sampler=order.sampler())
    assert together == [sorted(batch.tolist()) for (batch,) in alone]


@settings(deadline=None)
@given(before=st.integers(1, 6), after=st.integers(1, 6), updates=st.integers(0, 60))
def test_it_goes_on_exactly_on_any_number_of_ranks(before, after, updates):
    order = mixture()
    updates = min(updates, len(order) // before)
    states, read_before = [], []
    for rank in range(before):
        sampler = order.sampler(rank=rank, world=before)
        read_before += islice(iter(sampler), updates)
        states.append(sampler.state_dict())
    assert all(state == states[0] for state in states)
    rest = []
    for rank in range(after):
        sampler = order.sampler(rank=rank, world=after)
        sampler.load_state_dict(states[0])
        rest.append(list(sampler))
    done = before * updates
    assert sorted(read_before) == sorted(order.order[:done].tolist())
    dealt = [x for one in zip_longest(*rest) for x in one if x is not None]
    assert dealt == order.order[done:].tolist()


def test_a_loader_is_resumed_in_the_middle_and_that_again():
    order = mixture()
    sampler = order.sampler()
    loader = DataLoader(DATA, batch_size=8, sampler=sampler)
    found = read(islice(loader, 3))
    for _ in range(2):
        state = sampler.state_dict()
        sampler = mixture().sampler()
        sampler.load_state_dict(state)
        loader = DataLoader(DATA, batch_size=8, sampler=sampler)
        found += read(islice(loader, 2))
    assert len(sampler) == 60 - 40
    assert found == order.order[:56].tolist()


def test_workers_fetch_ahead_so_what_was_consumed_is_told():
    order = mixture()
    sampler = order.sampler()
    loader = DataLoader(DATA, batch_size=4, sampler=sampler, num_workers=2)
    iterator = iter(loader)
    found = read(islice(iterator, 3))
    ahead = sampler.state_dict()["position"]
    state = sampler.state_dict(consumed=12)
    again = order.sampler()
    again.load_state_dict(state)
    found += read(DataLoader(DATA, batch_size=4, sampler=again))
    assert ahead > 12
    assert found == order.order.tolist()


def test_a_state_can_be_saved_and_read_without_pickled_code(tmp_path):
    sampler = mixture().sampler()
    next(iter(sampler))
    torch.save(sampler.state_dict(), tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True) == sampler.state_dict()


def test_a_second_pass_is_refused_and_a_restart_allows_it():
    order = mixture()
    sampler = order.sampler()
    assert list(sampler) == order.order.tolist()
    with pytest.raises(RuntimeError, match=r"come once.*restart\(\)"):
        iter(sampler)
    sampler.restart()
    assert list(sampler) == order.order.tolist()


@pytest.mark.parametrize("resumed_at", [0, 20])
def test_a_look_at_the_first_batch_takes_nothing_away(resumed_at):
    order = mixture()
    sampler = order.sampler()
    list(islice(iter(sampler), resumed_at))
    sampler.load_state_dict(sampler.state_dict())
    peeked = iter(sampler)
    next(peeked)
    iterator = iter(sampler)
    assert next(iterator) == order.order[resumed_at]
    next(peeked), next(peeked)
    assert sampler.state_dict()["position"] == resumed_at + 1
    assert list(iterator) == order.order[resumed_at + 1 :].tolist()
    with pytest.raises(RuntimeError, match="come once"):
        iter(sampler)


def test_a_finished_run_that_is_resumed_has_nothing_left_and_does_not_begin_again():
    order = mixture()
    finished, resumed = order.sampler(), order.sampler()
    list(finished)
    resumed.load_state_dict(finished.state_dict())
    assert len(resumed) == 0 and list(resumed) == []
    with pytest.raises(RuntimeError, match="come once"):
        iter(resumed)


@pytest.mark.parametrize("variant", ["unrepeated", "unique_only"])
def test_a_state_of_another_order_is_refused(variant):
    state = mixture().sampler().state_dict()
    for other in (mixture(seed=1), getattr(mixture(), variant)()):
        sampler = other.sampler()
        with pytest.raises(ValueError, match="the state was made with (seed=0|variant='repeated')"):
            sampler.load_state_dict(state)
        assert list(sampler) == other.order.tolist()


def test_more_consumed_than_given_is_refused():
    sampler = mixture().sampler()
    next(iter(sampler))
    with pytest.raises(ValueError, match="consumed=2, but the iterator gave 1"):
        sampler.state_dict(consumed=2)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_none_is_refused(rank, world):
    with pytest.raises(ValueError, match="give 0 <= rank < world"):
        mixture().sampler(rank=rank, world=world)
