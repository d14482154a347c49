"""The sketch against dictionaries that keep every run of tokens, exactly."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.functional.repetition import classes_of
from dynamo_probe.observation.first_seen import Places
from dynamo_probe.observation.sketch import SHORTEST, Seen, Sketch, looked_at

N = 8
"""Tokens in a block, for small examples."""


def see(sketch: Sketch, tokens, update: int, valid=None) -> Seen:
    tokens = np.asarray(tokens)
    number = np.arange(len(tokens))
    places = Places(np.full(len(tokens), update), number, 100 * update + number)
    return sketch.see(tokens, None if valid is None else np.asarray(valid), places)


def flags(seen: Seen, shape: tuple[int, int]) -> np.ndarray:
    return np.zeros(shape, dtype=bool) if seen.classes is None else seen.classes > 0


def windows(row, length: int, valid) -> list[tuple[int, tuple[int, ...]]]:
    """Return (start, content) of each run of tokens without padding."""
    found = []
    for i in range(len(row) - length + 1):
        if all(valid[i : i + length]):
            found.append((i, tuple(int(t) for t in row[i : i + length])))
    return found


def check_stream(batches, masks) -> None:
    """Compare with the definition: every long repeat is met, and nothing that is no repeat."""
    sketch = Sketch(1 << 20, N)
    grams: set[tuple[int, ...]] = set()
    stretches: set[tuple[int, ...]] = set()
    for update, (tokens, mask) in enumerate(zip(batches, masks, strict=True)):
        seen = see(sketch, tokens, update, None if mask.all() else mask)
        flagged = flags(seen, tokens.shape)
        assert not flagged[~mask].any()
        for row, valid, flag in zip(tokens, mask, flagged, strict=True):
            allowed = np.zeros(len(row), dtype=bool)
            for i, gram in windows(row, N, valid):
                if gram in grams:
                    allowed[i : i + N] = True
                grams.add(gram)
            assert not (flag & ~allowed).any(), "a token was taken for repeated that is not"
            for i, stretch in windows(row, 2 * N - 1, valid):
                if stretch in stretches:
                    met = flag[i : i + 2 * N - 1]
                    runs = np.convolve(met, np.ones(N), "valid")
                    assert runs.max() == N, "a repeat of 2n - 1 tokens was missed"
                stretches.add(stretch)


@st.composite
def streams(draw):
    """Draw batches of rows over few tokens, with pieces of earlier rows copied into later ones."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds, length = draw(st.sampled_from([1, 2, 4, 1000])), draw(st.integers(N, 60))
    batches, masks = [], []
    for _ in range(draw(st.integers(1, 5))):
        tokens = generator.integers(kinds, size=(draw(st.integers(1, 3)), length))
        for _ in range(draw(st.integers(0, 4))):
            source = [*batches, tokens][generator.integers(len(batches) + 1)]
            size = int(generator.integers(1, length + 1))
            i, j = generator.integers(length - size + 1, size=2)
            copied = source[generator.integers(len(source)), i : i + size].copy()
            tokens[generator.integers(len(tokens)), j : j + size] = copied
        mask = np.ones(tokens.shape, dtype=bool)
        if draw(st.booleans()):
            mask = generator.random(tokens.shape) > draw(st.sampled_from([0.02, 0.1]))
        batches.append(tokens)
        masks.append(mask)
    return batches, masks


@given(streams())
def test_every_repeat_of_2n_less_1_tokens_is_met_and_nothing_else_than_repeats(stream) -> None:
    check_stream(*stream)


@given(st.integers(0, 2**32), st.integers(0, 960), st.integers(0, 960))
def test_a_span_of_64_tokens_is_found_at_every_offset(seed: int, i: int, j: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.integers(50_257, size=(2, 1, 1024))
    second[0, j : j + 64] = first[0, i : i + 64]
    sketch = Sketch(1 << 20, 32)
    see(sketch, first, 1)
    flagged = flags(see(sketch, second, 2), second.shape)[0]
    outside = np.ones(1024, dtype=bool)
    outside[j : j + 64] = False
    assert flagged[j : j + 64].sum() >= 32 and not flagged[outside].any()


def test_planted_spans_are_recalled_and_their_edges_are_at_most_a_block_short() -> None:
    generator = np.random.default_rng(0)
    sketch = Sketch(8 << 20, 32)
    pool = generator.integers(50_257, size=(40, 1024))
    see(sketch, pool, 0)
    found = 0
    for update in range(1, 501):
        tokens = generator.integers(50_257, size=(1, 1024))
        size = int(generator.integers(64, 800))
        i, j = generator.integers(1024 - size + 1, size=2)
        tokens[0, j : j + size] = pool[generator.integers(40), i : i + size]
        flagged = flags(see(sketch, tokens, update), tokens.shape)[0]
        found += bool(flagged[j : j + size].any())
        assert flagged[j + 31 : j + size - 31].all()
        assert not flagged[:j].any() and not flagged[j + size :].any()
    assert found == 500


def test_near_misses_are_reported_for_what_is_truly_repeated_and_no_more() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(50_257, size=(8, 1024))
    sketch = Sketch(1 << 20, 32)
    see(sketch, tokens, 1)
    edited = tokens.copy()
    edited[:, ::20] += 1  # no run of 32 tokens is left
    seen = see(sketch, edited, 2)
    assert seen.classes is None and len(seen.rows) == 0
    edited = tokens.copy()
    edited[:, 500] += 1
    flagged = flags(see(sketch, edited, 3), tokens.shape)
    assert not flagged[:, 500].any()
    assert flagged[:, :480].all() and flagged[:, 544:].all()  # 480 and 544 are edges of blocks


def test_whole_rows_have_exact_counts_and_places() -> None:
    generator = np.random.default_rng(1)
    pool = generator.integers(50_257, size=(6, 100))
    sketch = Sketch(64 << 20, 32)  # room enough for a slot to each block
    counter: Counter[int] = Counter()
    first: dict[int, tuple[int, int]] = {}
    for update in range(30):
        which = generator.integers(6, size=4)  # a row may come twice in one batch
        seen = see(sketch, pool[which], update)
        for row, k in enumerate(which.tolist()):
            counter[k] += 1
            first.setdefault(k, (update, row))
            expected = classes_of(np.array([counter[k]]))[0]
            classes = np.zeros(100) if seen.classes is None else seen.classes[row]
            assert (classes == expected).all()
            mine = seen.rows == row
            assert set(seen.counts[mine].tolist()) <= {counter[k]}
            places = set(zip(seen.first.updates[mine], seen.first.rows[mine], strict=True))
            assert places <= {first[k]}
    assert max(counter.values()) > 16
    assert sketch.bloom.inserted == 6 * 4  # what was met takes no more memory


def test_counts_go_on_from_when_a_block_was_remembered_and_are_never_too_large() -> None:
    generator = np.random.default_rng(2)
    text = generator.integers(50_257, size=400)
    sketch, counter = Sketch(64 << 20, N), Counter()
    for update in range(60):
        i = int(generator.integers(400 - 40))
        row = text[i : i + 40]
        seen = see(sketch, row[None], update)
        best = np.zeros(40, dtype=int)
        for j in range(40 - N + 1):
            counter[tuple(row[j : j + N].tolist())] += 1
            best[j : j + N] = np.maximum(best[j : j + N], counter[tuple(row[j : j + N].tolist())])
        if seen.classes is not None:
            assert (seen.classes[0] <= np.maximum(classes_of(best), 1)).all()
            assert seen.counts.max() <= best.max()


@pytest.mark.parametrize("memory", [1 << 16, 1 << 20, 8 << 20])
def test_memory_is_what_was_asked_for_and_constant(memory: int) -> None:
    generator = np.random.default_rng(0)
    sketch = Sketch(memory, N)
    sizes = {sketch.nbytes}
    for update in range(20):
        see(sketch, generator.integers(1000, size=(4, 256)), update)
        sizes.add(sketch.nbytes)
    assert sizes == {memory}


def test_pieces_shorter_than_a_block_count_as_a_whole() -> None:
    sketch = Sketch(1 << 20, 32)
    row = np.arange(64)
    valid = np.zeros((1, 64), dtype=bool)
    valid[0, 3:23] = valid[0, 30:36] = True  # a piece of 20 tokens and one of 6
    seen = see(sketch, row[None], 1, valid)
    assert (seen.measured, seen.short, seen.classes) == (20, 6, None)
    again = see(sketch, np.roll(row, 9)[None], 2, np.roll(valid, 9))
    assert (flags(again, (1, 64)) == (np.arange(64) >= 12) & (np.arange(64) < 32)).all()
    assert (looked_at((1, 64), valid) == (np.arange(64) >= 3) & (np.arange(64) < 23)).all()
    longer = np.roll(valid, 9)
    longer[0, 11] = True  # 21 tokens are another piece
    assert see(sketch, np.roll(row, 9)[None], 3, longer).classes is None
    whole = Sketch(1 << 20, 32)
    assert see(whole, row[None, :SHORTEST], 1).measured == SHORTEST
    assert flags(see(whole, row[None, :SHORTEST], 2), (1, SHORTEST)).all()


def test_a_saved_sketch_goes_on_bit_identically_and_is_read_without_pickles(tmp_path) -> None:
    generator = np.random.default_rng(0)
    batches = generator.integers(3, size=(12, 3, 70))
    through, cut = Sketch(1 << 20, N, shared=True), Sketch(1 << 20, N, shared=True)
    for update, tokens in enumerate(batches[:6]):
        see(through, tokens, update)
        see(cut, tokens, update)
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    resumed = Sketch(1 << 20, N, shared=True)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for update, tokens in enumerate(batches[6:], 6):
        a, b = see(through, tokens, update), see(resumed, tokens, update)
        assert (flags(a, tokens.shape) == flags(b, tokens.shape)).all()
        assert (a.counts == b.counts).all() and (a.first.rows == b.first.rows).all()
    for a, b in zip(_flat(through.state_dict()), _flat(resumed.state_dict()), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def _flat(state):
    for value in state.values():
        yield from _flat(value) if isinstance(value, dict) else [value]


def test_two_sketches_that_tell_each_other_know_what_one_would() -> None:
    generator = np.random.default_rng(3)
    alone = Sketch(64 << 20, N)
    pair = [Sketch(64 << 20, N, shared=True) for _ in range(2)]
    pool = generator.integers(1000, size=(12, 40))
    for update in range(15):
        order = generator.permutation(12)  # within an update no row comes twice
        rows = [pool[order[:3]], pool[order[3:6]]]
        numbers = [np.arange(3), np.arange(3, 6)]

        def places(which, update=update):
            return Places(np.full(len(which), update), which, 6 * update + which)

        whole = alone.see(np.concatenate(rows), None, places(np.concatenate(numbers)))
        parts = [s.see(r, None, places(w)) for s, r, w in zip(pair, rows, numbers, strict=True)]
        flagged = np.concatenate([flags(p, (3, 40)) for p in parts])
        assert (flagged == flags(whole, (6, 40))).all()
        told = [s.journal.entries() for s in pair]
        pair[0].learn(told[1])
        pair[1].learn(told[0])
        for s in pair:
            s.journal.clear(update)
            assert (s.bloom.words == alone.bloom.words).all()
            assert s.bloom.inserted == alone.bloom.inserted
            for name in s.table.__slots__:
                assert (getattr(s.table, name) == getattr(alone.table, name)).all(), name


def test_what_two_ranks_see_for_the_first_time_at_once_is_one_block_seen_twice() -> None:
    row = np.arange(16)[None]
    pair = [Sketch(1 << 20, N, shared=True) for _ in range(2)]
    for rank, sketch in enumerate(pair):
        sketch.see(row, None, Places(np.array([4]), np.array([rank]), np.array([8 + rank])))
    told = [s.journal.entries() for s in pair]
    pair[0].learn(told[1])
    pair[1].learn(told[0])
    for sketch in pair:
        assert sketch.bloom.inserted == 2
        assert sorted(sketch.table.counts[sketch.table.counts > 0].tolist()) == [2, 2]
        kept = np.flatnonzero(sketch.table.counts)
        assert sketch.table.rows[kept].tolist() == [0, 0]
        assert sketch.table.numbers[kept].tolist() == [8, 8]


def test_a_journal_that_is_full_says_how_much_it_has_not_told() -> None:
    sketch = Sketch(1 << 20, N, shared=True)
    assert sketch.journal is not None
    sketch.journal.most = 5
    see(sketch, np.arange(64)[None], 1)
    assert len(sketch.journal.entries()) == 5 and sketch.journal.lost == 3
    sketch.journal.clear(1)
    assert sketch.journal.lost == 0 and len(sketch.journal.entries()) == 0


def test_batches_with_nothing_to_look_at() -> None:
    sketch = Sketch(1 << 16, 32)
    for tokens, valid in (
        (np.ones((2, 50), dtype=int), np.zeros((2, 50), dtype=bool)),
        (np.ones((2, SHORTEST - 1), dtype=int), None),
        (np.ones((3, 1), dtype=int), None),
        (np.ones((0, 50), dtype=int), None),
    ):
        seen = see(sketch, tokens, 1, valid)
        assert seen.measured == 0 and seen.classes is None and len(seen.rows) == 0
    assert sketch.bloom.inserted == 0 and not sketch.bloom.words.any()


def test_rows_of_many_lengths_share_what_they_have_in_common() -> None:
    sketch, text = Sketch(1 << 20, 32), np.random.default_rng(0).integers(50_257, size=3000)
    see(sketch, text[None], 1)
    for length in (32, 33, 63, 64, 100, 1000, 2048, 2999):
        flagged = flags(see(sketch, text[None, 1 : 1 + length], length), (1, length))[0]
        assert flagged[31 : max(0, length - 31)].all()
