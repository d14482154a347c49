"""Repeated random tokens, and the pairs that repetition makes, against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.functional.repeated_tokens import SCORES, pairs_of, repeated_tokens

settings_of = st.fixed_dictionaries(
    {
        "period": st.integers(2, 12),
        "copies": st.integers(2, 5),
        "sequences": st.integers(1, 6),
        "bos": st.one_of(st.none(), st.integers(0, 60)),
    }
)


def lag_of(row: list[int]) -> int:
    return row[1:].index(row[0]) + 1


@given(settings_of, st.integers(0, 40), st.integers(0, 2**40))
def test_copies_are_unique_within_and_exact_between(kwargs: dict, more: int, seed: int):
    vocab = kwargs["period"] + 1 + more
    generator = torch.Generator().manual_seed(seed)
    tokens = repeated_tokens(vocab, generator=generator, **kwargs)
    bos, period = kwargs["bos"], kwargs["period"]
    begin = int(bos is not None)
    assert tokens.dtype == torch.int64 and tokens.device.type == "cpu"
    assert tokens.shape == (kwargs["sequences"], period * kwargs["copies"] + begin)
    for row in tokens.tolist():
        if bos is not None:
            assert row[0] == bos and bos not in row[1:]
        row = row[begin:]
        lag = lag_of(row)
        assert (period + 1) // 2 <= lag <= period + period // 2
        assert len(set(row[:lag])) == lag
        assert all(token == row[p % lag] for p, token in enumerate(row))
        assert all(0 <= token < vocab for token in row)


def test_lags_differ_between_sequences_and_all_are_drawn():
    tokens = repeated_tokens(50, period=8, copies=3, sequences=400)
    lags = [lag_of(row) for row in tokens.tolist()]
    assert set(lags) == set(range(4, 13))
    # Uniform over 9 values: each count is binomial (400, 1/9), and 5 sigma is 31.
    assert all(abs(lags.count(lag) - 400 / 9) < 32 for lag in range(4, 13))


@pytest.mark.parametrize("bos", [None, 0, 3, 9])
def test_every_token_but_the_start_token_is_drawn_alike(bos: int | None):
    tokens = repeated_tokens(10, bos=bos, period=4, copies=2, sequences=3000)
    begin = int(bos is not None)
    first = tokens[:, begin].bincount(minlength=10)
    wanted = [token for token in range(10) if token != bos]
    assert sorted(first.nonzero()[:, 0].tolist()) == wanted
    expected = 3000 / len(wanted)
    assert float((first[wanted] - expected).abs().max()) < 5 * expected**0.5


def test_id_zero_is_a_start_token_and_not_its_absence():
    assert repeated_tokens(30, bos=0)[:, 0].tolist() == [0] * 8
    assert not (repeated_tokens(30, bos=0)[:, 1:] == 0).any()
    assert repeated_tokens(30, bos=0).shape[1] == repeated_tokens(30).shape[1] + 1


def test_no_generator_gives_the_same_tokens_and_touches_no_random_state():
    state = torch.get_rng_state()
    one, two = repeated_tokens(40), repeated_tokens(40)
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one, repeated_tokens(40, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("vocab", "bos"), [(24, None), (25, 0), (25, 24)])
def test_a_vocabulary_that_is_too_small_raises_with_the_fix(vocab: int, bos: int | None):
    with pytest.raises(ValueError, match="the vocabulary has 24 to draw from; give period=24"):
        repeated_tokens(vocab, bos=bos)


def test_a_vocabulary_of_just_enough_works():
    assert repeated_tokens(25).shape == (8, 100)
    assert repeated_tokens(25, bos=25).shape == (8, 101)  # a start token outside of it


@pytest.mark.parametrize(
    "wrong",
    [
        {"period": 1}, {"period": 2.5}, {"period": True}, {"copies": 1}, {"sequences": 0},
        {"bos": -1}, {"bos": True}, {"bos": "0"},
    ],
)  # fmt: skip
def test_arguments_out_of_range_raise(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        repeated_tokens(100, **wrong)


@given(
    st.lists(st.integers(0, 4), min_size=3, max_size=14).flatmap(
        lambda row: st.tuples(
            st.just(row),
            st.one_of(
                st.none(), st.lists(st.booleans(), min_size=len(row), max_size=len(row)).filter(any)
            ),
        )
    )
)
def test_pairs_are_those_of_the_definitions(given_row):
    row, kept = given_row
    mask = None if kept is None else torch.tensor(kept)
    pairs = pairs_of(torch.tensor(row), mask)
    places = [p for p in range(len(row)) if kept is None or kept[p]]
    names = (*SCORES, *(f"second {score}" for score in SCORES))
    want: dict[str, set] = {name: set() for name in names}
    queries: dict[str, set] = {name: set() for name in names}
    for i, p in enumerate(places):
        before = [j for j in range(i) if row[places[j]] == row[p]]
        if before:
            queries["prefix_matching"].add(p)
            queries["duplicate_token"].add(p)
            want["prefix_matching"] |= {(p, places[j + 1]) for j in before}
            want["duplicate_token"] |= {(p, places[j]) for j in before}
        if i:
            queries["previous_token"].add(p)
            queries["sink"].add(p)
            want["previous_token"].add((p, places[i - 1]))
            want["sink"].add((p, places[0]))
        if len(before) == 1:
            for score in SCORES:
                queries[f"second {score}"].add(p)
                want[f"second {score}"] |= {pair for pair in want[score] if pair[0] == p}
    assert pairs.queries.tolist() == sorted(pairs.queries.tolist())
    listed = list(zip(pairs.queries.tolist(), pairs.keys.tolist(), strict=True))
    for kind, weights, count in zip(names, pairs.kinds, pairs.counts, strict=True):
        assert set(weights.tolist()) <= {0.0, 1.0}
        chosen = [pair for pair, weight in zip(listed, weights.tolist(), strict=True) if weight]
        assert len(chosen) == len(set(chosen)) and set(chosen) == want[kind]
        assert int(count) == len(queries[kind])


def test_long_sequences_are_taken_in_parts_that_make_no_difference():
    row = repeated_tokens(2000, period=700, copies=4, sequences=1)[0]
    lag = lag_of(row.tolist())
    pairs = pairs_of(row)
    matching = pairs.kinds[0] > 0
    assert int(matching.sum()) == sum(p // lag for p in range(len(row)))
    assert bool((row[pairs.keys[matching] - 1] == row[pairs.queries[matching]]).all())
    assert int(pairs.counts[0]) == len(row) - lag
