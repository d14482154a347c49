"""Classes of repeat counts, the damage region, and the arithmetic of false repeats."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynamo_probe.functional.repetition import (
    CLASSES,
    bounds_of,
    class_name,
    classes_of,
    damage_region,
    false_share,
    inside_region,
    parameters_without_embeddings,
)
from dynamo_probe.observation.bloom import PROBES, Bloom


@given(st.integers(2, 65535))
def test_a_count_lies_within_the_bounds_of_its_class(count: int) -> None:
    number = int(classes_of(np.array([count]))[0])
    low, high = bounds_of(number)
    assert low <= count <= high
    assert number == 1 + math.ceil(math.log2(count))


def test_classes_tile_the_counts_without_gap() -> None:
    edges = [bounds_of(number) for number in range(2, CLASSES)]
    assert edges[0][0] == 2
    assert all(high + 1 == low for (_, high), (low, _) in zip(edges, edges[1:], strict=False))
    assert len({class_name(number) for number in range(CLASSES)}) == CLASSES
    with pytest.raises(ValueError, match="give 2 to 17"):
        bounds_of(1)


def test_damage_region_of_the_published_sizes() -> None:
    # Hernandez et al. 2022, section 2: E = 5.1e7 N^-0.50 on the right, 4.2e6 N^-0.56 on the left.
    left, right = damage_region(805e6)
    assert left == pytest.approx(43, abs=0.5) and right == pytest.approx(1797.5, abs=0.5)
    # Their worst case of the 800M model, 100 repeats, lies inside; 10 and 10,000 do not.
    assert left < 100 < right and not left < 10 < right and not left < 10_000 < right
    assert damage_region(1e6) == (pytest.approx(4.2e6 / 10**3.36), pytest.approx(51_000))
    with pytest.raises(ValueError, match="positive"):
        damage_region(0)


def test_share_inside_the_region_takes_unknown_counts_to_be_like_known_ones() -> None:
    tokens = np.zeros(CLASSES, dtype=np.int64)
    tokens[0], tokens[1] = 800, 100
    tokens[2], tokens[8] = 50, 50  # seen twice; seen 65 to 128 times
    assert inside_region(tokens, 805e6) == pytest.approx(0.5 * 200 / 1000)
    tokens[7] = 100  # 33 to 64 times: the class sticks out of the region, which begins at 43
    assert inside_region(tokens, 805e6) == pytest.approx(50 / 200 * 300 / 1100)
    tokens[2:] = 0
    assert math.isnan(inside_region(tokens, 805e6))
    assert inside_region(np.eye(CLASSES)[0], 805e6) == 0.0


def test_parameters_are_counted_once_and_without_what_is_tied_to_an_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 8)
            self.middle = nn.Linear(8, 8)
            self.out = nn.Linear(8, 50, bias=False)
            self.out.weight = self.embed.weight

    assert parameters_without_embeddings(Tied()) == 8 * 8 + 8


@pytest.mark.parametrize("entries", [15_000, 30_000])
def test_false_share_is_what_a_filter_does_to_random_hashes(entries: int) -> None:
    generator = np.random.default_rng(0)
    filled, queries = Bloom(4096), 400_000
    hashes = generator.integers(1 << 64, size=entries + queries, dtype=np.uint64)
    filled.add(hashes[:entries])
    strangers = hashes[entries:]
    found = len(filled.known(strangers))
    expected = false_share(entries, 4096, filled.near, PROBES, 1) * queries
    assert abs(found - expected) < 5 * math.sqrt(expected) + 0.1 * expected
