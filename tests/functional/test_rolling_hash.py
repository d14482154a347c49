"""Rolling hashes against equality of the tokens themselves, and against big integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.functional.rolling_hash import Pieces, PrefixSums, gram_hashes

ROWS = st.integers(1, 3).flatmap(
    lambda rows: st.integers(1, 40).flatmap(
        lambda length: st.lists(
            st.lists(st.integers(0, 2), min_size=length, max_size=length),
            min_size=rows,
            max_size=rows,
        )
    )
)


@given(ROWS, st.integers(1, 9))
def test_hashes_are_equal_where_the_grams_are_and_only_there(rows, n) -> None:
    tokens = np.array(rows)
    hashes = gram_hashes(tokens, n)
    width = max(0, tokens.shape[1] - n + 1)
    assert hashes.shape == (len(rows), width)
    by_gram: dict[tuple[int, ...], int] = {}
    for r, row in enumerate(rows):
        for i in range(width):
            assert by_gram.setdefault(tuple(row[i : i + n]), int(hashes[r, i])) == hashes[r, i]
    assert len(set(by_gram.values())) == len(by_gram)


@given(st.lists(st.integers(0, 100_000), min_size=32, max_size=32), st.integers(0, 50))
def test_a_gram_has_one_hash_at_every_offset_and_in_every_row_length(gram, offset) -> None:
    alone = gram_hashes(np.array([gram]), 32)[0, 0]
    row = np.concatenate([np.arange(offset) + 200_000, gram, np.arange(7)])
    assert gram_hashes(row[None], 32)[0, offset] == alone


def test_the_hash_is_a_polynomial_modulo_two_to_the_64() -> None:
    tokens = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    word, base = 1 << 64, 0xD1342543DE82EF95

    def mixed(token: int) -> int:
        product = token * 0x9E3779B97F4A7C15 % word
        return product ^ (product >> 31)

    def finished(value: int) -> int:
        value ^= value >> 32
        value = value * 0xD6E8FEB86659FD93 % word
        return value ^ (value >> 29)

    expected = [
        finished(sum(mixed(int(t)) * base**k for k, t in enumerate(tokens[0, i : i + 3])) % word)
        for i in range(6)
    ]
    assert gram_hashes(tokens, 3)[0].tolist() == expected


def test_no_two_of_a_million_different_grams_share_a_hash_and_bits_are_even() -> None:
    # Low entropy on purpose: all grams of 20 tokens of two kinds.
    bits = (np.arange(1 << 20)[:, None] >> np.arange(20)) & 1
    hashes = gram_hashes(bits, 20)[:, 0]
    assert len(np.unique(hashes)) == 1 << 20
    ones = ((hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / 2**10  # 5 standard deviations of a fair coin


def test_pieces_of_any_length_and_their_length_counts() -> None:
    tokens = np.array([[0, 0, 0, 7, 8, 9, 0, 0], [5, 7, 8, 9, 5, 0, 0, 0]])
    sums = PrefixSums.of(tokens)

    def piece(row: int, start: int, end: int) -> int:
        return int(sums.pieces(np.array([row]), np.array([start]), np.array([end]))[0])

    assert piece(0, 3, 6) == piece(1, 1, 4)
    assert piece(0, 3, 6) != piece(1, 1, 5)
    # Token 0 is mixed to 0: without its length a run of zeros would be like any other.
    assert piece(0, 0, 2) != piece(0, 0, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_the_type_of_the_ids_does_not_matter(dtype) -> None:
    tokens = np.arange(40).reshape(2, 20)
    assert (gram_hashes(tokens.astype(dtype), 4) == gram_hashes(tokens, 4)).all()


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4))
def test_pieces_between_padding_are_the_runs_a_loop_finds(rows) -> None:
    expected = []
    for r, row in enumerate(rows):
        start = None
        for i, kept in enumerate([*row, False]):
            if kept and start is None:
                start = i
            elif not kept and start is not None:
                expected.append((r, start, i))
                start = None
    found = Pieces.between(np.array(rows))
    assert list(zip(found.rows, found.starts, found.ends, strict=True)) == expected


@given(st.lists(st.integers(4, 30), min_size=1, max_size=5))
def test_blocks_cover_a_piece_without_gaps_and_stay_inside(lengths) -> None:
    ends = np.array(lengths) + 3
    number = np.arange(len(lengths))
    rows, starts = Pieces(number, np.full(len(lengths), 3), ends).blocks(4)
    for r, length in enumerate(lengths):
        mine = starts[rows == r]
        covered = {t for s in mine for t in range(s, s + 4)}
        assert covered == set(range(3, 3 + length))
        assert len(mine) == -(-length // 4)
        assert [s for s in mine if (s - 3) % 4 == 0] == list(range(3, length, 4))[: length // 4]
