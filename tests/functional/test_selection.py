"""Exactly the k best, against a plain sort in Python, by hand and at every trap of floats."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynamo_probe.functional import select_exact, select_globally
from dynamo_probe.functional.selection import _WORTH_COUNTING, kth_largest

FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1e-40, -1e-40, 3e38]),
    st.floats(allow_nan=False, width=32),
)
KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def best(values: list[float], k: int, candidates: list[int] | None = None) -> list[bool]:
    """Sort by (-score, index) and take the first k."""
    places = range(len(values)) if candidates is None else candidates
    taken = set(sorted(places, key=lambda place: (-values[place], place))[:k])
    return [place in taken for place in range(len(values))]


@given(values=st.lists(FLOATS, max_size=40), kind=st.sampled_from(KINDS), data=st.data())
def test_selection_is_a_sort_by_score_then_index(
    values: list[float], kind: torch.dtype, data: st.DataObject
) -> None:
    scores = torch.tensor(values, dtype=torch.float64).to(kind)
    k = data.draw(st.integers(0, len(values)))
    chosen = select_exact(scores, k)
    assert chosen.dtype == torch.bool and chosen.shape == scores.shape
    assert chosen.tolist() == best(scores.tolist(), k)


@given(
    values=st.lists(st.integers(-(2**62), 2**62) | st.integers(-2, 2), max_size=30),
    data=st.data(),
)
def test_whole_numbers_are_compared_as_such(values: list[int], data: st.DataObject) -> None:
    # 2**60 and 2**60 + 1 are one number in float64.
    k = data.draw(st.integers(0, len(values)))
    chosen = select_exact(torch.tensor(values, dtype=torch.int64), k)
    assert chosen.tolist() == best(values, k)  # type: ignore[arg-type]


@given(values=st.lists(FLOATS | st.just(math.nan), max_size=30), data=st.data())
def test_only_candidates_are_chosen_and_nan_elsewhere_does_not_matter(
    values: list[float], data: st.DataObject
) -> None:
    real = [place for place, value in enumerate(values) if not math.isnan(value)]
    candidates = sorted(data.draw(st.sets(st.sampled_from(real)))) if real else []
    k = data.draw(st.integers(0, len(candidates)))
    among = torch.zeros(len(values), dtype=torch.bool)
    among[candidates] = True
    kept = among.clone()
    chosen = select_exact(torch.tensor(values), k, among=among)
    assert chosen.tolist() == best(values, k, candidates)
    assert torch.equal(among, kept)
    chosen.fill_(True)  # what is returned is nobody else's
    assert torch.equal(among, kept)


@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    order=st.randoms(use_true_random=False),
    data=st.data(),
)
def test_ties_go_by_index_whatever_the_strides(shape, order, data: st.DataObject) -> None:  # noqa: ANN001
    size = math.prod(shape)
    flat = [float(data.draw(st.integers(0, 2))) for _ in range(size)]
    axes = list(range(len(shape)))
    order.shuffle(axes)
    back = [axes.index(axis) for axis in range(len(shape))]
    plain = torch.tensor(flat).view(shape)
    strided = plain.permute(axes).contiguous().permute(back)
    among = torch.tensor([data.draw(st.booleans()) for _ in range(size)]).view(shape).bool()
    k = data.draw(st.integers(0, int(among.sum())))
    expected = best(flat, k, among.flatten().nonzero().flatten().tolist())
    found = select_exact(strided, k, among=among.permute(axes).contiguous().permute(back))
    assert found.shape == shape
    assert found.flatten().tolist() == expected


def test_zero_and_minus_zero_are_equal() -> None:
    scores = torch.tensor([-0.0, 0.0, -0.0, 0.0, -1.0])
    assert select_exact(scores, 1).tolist() == [True, False, False, False, False]
    assert select_exact(scores, 3).tolist() == [True, True, True, False, False]


def test_neither_a_gradient_nor_the_scores_are_touched() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    chosen = select_exact(scores * 1, 1)
    assert not chosen.requires_grad
    assert scores.tolist() == [3.0, 1.0, 2.0]


# --- many values: counted by their leading bits -------------------------------------------------


def bits(pattern: list[int]) -> Tensor:
    """Floats of given bits."""
    return torch.tensor(pattern, dtype=torch.int64).to(torch.int32).view(torch.float32)


def large_scores(kind: str, generator: torch.Generator) -> Tensor:
    """More values than are worth counting, of one kind."""
    size = _WORTH_COUNTING + 977
    uniform = torch.rand(size, generator=generator)
    coarse = torch.randint(-3, 4, (size,), generator=generator).float()
    any_bits = torch.randint(-(2**31), 2**31, (size,), generator=generator)
    some = {
        "positive": uniform,
        "signed": torch.randn(size, generator=generator),
        "negative": -uniform - 1e-3,
        "ties": coarse,
        "tied zeros": torch.where(coarse > 0, coarse, torch.copysign(torch.zeros(()), coarse)),
        "denormal": any_bits.remainder(5000).to(torch.int32).view(torch.float32),
        "signed denormal": (any_bits.remainder(5000) * torch.where(coarse < 0, -1, 1) * 1e-45),
        "one bucket": (any_bits.remainder(2**15) + 0x3F800000).to(torch.int32).view(torch.float32),
        "infinite": coarse / (coarse != 2).float() / (coarse != -1).float(),
        "alike": torch.full((size,), -2.5),
        "any bits": any_bits.to(torch.int32).view(torch.float32),
        "zero and less": torch.where(coarse < 0, -uniform, torch.zeros(())),
        "minus zero and more": torch.where(coarse < 0, torch.tensor(-0.0), uniform),
        "extremes": coarse * 1.1e38,
    }[kind]
    return some.nan_to_num(nan=0.25, posinf=math.inf, neginf=-math.inf).float()


LARGE = [
    *("positive", "signed", "negative", "ties", "tied zeros", "denormal", "signed denormal"),
    *("one bucket", "infinite", "alike", "any bits", "zero and less", "minus zero and more"),
    "extremes",
]


@pytest.mark.parametrize("kind", LARGE)
def test_many_scores_are_selected_as_a_sort_would(kind: str) -> None:
    scores = large_scores(kind, torch.Generator().manual_seed(3))
    size = len(scores)
    assert size > _WORTH_COUNTING and not scores.isnan().any()
    values = scores.tolist()
    order = sorted(range(size), key=lambda place: (-values[place], place))
    for k in (1, 2, 7, 100, size // 3, size // 2, size - 500, size - 2, size - 1):
        assert kth_largest(scores, k).item() == values[order[k - 1]]
        expected = torch.zeros(size, dtype=torch.bool)
        expected[order[:k]] = True
        assert torch.equal(select_exact(scores, k), expected), k


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(LARGE), share=st.floats(0, 1))
@example(seed=0, kind="ties", share=1.0)
def test_many_scores_among_some_are_selected_as_a_stable_sort_would(
    seed: int, kind: str, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = large_scores(kind, generator)
    among = torch.rand(len(scores), generator=generator) < 0.97
    candidates = int(among.sum())
    assert candidates > _WORTH_COUNTING
    k = round(share * candidates)
    # A stable sort of doubles: infinity is below nothing, and what is no candidate comes last.
    places = among.nonzero().flatten()
    order = (-scores.double()[places]).argsort(stable=True)[:k]
    expected = torch.zeros_like(among)
    expected[places[order]] = True
    scores[~among] = math.nan
    assert torch.equal(select_exact(scores, k, among=among), expected)


def test_many_scores_in_columns_are_selected_in_the_order_of_rows() -> None:
    torch.manual_seed(0)
    rows = torch.randint(0, 4, (130, 140)).float()
    columns = rows.t().contiguous().t()
    assert not columns.is_contiguous() and rows.numel() > _WORTH_COUNTING
    for k in (1, 5000, 18_000):
        assert torch.equal(select_exact(columns, k), select_exact(rows, k))
        assert select_exact(rows, k).flatten().tolist() == best(rows.flatten().tolist(), k)


# --- several tensors as one ---------------------------------------------------------------------


def greedy(
    scores: dict[str, list[float]],
    candidates: dict[str, list[int]],
    k: int,
    floors: dict[str, int],
) -> dict[str, list[bool]]:
    """First the floors, each tensor's best; then whoever is best anywhere."""
    taken: set[tuple[str, int]] = set()
    for name, places in candidates.items():
        order = sorted(places, key=lambda place: (-scores[name][place], place))
        taken |= {(name, place) for place in order[: floors.get(name, 0)]}
    names = list(scores)
    everyone = [(name, place) for name, places in candidates.items() for place in places]
    everyone.sort(key=lambda one: (-scores[one[0]][one[1]], names.index(one[0]), one[1]))
    for one in everyone:
        if len(taken) < k:
            taken.add(one)
    return {n: [(n, place) in taken for place in range(len(v))] for n, v in scores.items()}


@given(
    scores=st.dictionaries(
        st.sampled_from("zabyc"), st.lists(FLOATS, max_size=12), min_size=1, max_size=4
    ),
    masked=st.booleans(),
    floored=st.booleans(),
    data=st.data(),
)
def test_a_selection_over_tensors_is_greedy_floors_first(
    scores: dict[str, list[float]], masked: bool, floored: bool, data: st.DataObject
) -> None:
    candidates = {name: list(range(len(values))) for name, values in scores.items()}
    if masked:
        candidates = {
            name: sorted(data.draw(st.sets(st.sampled_from(places)))) if places else []
            for name, places in candidates.items()
        }
    available = sum(len(places) for places in candidates.values())
    floors: dict[str, int] = {}
    if floored:
        some = data.draw(st.sets(st.sampled_from(sorted(scores))))
        floors = {name: data.draw(st.integers(0, len(candidates[name]))) for name in some}
    k = data.draw(st.integers(sum(floors.values()), available))
    among = {name: torch.zeros(len(values), dtype=torch.bool) for name, values in scores.items()}
    tensors = {name: torch.tensor(values) for name, values in scores.items()}
    for name, places in candidates.items():
        among[name][places] = True
        tensors[name][~among[name]] = math.nan
    found = select_globally(
        tensors, k, among=among if masked else None, floors=floors if floored else None
    )
    expected = greedy({n: t.tolist() for n, t in tensors.items()}, candidates, k, floors)
    assert {name: chosen.tolist() for name, chosen in found.items()} == expected
    assert sum(int(chosen.sum()) for chosen in found.values()) == k


def test_many_scores_of_several_tensors_are_selected_as_one() -> None:
    torch.manual_seed(0)
    scores = {
        "b": torch.randint(0, 9, (120, 100)).float(),
        "a": torch.randint(0, 9, (90, 7, 11)).float(),
    }
    joined = torch.cat([s.flatten() for s in scores.values()])
    for k in (1, 500, 10_000, len(joined) - 1, len(joined)):
        whole = torch.tensor(best(joined.tolist(), k))
        found = select_globally(scores, k)
        assert torch.equal(torch.cat([chosen.flatten() for chosen in found.values()]), whole)
        assert all(found[name].shape == s.shape for name, s in scores.items())


def test_a_threshold_is_the_same_number_in_every_precision() -> None:
    # 0.7 in float32 is 1.2e-8 less than in float64, where it is the second largest.
    single, double = torch.tensor([0.7]), torch.tensor([0.9, 0.7], dtype=torch.float64)
    found = select_globally({"single": single, "double": double}, 2)
    assert found["single"].tolist() == [False]
    assert found["double"].tolist() == [True, True]


def test_floors_hold_for_whole_numbers_too() -> None:
    scores = {"a": torch.tensor([1, 2]), "b": torch.tensor([5, 6, 7])}
    found = select_globally(scores, 3, floors={"a": 1})
    assert found["a"].tolist() == [False, True]
    assert found["b"].tolist() == [False, True, True]


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-1, 4])
def test_more_than_there_are_cannot_be_selected(k: int) -> None:
    scores = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=f"k is {k}; there are 3"):
        select_exact(scores, k)
    with pytest.raises(ValueError, match=f"k is {k}; there are 3"):
        select_globally({"a": scores[:2], "b": scores[2:]}, k)
    with pytest.raises(ValueError, match="there are 2 to select from"):
        select_exact(scores, 3, among=scores > 1)


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_has_no_place_in_an_order(k: int, kind: torch.dtype) -> None:
    scores = torch.tensor([1.0, math.nan, math.inf], dtype=kind)
    with pytest.raises(ValueError, match="a score is NaN"):
        select_exact(scores, k)
    with pytest.raises(ValueError, match="a score is NaN"):
        select_globally({"a": scores, "b": torch.ones(2, dtype=kind)}, k)
    many = torch.ones(_WORTH_COUNTING + 1)
    many[77] = math.nan
    with pytest.raises(ValueError, match="a score is NaN"):
        select_exact(many, k)


@pytest.mark.parametrize(
    "among",
    [
        torch.ones(3, dtype=torch.bool),
        torch.ones(2, 2, dtype=torch.bool),
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3),
    ],
)
def test_candidates_need_a_flag_for_each_score(among: Tensor) -> None:
    torch.manual_seed(0)
    scores = torch.rand(2, 3)
    with pytest.raises(ValueError, match="give a BoolTensor with one flag for each score"):
        select_exact(scores, 1, among=among)
    with pytest.raises(ValueError, match="give a BoolTensor with one flag for each score"):
        select_globally({"a": scores}, 1, among={"a": among})


@pytest.mark.parametrize("floors", [{"a": 2, "b": 2}, {"a": 3}, {"a": -1}])
def test_floors_that_cannot_be_met_are_refused(floors: dict[str, int]) -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(2), "b": torch.rand(4)}
    with pytest.raises(ValueError, match="cannot be met with 3 in all: lower them"):
        select_globally(scores, 3, floors=floors)


def test_no_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="give {name: scores}"):
        select_globally({}, 0)


# --- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("strict", [False, True])
def test_a_gpu_selects_what_the_cpu_does_also_under_deterministic_algorithms(strict: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    cases = {kind: large_scores(kind, generator) for kind in LARGE}
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(strict)
    try:
        for kind, many in cases.items():
            for scores in (many, many[:900], many[:900].double()):
                k = len(scores) // 3
                found = select_exact(scores.cuda(), k)
                assert torch.equal(found.cpu(), select_exact(scores, k)), kind
    finally:
        torch.use_deterministic_algorithms(before)
