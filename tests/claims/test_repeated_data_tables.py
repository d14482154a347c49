"""The tables of the runs on repeated data, on rows whose divisors are known."""

import math

import pytest

from benchmarks.papers import repeated_data_tables as tables

SIZES = {"d=16": 1_000, "d=32": 10_000, "d=64": 100_000}


def row(arm: str, seed: int, loss: float, matching: float = 0.5) -> dict:
    point = {
        "test": loss, "copy": loss, "random_copy": loss, "prefix_matching": [[0.1, matching]],
        "repeated": None, "update": 10,
    }  # fmt: skip
    earlier = {**point, "test": loss + 1, "update": 5}
    return {
        "arm": arm, "seed": seed, "size": SIZES[arm.split()[0]], "last": point, "formed": None,
        "curve": [earlier, point], "seconds": 1.0,
    }  # fmt: skip


ROWS = [
    *(
        row(arm, seed, loss + 0.1 * seed)
        for arm, loss in zip(SIZES, (4, 3, 2), strict=True)
        for seed in (0, 1)
    ),
    *(row("d=64 50% x100", seed, 2.55 + 0.2 * (seed - 0.5)) for seed in (0, 1)),
    *(row("d=64 50% unique", seed, 2.2 + 0.3 * seed) for seed in (0, 1)),
]
LOSS = tables.METRICS["test"]


def test_half_a_step_of_the_baseline_is_a_divisor_of_half_a_decade():
    # The baseline is 2.05 at 100,000 and 3.05 at 10,000; the arm's mean is 2.55.
    assert tables.damage(ROWS, "d=64 50% x100", LOSS) == "3.16 (2.51 to 3.98)"


@pytest.mark.parametrize(
    ("metric", "times", "text"),
    [(4.5, math.inf, "> 100.0"), (1.0, 0.0, "< 1.0"), (3.05, 10.0, "10.00")],
)
def test_what_is_outside_the_baseline_is_a_bound(metric, times, text):
    table = tables.baseline(ROWS, LOSS)
    found = tables.divisor(table, 100_000, metric)
    assert found == pytest.approx(times)
    assert tables.shown(found, table, 100_000) == text


def test_a_score_that_rises_with_the_size_is_worse_when_it_is_low():
    table = {1e3: 0.1, 1e4: 0.5, 1e5: 0.8}
    assert tables.divisor(table, 1e5, 0.05) == math.inf
    assert tables.divisor(table, 1e5, 0.9) == 0


def test_a_baseline_that_turns_gives_no_divisor():
    table = {1e3: 4.0, 1e4: 2.0, 1e5: 3.0}
    assert tables.shown(tables.divisor(table, 1e5, 2.5), table, 1e5) == "ambiguous"


def test_what_no_baseline_has_learned_has_no_divisor():
    matching = tables.METRICS["prefix matching"]
    assert tables.damage(ROWS, "d=64 50% x100", matching) == "no head in any baseline"
    learned = [{**one, "formed": 5 if one["arm"] == "d=64" else None} for one in ROWS]
    assert "no head" not in tables.damage(learned, "d=64 50% x100", matching)


def test_the_share_of_compute_is_read_off_the_baselines_own_curve():
    # 3.05 after 5 updates and 2.05 after 10; 2.55 is half way in the logarithm.
    assert tables.compute_lost(ROWS, "d=64 50% x100") == f"{100 * (1 - 0.5**0.5):.0f} %"


def test_the_control_is_subtracted_seed_by_seed():
    found = tables.differences(ROWS, "d=64 50% x100", "d=64 50% unique", LOSS)
    assert found == pytest.approx([2.45 - 2.2, 2.65 - 2.5])
    text = tables.table(ROWS, [*SIZES, "d=64 50% x100", "d=64 50% unique"])
    assert "| d=64 50% x100 - d=64 50% unique | 0.200 ± 0.050 |" in text
    assert "| d=64 50% unique - d=64 | 0.300 ± 0.100 |" in text
