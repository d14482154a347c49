"""The filter forgets nothing, and its memory does not grow."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.observation.bloom import Bloom


@given(st.sets(st.integers(0, 2**64 - 1), min_size=1, max_size=300), st.integers(60, 300))
def test_everything_that_was_put_in_is_known(entries, words) -> None:
    hashes = np.array(sorted(entries), dtype=np.uint64)
    filled = Bloom(words)
    filled.add(hashes)
    assert filled.known(hashes).tolist() == list(range(len(hashes)))
    assert filled.inserted == len(hashes) and filled.words.nbytes == 8 * words


def test_an_empty_filter_knows_nothing_and_strangers_stay_unknown() -> None:
    generator = np.random.default_rng(0)
    ours, others = generator.integers(1 << 62, size=(2, 2000)).astype(np.uint64)
    filled = Bloom(1 << 16)
    assert len(filled.known(ours)) == 0
    filled.add(ours)
    assert len(filled.known(others)) == 0
