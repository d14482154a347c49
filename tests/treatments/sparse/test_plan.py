"""Plans of mask updates, against an engine of sets and sorts written out in plain Python."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.anatomy.weights import Weight, find_weights
from dynamo_probe.treatments.sparse.granularity import as_granularity
from dynamo_probe.treatments.sparse.plan import GrowScope, Plan, Planner, shared_out
from tests.models import ConvNet, mlp

Sets = dict[str, set[int]]
Lists = dict[str, list[float]]


def unused() -> Mapping[str, Tensor]:
    raise AssertionError("these scores are not needed")


# --- the naive engine -----------------------------------------------------------------------------


def worst_first(scores: list[float], places: set[int]) -> list[int]:
    """Of equal ones the last goes first."""
    return sorted(places, key=lambda place: (scores[place], -place))


def best_of_layer(scores: list[float], places: set[int], number: int) -> set[int]:
    return set(sorted(places, key=lambda place: (-scores[place], place))[:number])


def best_anywhere(scores: Lists, places: Sets, number: int, floors: dict[str, int]) -> Sets:
    """One at a time: floors first, layer by layer, then the best that is left anywhere."""
    chosen = {name: best_of_layer(scores[name], places[name], floors[name]) for name in places}
    order = list(places)
    rest = [(n, p) for n in order for p in places[n] - chosen[n]]
    rest.sort(key=lambda one: (-scores[one[0]][one[1]], order.index(one[0]), one[1]))
    for name, place in rest[: number - sum(len(c) for c in chosen.values())]:
        chosen[name].add(place)
    return chosen


@dataclass
class Naive:
    """GraNet's update: to the density, then the exchange; masks are sets of flat indices."""

    sizes: dict[str, int]
    everywhere: bool
    grow_scope: str

    def plan(
        self, masks: Sets, counts: dict[str, int] | int, share: float, prune: Lists, grow: Lists
    ) -> tuple[Sets, Sets]:
        every = {name: set(range(size)) for name, size in self.sizes.items()}
        floors = {name: min(1, len(mask)) for name, mask in masks.items()}
        there = sum(len(mask) for mask in masks.values())
        if isinstance(counts, int) and counts < there:
            resized = best_anywhere(prune, masks, counts, floors)
        elif isinstance(counts, int):
            others = {name: every[name] - masks[name] for name in masks}
            new = best_anywhere(grow, others, counts - there, dict.fromkeys(masks, 0))
            resized = {name: masks[name] | new[name] for name in masks}
        else:
            resized = {}
            for name, mask in masks.items():
                fewer = best_of_layer(prune[name], mask, counts[name])
                more = best_of_layer(grow[name], every[name] - mask, counts[name] - len(mask))
                resized[name] = fewer if counts[name] < len(mask) else mask | more
        wanted = sum(len(mask) for mask in resized.values())
        stayed = {name: masks[name] & resized[name] for name in masks}
        if share == 0 or wanted == sum(self.sizes.values()):
            return resized, stayed
        kept = {}
        for name, mask in resized.items():
            gone = math.ceil(share * len(mask) - 1e-9)
            if self.grow_scope == "layer" and len(mask) == self.sizes[name]:
                gone = 0
            kept[name] = mask - set(worst_first(prune[name], mask)[:gone])
        stayed = {name: stayed[name] & kept[name] for name in masks}
        others = {name: every[name] - kept[name] for name in masks}
        if self.grow_scope == "layer":
            new = {
                n: best_of_layer(grow[n], others[n], len(resized[n]) - len(kept[n])) for n in masks
            }
        else:
            owed = {name: max(0, min(1, len(resized[name])) - len(kept[name])) for name in masks}
            lost = wanted - sum(len(mask) for mask in kept.values())
            new = best_anywhere(grow, others, lost, owed)
        return {name: kept[name] | new[name] for name in masks}, stayed


# --- networks, masks and scores -------------------------------------------------------------------

NETS: list[Callable[[], nn.Module]] = [
    lambda: mlp(5, 8, 7, 3),
    lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 2), nn.Linear(6, 5)),
    lambda: mlp(1, 2, 30, 1),
    lambda: nn.LSTM(3, 2),
]


def weights_of(net: nn.Module) -> dict[str, Weight]:
    return dict(find_weights(net).found)


def drawn(weights: Mapping[str, Weight], seed: int, ties: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 4, w.shape, generator=generator).float()
        if ties
        else torch.randn(w.shape, generator=generator).abs()
        for name, w in weights.items()
    }


def as_sets(masks: Mapping[str, Tensor]) -> Sets:
    return {n: set(mask.flatten().nonzero().flatten().tolist()) for n, mask in masks.items()}


def as_lists(scores: Mapping[str, Tensor]) -> Lists:
    return {name: score.flatten().tolist() for name, score in scores.items()}


def total(masks: Mapping[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def some_masks(
    weights: Mapping[str, Weight], data: st.DataObject, least: int = 1
) -> dict[str, Tensor]:
    """Masks of which some layers are nearly empty and some are full."""
    masks = {}
    for name, weight in weights.items():
        size = math.prod(weight.shape)
        number = data.draw(st.sampled_from([least, size]) | st.integers(least, size), label=name)
        seed = data.draw(st.integers(0, 10**6))
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[order[:number]] = True
        masks[name] = mask.view(weight.shape)
    return masks


def check(plan: Plan, masks: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """What holds for every plan; and the old masks were only read."""
    for name, mask in plan.masks.items():
        assert mask.dtype == plan.stayed[name].dtype == torch.bool
        assert mask.shape == plan.stayed[name].shape == masks[name].shape
        assert not bool((plan.stayed[name] & ~mask).any())
        assert not bool((plan.stayed[name] & ~masks[name]).any())
        assert torch.equal(masks[name], before[name])


# --- against the naive engine ---------------------------------------------------------------------


@settings(max_examples=120)
@given(
    net=st.sampled_from(NETS),
    everywhere=st.booleans(),
    grow_scope=st.sampled_from(["layer", "global"]),
    share=st.sampled_from([0.0, 0.3, 0.5, 1.0]) | st.floats(0, 1),
    ties=st.booleans(),
    seed=st.integers(0, 10**6),
    keeps=st.booleans(),
    data=st.data(),
)
def test_a_plan_is_that_of_the_naive_engine(
    net: Callable[[], nn.Module],
    everywhere: bool,
    grow_scope: GrowScope,
    share: float,
    ties: bool,
    seed: int,
    keeps: bool,
    data: st.DataObject,
) -> None:
    weights = weights_of(net())
    sizes = {name: math.prod(weight.shape) for name, weight in weights.items()}
    masks = some_masks(weights, data)
    prune, grow = drawn(weights, seed, ties), drawn(weights, seed + 1, ties)
    counts: dict[str, int] | int
    if everywhere:
        counts = total(masks) if keeps else data.draw(st.integers(len(sizes), sum(sizes.values())))
    elif keeps:
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
    else:
        counts = {name: data.draw(st.integers(1, size), label=name) for name, size in sizes.items()}
    planner = Planner(weights, as_granularity("unstructured"), everywhere, grow_scope, 0.0)
    before = {name: mask.clone() for name, mask in masks.items()}
    plan = planner.plan(masks, counts, share, lambda: prune, lambda: grow)
    check(plan, masks, before)
    naive = Naive(sizes, everywhere, grow_scope)
    expected, stayed = naive.plan(as_sets(masks), counts, share, as_lists(prune), as_lists(grow))
    assert as_sets(plan.masks) == expected
    assert as_sets(plan.stayed) == stayed
    assert total(plan.masks) == (counts if isinstance(counts, int) else sum(counts.values()))
    assert all(int(mask.sum()) >= 1 for mask in plan.masks.values())


def test_a_dense_network_is_pruned_to_the_largest_weights_anywhere() -> None:
    torch.manual_seed(0)
    net = ConvNet()
    weights = weights_of(net)
    planner = Planner(weights, as_granularity("unstructured"), True, "layer", 0.0)
    masks = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in weights.items()}
    scores = {name: w.parameter.detach().abs() for name, w in weights.items()}
    count = round(0.3 * planner.size)
    plan = planner.plan(masks, count, 0.0, lambda: scores, unused)
    everything = torch.cat([score.flatten() for score in scores.values()]).double()
    threshold = everything.sort(descending=True).values[count - 1]
    assert all(torch.equal(plan.masks[n], scores[n].double() >= threshold) for n in weights)
    assert total(plan.masks) == count


@pytest.mark.parametrize("pattern", ["2:4", "fan-in", "channels"])
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
    shares=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_patterns_hold_and_counts_are_exact_through_a_chain_of_plans(
    pattern: str, seed: int, share: float, shares: list[float]
) -> None:
    torch.manual_seed(0)
    weights = weights_of(nn.Sequential(nn.Linear(8, 6), nn.Conv1d(4, 4, 3), nn.Linear(4, 8)))
    granularity = as_granularity(pattern)
    planner = Planner(weights, granularity, False, "layer", 0.0)
    masks = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in weights.items()}
    for step, density in enumerate(shares):
        counts = {
            n: granularity.count(w, max(1, round(density * math.prod(w.shape))))
            for n, w in weights.items()
        }
        prune, grow = drawn(weights, seed + step, False), drawn(weights, seed - step, False)
        before = {name: mask.clone() for name, mask in masks.items()}
        plan = planner.plan(masks, counts, share, lambda p=prune: p, lambda g=grow: g)
        check(plan, masks, before)
        masks = plan.masks
        assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
        for name, weight in weights.items():
            rows = masks[name].movedim((weight.unit_dim, weight.input_dim), (0, -1))
            if pattern == "channels":
                assert torch.equal(rows.flatten(1).all(1), rows.flatten(1).any(1))
            else:
                groups = rows.reshape(-1, 4) if pattern == "2:4" else rows.flatten(1)
                assert len(groups.sum(1).unique()) == 1


# --- what stayed ----------------------------------------------------------------------------------


def test_what_goes_and_comes_back_in_one_update_is_there_and_has_not_stayed() -> None:
    weights = weights_of(nn.Linear(4, 1))
    planner = Planner(weights, as_granularity("unstructured"), False, "layer", 0.0)
    masks = {"weight": torch.tensor([[True, True, True, False]])}
    prune = {"weight": torch.tensor([[3.0, 1.0, 2.0, 0.0]])}
    # One of three goes, the second; and it has the largest gradient of all that are not there.
    plan = planner.plan(
        masks, {"weight": 3}, 0.3, lambda: prune, lambda: {"weight": torch.tensor([[0.0, 9, 0, 5]])}
    )
    assert plan.masks["weight"].tolist() == [[True, True, True, False]]
    assert plan.stayed["weight"].tolist() == [[True, False, True, False]]


def test_what_pruning_takes_and_growing_returns_has_not_stayed() -> None:
    weights = weights_of(nn.Linear(4, 1))
    planner = Planner(weights, as_granularity("unstructured"), True, "layer", 0.0)
    masks = {"weight": torch.ones(1, 4, dtype=torch.bool)}
    prune = {"weight": torch.tensor([[4.0, 1.0, 2.0, 3.0]])}
    grow = {"weight": torch.tensor([[0.0, 9.0, 8.0, 0.0]])}
    # To three: the second goes. Then ceil(0.5 x 3) = 2 of the three go, and the middle ones come.
    plan = planner.plan(masks, 3, 0.5, lambda: prune, lambda: grow)
    assert plan.masks["weight"].tolist() == [[True, True, True, False]]
    assert plan.stayed["weight"].tolist() == [[True, False, False, False]]


def test_nothing_is_scored_and_nothing_changes_where_nothing_is_asked() -> None:
    torch.manual_seed(0)
    weights = weights_of(mlp(3, 4, 2))
    masks = {n: torch.rand(w.shape) < 0.5 for n, w in weights.items()}
    for everywhere in (True, False):
        planner = Planner(weights, as_granularity("unstructured"), everywhere, "layer", 0.0)
        counts = total(masks) if everywhere else {n: int(m.sum()) for n, m in masks.items()}
        plan = planner.plan(masks, counts, 0.0, unused, unused)
        assert all(plan.masks[n] is plan.stayed[n] is masks[n] for n in masks)


def test_a_dense_network_has_nothing_to_exchange() -> None:
    weights = weights_of(mlp(3, 4, 2))
    masks = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in weights.items()}
    planner = Planner(weights, as_granularity("unstructured"), True, "layer", 0.0)
    plan = planner.plan(masks, planner.size, 0.5, unused, unused)
    assert all(torch.equal(plan.masks[n], masks[n]) for n in masks)


def test_scores_are_made_once_for_a_plan() -> None:
    weights = weights_of(mlp(5, 8, 7, 3))
    masks = {n: torch.zeros(w.shape, dtype=torch.bool) for n, w in weights.items()}
    for mask in masks.values():
        mask[0, 0] = True
    calls = {"prune": 0, "grow": 0}

    def scores(kind: str) -> dict[str, Tensor]:
        calls[kind] += 1
        return drawn(weights, 0, False)

    planner = Planner(weights, as_granularity("unstructured"), False, "layer", 0.0)
    counts = {name: 9 for name in weights}
    planner.plan(masks, counts, 0.3, lambda: scores("prune"), lambda: scores("grow"))
    assert calls == {"prune": 1, "grow": 1}


def test_a_dense_phase_brings_all_back_and_a_sparse_one_takes_the_largest() -> None:
    torch.manual_seed(0)
    weights = weights_of(mlp(5, 8, 7, 3))
    for pattern in ("unstructured", "fan-in"):
        everywhere = pattern == "unstructured"
        granularity = as_granularity(pattern)
        planner = Planner(weights, granularity, everywhere, "layer", 0.0)
        full = {n: math.prod(w.shape) for n, w in weights.items()}
        few = {n: granularity.count(weights[n], size // 4) for n, size in full.items()}
        masks = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in weights.items()}
        sparse = masks
        for seed in range(3):
            scores = drawn(weights, seed, False)
            down = sum(few.values()) if everywhere else few
            plan = planner.plan(sparse, down, 0.0, lambda s=scores: s, unused)
            assert total(plan.masks) == sum(few.values())
            assert all(torch.equal(plan.stayed[n], plan.masks[n]) for n in masks)
            up = planner.size if everywhere else full
            dense = planner.plan(plan.masks, up, 0.0, unused, unused)
            assert all(bool(mask.all()) for mask in dense.masks.values())
            assert all(torch.equal(dense.stayed[n], plan.masks[n]) for n in masks)
            sparse = dense.masks


def test_floors_are_kept_by_global_pruning_and_impossible_ones_are_refused() -> None:
    torch.manual_seed(0)
    weights = weights_of(mlp(4, 10, 10, 2))
    planner = Planner(weights, as_granularity("unstructured"), True, "layer", 0.25)
    masks = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in weights.items()}
    # The last layer is worth least by far.
    scores = {n: torch.rand(w.shape) + (n != "4.weight") for n, w in weights.items()}
    plan = planner.plan(masks, 60, 0.0, lambda: scores, unused)
    assert total(plan.masks) == 60
    assert int(plan.masks["4.weight"].sum()) == 5  # a quarter of 20
    with pytest.raises(ValueError, match="the floors .* cannot be met with 30 in all"):
        planner.plan(masks, 30, 0.0, lambda: scores, unused)


# --- growing over layers --------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    net=st.sampled_from(NETS),
    scope=st.sampled_from(["global", "momentum"]),
    floor=st.sampled_from([0.0, 0.2, 0.6]),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_growing_over_layers_is_exact_keeps_floors_and_grows_the_best_of_each_layer(
    net: Callable[[], nn.Module],
    scope: GrowScope,
    floor: float,
    share: float,
    seed: int,
    data: st.DataObject,
) -> None:
    weights = weights_of(net())
    planner = Planner(weights, as_granularity("unstructured"), True, scope, floor)
    masks = some_masks(weights, data)
    prune, grow = drawn(weights, seed, False), drawn(weights, seed + 1, False)
    before = {name: mask.clone() for name, mask in masks.items()}
    plan = planner.plan(masks, total(masks), share, lambda: prune, lambda: grow)
    check(plan, masks, before)
    assert total(plan.masks) == total(masks)
    for name, mask in plan.masks.items():
        size, there = mask.numel(), int(masks[name].sum())
        assert int(mask.sum()) >= min(there, max(1, math.ceil(floor * size - 1e-9)))
        if total(masks) == planner.size:
            continue
        kept = plan.stayed[name]
        assert int(kept.sum()) == there - math.ceil(share * there - 1e-9)
        came, others = grow[name][mask & ~kept], grow[name][~mask]
        assert not len(came) or not len(others) or came.min() >= others.max()


def test_a_layer_that_filled_up_gives_some_back() -> None:
    torch.manual_seed(0)
    weights = weights_of(mlp(4, 10, 5))
    planner = Planner(weights, as_granularity("unstructured"), True, "momentum", 0.0)
    masks = {
        "0.weight": torch.ones(10, 4, dtype=torch.bool),
        "2.weight": torch.eye(5, 10, dtype=torch.bool),
    }
    scores = {n: torch.rand(w.shape) * 0.1 + (n == "2.weight") for n, w in weights.items()}
    plan = planner.plan(masks, 45, 0.5, lambda: scores, lambda: scores)
    assert total(plan.masks) == 45
    assert int(plan.masks["0.weight"].sum()) < 30


def test_momentum_is_shared_by_the_mean_over_what_was_there_before_the_exchange() -> None:
    weights = weights_of(nn.Sequential(nn.Linear(10, 2, bias=False), nn.Linear(10, 2, bias=False)))
    planner = Planner(weights, as_granularity("unstructured"), True, "momentum", 0.0)
    first, second = torch.zeros(2, 10), torch.zeros(2, 10)
    first[0, :4], second[0, :4] = torch.tensor([4.0, 4, 1, 1]), torch.tensor([0.0, 0, 1, 1])
    masks = {"0.weight": torch.zeros(2, 10, dtype=torch.bool)}
    masks["0.weight"][0, :4] = True
    masks["1.weight"] = masks["0.weight"].clone()
    # The first two of four go in each layer. Means before: 2.5 and 0.5; after they would be alike.
    prune = {name: torch.arange(20.0).view(2, 10) for name in masks}
    grow = {"0.weight": first, "1.weight": second}
    plan = planner.plan(masks, 8, 0.5, lambda: prune, lambda: grow)
    # Of the four, 4 x 2.5 / 3 = 3.3 and 0.7: three, none, and one more where the share is larger.
    assert {n: int(m.sum()) for n, m in plan.masks.items()} == {"0.weight": 6, "1.weight": 2}


def test_momentum_shares_cannot_be_negative() -> None:
    weights = weights_of(mlp(4, 4, 4))
    planner = Planner(weights, as_granularity("unstructured"), True, "momentum", 0.0)
    masks = {n: torch.eye(4, dtype=torch.bool) for n in weights}
    scores = {name: torch.full(w.shape, -1.0) for name, w in weights.items()}
    with pytest.raises(ValueError, match="the share of 0.weight is -1.0: .* grow_scope='layer'"):
        planner.plan(masks, 8, 0.5, lambda: scores, lambda: scores)


def filled(amount: int, shares: Mapping[str, float], room: Mapping[str, int]) -> dict[str, float]:
    """Water filling: min(room, c x share) with the c that gives the amount, by bisection."""
    low, high = 0.0, 1e12
    for _ in range(200):
        level = (low + high) / 2
        full = sum(min(room[name], level * shares[name]) for name in room)
        low, high = (low, level) if full > amount else (level, high)
    return {name: min(float(room[name]), low * shares[name]) for name in room}


@given(
    layers=st.dictionaries(
        st.text("abcdef", min_size=1, max_size=2),
        st.tuples(st.integers(0, 100) | st.integers(0, 10**9), st.floats(0.01, 100)),
        min_size=1,
        max_size=9,
    ),
    part=st.floats(0, 1),
    zeros=st.booleans(),
)
def test_a_whole_number_is_divided_exactly_within_room_and_in_proportion(
    layers: dict[str, tuple[int, float]], part: float, zeros: bool
) -> None:
    room = {name: place for name, (place, _) in layers.items()}
    shares = {name: share for name, (_, share) in layers.items()}
    if zeros:
        shares[next(iter(shares))] = 0.0
    amount = math.floor(part * sum(room.values()))
    given = shared_out(amount, shares, room)
    assert list(given) == list(room)
    assert sum(given.values()) == amount
    assert all(0 <= given[name] <= room[name] for name in room)
    ideal = filled(amount, shares, room)
    if not zeros or sum(ideal.values()) > amount - 1:
        assert all(abs(given[name] - ideal[name]) <= len(room) + 1e-3 for name in room)


def test_who_wants_nothing_gets_something_only_when_all_others_are_full() -> None:
    room = {"a": 3, "b": 10, "c": 10}
    assert shared_out(3, {"a": 1.0, "b": 0.0, "c": 0.0}, room) == {"a": 3, "b": 0, "c": 0}
    assert shared_out(7, {"a": 1.0, "b": 0.0, "c": 0.0}, room) == {"a": 3, "b": 2, "c": 2}
    assert shared_out(5, dict.fromkeys(room, 0.0), room) == {"a": 2, "b": 2, "c": 1}


def test_more_than_there_is_room_for_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="12 are to be divided, and there is room for 11"):
        shared_out(12, {"a": 1.0, "b": 2.0}, {"a": 5, "b": 6})
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            shared_out(2, {"a": 1.0, "b": wrong}, {"a": 5, "b": 6})
