"""The sample of blocks against a dictionary that keeps everything."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.observation.first_seen import MOST, FirstSeen, Places


def places(numbers: np.ndarray) -> Places:
    return Places(numbers // 7, numbers % 7, numbers)


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_each_slot_keeps_the_smallest_hash_whatever_the_order(seed, batches) -> None:
    generator = np.random.default_rng(seed)
    hashes = generator.integers(1 << 63, size=600, dtype=np.uint64)
    tables = []
    for order in (np.arange(600), generator.permutation(600)):
        table = FirstSeen(64)
        for part in np.array_split(order, batches):
            table.add(hashes[part], places(part))
        tables.append(table)
    for name in FirstSeen.__slots__:
        assert (getattr(tables[0], name) == getattr(tables[1], name)).all()
    kept, slots = tables[0].find(hashes)
    smallest: dict[int, int] = {}
    for h in hashes.tolist():
        slot = (h >> 8) % 64
        smallest[slot] = min(smallest.get(slot, 1 << 64), h)
    assert sorted(hashes[kept].tolist()) == sorted(smallest.values())
    assert (tables[0].places(slots).numbers == kept).all()
    assert (tables[0].places(slots).updates == kept // 7).all()


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=8))
def test_counts_are_those_of_a_counter(batches) -> None:
    hashes = np.array([(k + 1 << 40) + (k << 8) for k in range(10)], dtype=np.uint64)
    table = FirstSeen(64)
    table.add(hashes, places(np.arange(10)))
    counter = Counter(range(10))
    for batch in batches:
        kept, slots = table.find(hashes[np.array(batch, dtype=int)])
        assert len(kept) == len(batch)
        expected = []
        for k in batch:
            counter[k] += 1
            expected.append(counter[k])
        assert table.count(slots).tolist() == expected if batch else True


def test_counts_stop_at_the_most_and_do_not_wrap() -> None:
    table, one = FirstSeen(64), np.array([1 << 40], dtype=np.uint64)
    table.add(one, places(np.array([0])))
    _, slot = table.find(one)
    table.counts[slot] = MOST - 1
    assert table.count(np.repeat(slot, 3)).tolist() == [MOST] * 3
    assert table.count(slot).tolist() == [MOST]


def test_the_earlier_of_two_first_sights_stays() -> None:
    table, one = FirstSeen(64), np.array([1 << 40], dtype=np.uint64)
    table.add(one, Places(np.array([5]), np.array([9]), np.array([509])))
    _, slot = table.find(one)
    table.earlier(slot, Places(np.array([5]), np.array([11]), np.array([511])))
    assert table.places(slot).rows == [9]
    table.earlier(slot, Places(np.array([5]), np.array([2]), np.array([502])))
    assert table.places(slot).rows == [2] and table.places(slot).numbers == [502]
