"""Patterns of connections, against loops over every group written out."""

import math
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.anatomy.weights import Weight, find_weights
from dynamo_probe.treatments.sparse.granularity import (
    Channels,
    Granularity,
    Grouped,
    Unstructured,
    as_granularity,
    dropped,
)

LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(8, 6),
    "conv1d": nn.Conv1d(4, 3, 3),
    "conv2d": nn.Conv2d(8, 3, (2, 3)),
    "pointwise": nn.Conv2d(8, 5, 1),
    "grouped": nn.Conv2d(8, 6, 2, groups=2),
    "depthwise": nn.Conv1d(4, 4, 4, groups=4),
    "transposed": nn.ConvTranspose2d(8, 3, 2),
    "attention": nn.MultiheadAttention(4, 2, bias=False),
}
PATTERNS = ["unstructured", "2:4", "1:4", "3:4", "fan-in", "channels"]


def weight_of(name: str) -> Weight:
    return next(iter(find_weights(LAYERS[name]).found.values()))


FITTING = [
    (name, pattern)
    for name, pattern in product(LAYERS, PATTERNS)
    if as_granularity(pattern).unfit(weight_of(name)) is None
]


def written_out(where: Weight, pattern: str) -> list[list[tuple[int, ...]]]:
    """The coordinates of every group, with loops over units, kernel and inputs."""
    kernel = [
        range(size)
        for axis, size in enumerate(where.shape)
        if axis not in (where.unit_dim, where.input_dim)
    ]
    inputs = range(where.shape[where.input_dim])

    def coordinate(unit: int, place: tuple[int, ...], source: int) -> tuple[int, ...]:
        rest = iter(place)
        names = {where.unit_dim: unit, where.input_dim: source}
        return tuple(names[a] if a in names else next(rest) for a in range(len(where.shape)))

    groups = []
    for unit in range(where.shape[where.unit_dim]):
        all_of_it = [coordinate(unit, p, i) for p in product(*kernel) for i in inputs]
        if pattern in ("fan-in", "channels"):
            groups.append(all_of_it)
            continue
        size = int(pattern.split(":")[1])
        groups += [all_of_it[start : start + size] for start in range(0, len(all_of_it), size)]
    return groups


def naive_best(
    where: Weight, pattern: str, scores: Tensor, count: int, among: Tensor | None
) -> Tensor:
    """The best of each group; of channels, the units with the best means."""
    chosen = torch.zeros(where.shape, dtype=torch.bool)
    if pattern == "unstructured":
        groups = [list(product(*(range(size) for size in where.shape)))]
    else:
        groups = written_out(where, pattern)
    if pattern == "channels":
        units = [g for g in groups if among is None or all(among[c] for c in g)]
        mean = {id(g): sum(scores[c].item() for c in g) / len(g) for g in units}
        best = sorted(units, key=lambda g: -mean[id(g)])[: count // len(groups[0])]
        for coordinate in (c for group in best for c in group):
            chosen[coordinate] = True
        return chosen
    for group in groups:
        places = [c for c in group if among is None or among[c]]
        for coordinate in sorted(places, key=lambda c: -scores[c].item())[: count // len(groups)]:
            chosen[coordinate] = True
    return chosen


def assert_pattern(where: Weight, pattern: str, mask: Tensor) -> None:
    if pattern == "unstructured":
        return
    numbers = {sum(mask[c].item() for c in group) for group in written_out(where, pattern)}
    if pattern == "channels":
        assert numbers <= {0, math.prod(where.shape) // where.units}
    else:
        assert len(numbers) == 1


def random_scores(where: Weight, seed: int, ties: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return torch.randint(-2, 3, where.shape, generator=generator).float()
    return torch.randn(where.shape, generator=generator)


@pytest.mark.parametrize(("name", "pattern"), FITTING)
@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), ties=st.booleans(), share=st.floats(0, 1), part=st.floats(0, 1))
def test_the_best_of_each_group_stay_and_the_pattern_holds_through_drop_and_grow(
    name: str, pattern: str, seed: int, ties: bool, share: float, part: float
) -> None:
    where, granularity = weight_of(name), as_granularity(pattern)
    size = math.prod(where.shape)
    count = granularity.count(where, max(1, round(share * size)))
    scores = random_scores(where, seed, ties and pattern != "channels")
    active = granularity.best(where, scores, count, None)
    assert active.dtype == torch.bool and active.shape == where.shape and active.is_contiguous()
    assert int(active.sum()) == count
    assert torch.equal(active, naive_best(where, pattern, scores, count, None))
    assert_pattern(where, pattern, active)

    # Fewer, of those that are there.
    other = random_scores(where, seed + 1, ties and pattern != "channels")
    fewer = min(count, granularity.count(where, max(1, round(part * count))))
    smaller = granularity.best(where, other, fewer, active)
    assert torch.equal(smaller, naive_best(where, pattern, other, fewer, active))
    assert int(smaller.sum()) == fewer and not bool((smaller & ~active).any())

    # An exchange.
    kept = granularity.drop(where, other, active, part)
    assert not bool((kept & ~active).any())
    if pattern == "channels":
        assert_pattern(where, pattern, kept)
        each = size // where.units
        assert int(kept.sum()) // each == count // each - dropped(count // each, part)
    else:
        assert int(kept.sum()) == count - dropped(count, part)
        lost, stayed = other[active & ~kept], other[kept]
        assert not len(lost) or not len(stayed) or lost.max() <= stayed.min()
    third = random_scores(where, seed + 2, ties and pattern != "channels")
    grown = granularity.grow(where, third, kept, count)
    assert int(grown.sum()) == count
    assert bool((grown | ~kept).all()), "grow has lost an active connection"
    assert_pattern(where, pattern, grown)
    lifted = third.masked_fill(kept, 1e9)
    assert torch.equal(grown, naive_best(where, pattern, lifted, count, None))


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed", "grouped", "pointwise"])
def test_two_of_four_means_exactly_two_of_any_four_neighbouring_inputs(name: str) -> None:
    torch.manual_seed(0)
    where, granularity = weight_of(name), as_granularity("2:4")
    size = math.prod(where.shape)
    assert granularity.count(where, size // 3) == size // 2
    mask = granularity.best(where, torch.randn(where.shape), size // 2, None)
    groups = written_out(where, "2:4")
    assert len(groups) == size // 4
    for group in groups:
        sources = [coordinate[where.input_dim] for coordinate in group]
        assert sources == list(range(sources[0], sources[0] + 4)) and sources[0] % 4 == 0
        assert len({c[where.unit_dim] for c in group}) == 1
        assert sum(mask[c].item() for c in group) == 2


def test_channels_are_rows_of_a_linear_layer_and_slices_of_a_convolution() -> None:
    linear = weight_of("linear")
    scores = torch.tensor([1.0, 6.0, 2.0, 5.0, 3.0, 4.0]).unsqueeze(1).expand(6, 8)
    rows = Channels().best(linear, scores, 24, None)
    assert rows.all(1).tolist() == [False, True, False, True, False, True]
    assert rows.any(1).tolist() == rows.all(1).tolist()
    transposed = weight_of("transposed")  # [in, out, k, k]
    scores = torch.tensor([1.0, 3.0, 2.0]).view(1, 3, 1, 1).expand(transposed.shape)
    slices = Channels().best(transposed, scores, 32, None)
    assert slices[:, 1].all() and not slices[:, 0].any() and not slices[:, 2].any()


@given(name=st.sampled_from(list(LAYERS)), pattern=st.sampled_from(PATTERNS), data=st.data())
def test_the_count_is_the_nearest_that_the_pattern_allows(
    name: str, pattern: str, data: st.DataObject
) -> None:
    where, granularity = weight_of(name), as_granularity(pattern)
    assume(granularity.unfit(where) is None)
    size = math.prod(where.shape)
    wanted = data.draw(st.integers(1, size))
    if pattern == "unstructured":
        possible = list(range(1, size + 1))
    elif pattern == "channels":
        possible = list(range(size // where.units, size + 1, size // where.units))
    else:
        groups = len(written_out(where, pattern))
        least = 1 if pattern == "fan-in" else int(pattern[0])
        possible = [groups * each for each in range(least, size // groups + 1)]
    found = granularity.count(where, wanted)
    assert found in possible
    assert abs(found - wanted) == min(abs(one - wanted) for one in possible)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_infinite_scores_neither_bring_in_what_is_no_candidate_nor_lose_what_is_there(
    pattern: str,
) -> None:
    where, granularity = weight_of("linear"), as_granularity(pattern)
    ascending = torch.arange(48.0).view(6, 8)
    count = granularity.count(where, 24)
    active = granularity.best(where, ascending, count, None)
    # All that is there is worth nothing, all that is not is worth everything.
    scores = torch.where(active, -math.inf, math.inf)
    fewer = count if pattern == "2:4" else granularity.count(where, 12)
    assert not bool((granularity.best(where, scores, fewer, active) & ~active).any())
    kept = granularity.drop(where, scores, active, 0.5)
    assert bool((granularity.grow(where, scores, kept, count) | ~kept).all())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nan_is_refused(pattern: str) -> None:
    torch.manual_seed(0)
    where, granularity = weight_of("linear"), as_granularity(pattern)
    scores = torch.rand(6, 8)
    active = granularity.best(where, scores, 24, None)
    scores[2, 3] = math.nan
    with pytest.raises(ValueError, match="a score is NaN"):
        granularity.best(where, scores, 24, None)
    inactive = ~active
    scores = torch.rand(6, 8).masked_fill(inactive, math.nan)
    with pytest.raises(ValueError, match="a score is NaN"):
        granularity.grow(where, scores, active, 48)


def test_a_mask_without_the_pattern_is_refused_and_not_mended() -> None:
    torch.manual_seed(0)
    where, scores = weight_of("linear"), torch.rand(6, 8)
    uneven = torch.ones(6, 8, dtype=torch.bool)
    uneven[0, :3] = False
    for pattern in ("2:4", "fan-in"):
        with pytest.raises(ValueError, match="weight does not have the pattern .* has only"):
            as_granularity(pattern).best(where, scores, 36, uneven)
        with pytest.raises(ValueError, match="weight does not have the pattern .* already"):
            as_granularity(pattern).grow(where, scores, uneven, 36)
        with pytest.raises(ValueError, match="25 connections are not the same for"):
            as_granularity(pattern).best(where, scores, 25, None)
    for act in (
        lambda: Channels().best(where, scores, 8, uneven),
        lambda: Channels().drop(where, scores, uneven, 0.3),
        lambda: Channels().grow(where, scores, uneven, 48),
    ):
        with pytest.raises(ValueError, match="a unit has only a part"):
            act()


def test_weights_that_cannot_have_a_pattern_say_why() -> None:
    odd = next(iter(find_weights(nn.Linear(6, 3)).found.values()))
    assert as_granularity("2:4").unfit(odd) == "its 6 inputs are not whole groups of 4"
    assert as_granularity("fan-in").unfit(odd) is None
    depthwise = weight_of("depthwise")
    assert as_granularity("2:4").unfit(depthwise) == "its 1 inputs are not whole groups of 4"
    single = next(iter(find_weights(nn.Linear(6, 1)).found.values()))
    assert as_granularity("channels").unfit(single) == "it leads into a single unit"
    shared = next(iter(find_weights(nn.ConvTranspose1d(8, 8, 2, groups=2)).found.values()))
    assert as_granularity("unstructured").unfit(shared) is None
    for pattern in ("2:4", "fan-in", "channels"):
        assert "a transposed convolution" in str(as_granularity(pattern).unfit(shared))


@pytest.mark.parametrize(
    ("there", "share", "gone"),
    [(10, 0.3, 3), (10, 0.31, 4), (10, 0.0, 0), (10, 1.0, 10), (1, 0.01, 1), (0, 0.5, 0)],
)  # fmt: skip
def test_the_share_that_goes_is_rounded_up(there: int, share: float, gone: int) -> None:
    assert dropped(there, share) == gone


def test_a_share_that_is_whole_but_for_rounding_is_that_number() -> None:
    assert 0.07 * 100 > 7
    assert dropped(100, 0.07) == 7


def test_granularities_have_names() -> None:
    kinds = {pattern: as_granularity(pattern) for pattern in PATTERNS}
    assert isinstance(kinds["unstructured"], Unstructured)
    assert isinstance(kinds["channels"], Channels)
    assert isinstance(kinds["2:4"], Grouped) and kinds["2:4"].name == "2:4"
    assert kinds["fan-in"].name == "constant fan-in"
    assert [kind.everywhere for kind in kinds.values()] == [True] + [False] * 5
    own: Granularity = Grouped(8)
    assert as_granularity(own) is own


@pytest.mark.parametrize("wrong", ["4:2", "2:2", "0:4", "block", "", "2:4:8"])
def test_unknown_names_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="give 'unstructured', 'N:M' such as '2:4'"):
        as_granularity(wrong)


@pytest.mark.parametrize("wrong", [None, 4, Unstructured])
def test_what_is_no_granularity_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="give a name such as '2:4', or an object"):
        as_granularity(wrong)  # type: ignore[arg-type]
