"""Densities by layer, against the formula solved by bisection, by hand, and by exact fractions."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe.functional import erk_densities, exact_counts, uniform_densities
from dynamo_probe.functional.densities import check_density, least_counts

SHAPES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=8,
)
DENSITIES = st.floats(1e-4, 1.0)


def sizes_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


def erk_by_bisection(
    shapes: dict[str, tuple[int, ...]], density: float, dense: set[str]
) -> dict[str, float]:
    """The density of each layer is min(1, eps p); the eps that meets the budget is searched for."""
    sizes = sizes_of(shapes)
    p = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}

    def densities(eps: float) -> dict[str, float]:
        return {n: 1.0 if n in dense else min(1.0, eps * p[n]) for n in shapes}

    low, high = 0.0, max(1 / p[name] for name in shapes)
    for _ in range(200):
        eps = (low + high) / 2
        kept = sum(d * sizes[n] for n, d in densities(eps).items())
        low, high = (eps, high) if kept < density * sum(sizes.values()) else (low, eps)
    return densities(high)


@given(shapes=SHAPES, density=DENSITIES)
def test_erk_is_the_published_formula_with_the_eps_that_meets_the_budget(
    shapes: dict[str, tuple[int, ...]], density: float
) -> None:
    found = erk_densities(shapes, density)
    assert found == pytest.approx(erk_by_bisection(shapes, density, set()), rel=1e-6)


@given(shapes=SHAPES, density=DENSITIES, data=st.data())
def test_erk_leaves_dense_layers_whole_and_meets_the_budget_with_the_others(
    shapes: dict[str, tuple[int, ...]], density: float, data: st.DataObject
) -> None:
    dense = data.draw(st.sets(st.sampled_from(sorted(shapes))))
    sizes = sizes_of(shapes)
    if sum(sizes[name] for name in dense) >= 0.999 * density * sum(sizes.values()):
        return  # refused, or on the border
    found = erk_densities(shapes, density, dense=dense)
    assert found == pytest.approx(erk_by_bisection(shapes, density, dense), rel=1e-6)
    kept = sum(found[name] * size for name, size in sizes.items())
    assert kept == pytest.approx(density * sum(sizes.values()), rel=1e-9)


def test_erk_of_two_layers_by_hand() -> None:
    # Sizes 200 and 8, p = 30/200 and 6/8. eps (30 + 6) = 0.1 * 208 gives 0.43 for the small one.
    both = erk_densities({"big": (10, 20), "small": (2, 4)}, 0.1)
    eps = 20.8 / 36
    assert both == pytest.approx({"big": eps * 30 / 200, "small": eps * 6 / 8})
    # At 0.5 eps would be 104/36, and the small one 2.2: it is whole, the big one has 96 of 200.
    whole = erk_densities({"big": (10, 20), "small": (2, 4)}, 0.5)
    assert whole == pytest.approx({"big": 96 / 200, "small": 1.0})


def test_erk_of_a_convolution_counts_the_kernels_sides_too() -> None:
    shapes = {"conv": (64, 32, 3, 5), "fc": (300, 200)}
    found = erk_densities(shapes, 0.05)
    p_conv = (64 + 32 + 3 + 5) / (64 * 32 * 3 * 5)
    p_fc = (300 + 200) / (300 * 200)
    assert found["conv"] / found["fc"] == pytest.approx(p_conv / p_fc)


@given(shapes=SHAPES, density=DENSITIES)
def test_uniform_densities_are_the_density(
    shapes: dict[str, tuple[int, ...]], density: float
) -> None:
    assert uniform_densities(shapes, density) == pytest.approx(dict.fromkeys(shapes, density))


def test_uniform_layers_make_up_for_those_that_stay_dense() -> None:
    shapes = {"first": (10, 10), "hidden": (30, 10), "other": (20, 10)}
    found = uniform_densities(shapes, 0.5, dense=["first"])
    # 300 of 600 stay: 100 in the first, 200 of the 500 others.
    assert found == pytest.approx({"first": 1.0, "hidden": 0.4, "other": 0.4})


@pytest.mark.parametrize("formula", [uniform_densities, erk_densities])
def test_everything_stays_at_density_one(formula) -> None:  # noqa: ANN001
    shapes = {"a": (7, 3), "b": (11,), "c": (64, 3, 3, 3)}
    assert formula(shapes, 1.0) == dict.fromkeys(shapes, 1.0)
    assert formula(shapes, 1.0, dense=list(shapes)) == dict.fromkeys(shapes, 1.0)


@pytest.mark.parametrize("formula", [uniform_densities, erk_densities])
@pytest.mark.parametrize(
    ("shapes", "density", "dense", "message"),
    [
        ({"a": (2, 2)}, 0.0, (), "above 0 and at most 1"),
        ({"a": (2, 2)}, 1.5, (), "above 0 and at most 1"),
        ({"a": (2, 2)}, math.nan, (), "above 0 and at most 1"),
        ({"a": (2, 2)}, -0.1, (), "above 0 and at most 1"),
        ({}, 0.5, (), "give {name: shape}"),
        ({"a": (2, 0)}, 0.5, (), "holds no weights"),
        ({"a": ()}, 0.5, (), "holds no weights"),
        ({"a": (2, 2)}, 0.5, ("b",), "'b' is to stay dense and is not among"),
        ({"a": (2, 2), "b": (2, 2)}, 0.4, ("a",), "name fewer of them or raise the density"),
        ({"a": (2, 2), "b": (2, 2)}, 0.5, ("a",), "name fewer of them or raise the density"),
        ({"a": (2, 2)}, 0.5, ("a",), "name fewer of them or raise the density"),
    ],
)
def test_what_cannot_be_spread_is_refused(formula, shapes, density, dense, message) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        formula(shapes, density, dense=dense)


# --- whole numbers --------------------------------------------------------------------------------


@given(shapes=SHAPES, density=DENSITIES, floor=st.floats(0, 1), data=st.data())
def test_counts_add_up_to_the_weight_between_floor_and_size(
    shapes: dict[str, tuple[int, ...]], density: float, floor: float, data: st.DataObject
) -> None:
    sizes = sizes_of(shapes)
    least = {name: max(1, math.ceil(Fraction(floor) * size)) for name, size in sizes.items()}
    total = data.draw(st.integers(sum(least.values()), sum(sizes.values())))
    counts = exact_counts(shapes, erk_densities(shapes, density), total=total, floor=floor)
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == total
    # A floor within 1e-9 of a whole number is that number: 0.07 * 100 is 7 and not 8.
    assert all(least[n] - 1 <= counts[n] <= sizes[n] for n in shapes)
    assert all(counts[n] >= max(1, floor * sizes[n] - 1e-6) for n in shapes)


@given(shapes=SHAPES, data=st.data())
def test_counts_are_the_densities_rounded_to_the_largest_remainders(
    shapes: dict[str, tuple[int, ...]], data: st.DataObject
) -> None:
    sizes = sizes_of(shapes)
    # Quarters of the size are exact in floats, and leave no layer empty.
    quarters = {n: data.draw(st.integers(min(4, -(-4 // s)), 4), label=n) for n, s in sizes.items()}
    exact = {name: Fraction(quarters[name] * size, 4) for name, size in sizes.items()}
    total = round(sum(exact.values()))
    if any(share < 1 for share in exact.values()):
        return
    expected = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(shapes, key=lambda name: expected[name] - exact[name])
    for name in by_remainder[: total - sum(expected.values())]:
        expected[name] += 1
    assert exact_counts(shapes, {n: q / 4 for n, q in quarters.items()}) == expected


@given(shapes=SHAPES, density=DENSITIES)
def test_where_nothing_is_in_the_way_a_count_is_within_one_of_its_share(
    shapes: dict[str, tuple[int, ...]], density: float
) -> None:
    sizes = sizes_of(shapes)
    densities = erk_densities(shapes, density)
    if any(densities[name] * size < 1 for name, size in sizes.items()):
        return
    counts = exact_counts(shapes, densities)
    wanted = density * sum(sizes.values())
    # Half a weight between two counts: which of the two the sum of products rounds to is chance.
    halves = abs(wanted % 1 - 0.5) < 1e-6
    assert sum(counts.values()) in (
        (math.floor(wanted), math.ceil(wanted)) if halves else (round(wanted),)
    )
    assert all(abs(counts[n] - densities[n] * sizes[n]) < 1 + 1e-6 for n in shapes)


def test_equal_remainders_go_to_the_first_layers() -> None:
    shapes = {"z": (3,), "a": (3,), "m": (3,)}
    assert exact_counts(shapes, dict.fromkeys(shapes, 0.5), total=5) == {"z": 2, "a": 2, "m": 1}
    assert exact_counts(shapes, dict.fromkeys(shapes, 0.5), total=4) == {"z": 2, "a": 1, "m": 1}


def test_what_floors_take_comes_from_all_others_in_proportion() -> None:
    shapes = {"wide": (10_000,), "middle": (1_000,), "small": (1_000,)}
    densities = {"wide": 0.05, "middle": 0.5, "small": 0.2}
    # Of 1200 the wide one asks for 500 and gets 800; the 700 others are to be 400: 4/7 of them.
    counts = exact_counts(shapes, densities, floor=0.08)
    assert counts == {"wide": 800, "middle": 286, "small": 114}


def test_a_larger_total_scales_densities_up_to_one() -> None:
    shapes = {"a": (100,), "b": (100,), "c": (100,)}
    densities = {"a": 0.1, "b": 0.2, "c": 0.6}
    # Twice: 20 + 40 + 100 = 160, where 0.6 has become 1.
    assert exact_counts(shapes, densities, total=160) == {"a": 20, "b": 40, "c": 100}
    # Layers of density 0 come last.
    assert exact_counts(shapes, {"a": 0.0, "b": 0.1, "c": 0.1}, total=220)["a"] == 20


@given(
    sizes=st.lists(st.integers(1, 10**12), min_size=1, max_size=300),
    power=st.floats(-12, 0),
    floor=st.floats(0, 1),
    part=st.floats(0, 1),
)
def test_many_and_huge_layers_are_counted_exactly_too(
    sizes: list[int], power: float, floor: float, part: float
) -> None:
    shapes = {str(place): (size,) for place, size in enumerate(sizes)}
    least = sum(least_counts(shapes, floor).values())
    total = least + math.floor(Fraction(part) * (sum(sizes) - least))
    counts = exact_counts(shapes, dict.fromkeys(shapes, 10**power), total=total, floor=floor)
    assert sum(counts.values()) == total
    assert all(1 <= counts[str(place)] <= size for place, size in enumerate(sizes))


@pytest.mark.parametrize(
    ("densities", "total", "floor", "message"),
    [
        ({"a": 0.5}, None, 0.0, "'b' has no density"),
        ({"a": 0.5, "b": math.nan}, None, 0.0, "the density of 'b' is nan; give a share"),
        ({"a": 0.5, "b": 1.01}, None, 0.0, "the density of 'b' is 1.01; give a share"),
        ({"a": -0.5, "b": 0.5}, None, 0.0, "the density of 'a' is -0.5; give a share"),
        ({"a": 0.5, "b": 0.5}, 1, 0.0, "raise the density or lower the floor"),
        ({"a": 0.5, "b": 0.5}, -1, 0.0, "raise the density or lower the floor"),
        ({"a": 0.1, "b": 0.1}, 11, 0.6, "raise the density or lower the floor"),
        ({"a": 0.5, "b": 0.5}, 21, 0.0, "there are 20: lower the total"),
        ({"a": 0.5, "b": 0.5}, None, 1.5, "give a density from 0 to 1"),
        ({"a": 0.5, "b": 0.5}, None, math.nan, "give a density from 0 to 1"),
    ],
)
def test_impossible_counts_are_refused(densities, total, floor, message) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        exact_counts({"a": (10,), "b": (2, 5)}, densities, total=total, floor=floor)


def test_no_layer_is_emptied() -> None:
    counts = exact_counts({"a": (1000,), "b": (2,)}, {"a": 0.01, "b": 0.0}, total=10)
    assert counts == {"a": 9, "b": 1}


def test_a_floor_that_is_whole_but_for_rounding_is_that_number() -> None:
    assert 0.07 * 100 > 7
    assert least_counts({"a": (100,), "b": (3, 3), "c": (1,)}, 0.07) == {"a": 7, "b": 1, "c": 1}


def test_a_density_says_what_it_is_the_density_of() -> None:
    check_density(1.0)
    with pytest.raises(ValueError, match="the density of x is 90; .*a density is 1 - sparsity"):
        check_density(90, "the density of x")
