"""The tables of the comparison of treatments: which setting of each is taken."""

from benchmarks.papers.arms import OTHER_ARMS, OTHERS
from benchmarks.papers.treatment_tables import ARMS, best, family, table


def row(arm: str, late: float, seed: int = 1) -> dict:
    shares = {tau: [0.1, 0.2, 0.3] for tau in ("0.0", "0.025", "0.1")}
    return {
        "arm": arm,
        "seed": seed,
        "online_accuracy": [0.9, 0.9, late, late],
        "dormant": shares,
        "recycled": 3,
        "seconds": 1.0,
    }


def test_the_best_setting_of_each_treatment_is_that_with_the_highest_late_accuracy():
    rows = [
        row("base", 0.99),
        row("redo zero", 0.7),
        row("redo zero 0.1", 0.6, 1),
        row("redo zero 0.1", 0.9, 2),
        row("layer reset 1", 0.5),
        row("layer reset 2", 0.4),
    ]
    assert best(rows) == {"redo zero": "redo zero 0.1", "layer reset": "layer reset 1"}


def test_every_treatment_has_its_arms_and_a_table_shows_those_that_were_run():
    families = {family(arm) for arm in OTHER_ARMS}
    assert {"continual backprop", "regrama", "shrink and perturb", "l2 init"} <= families
    assert set(OTHERS) <= set(ARMS) and len(ARMS) == len(set(ARMS))
    lines = table([row("base", 0.5), row("base", 0.7, 2)], ARMS).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| base | 2 | 90.0 ± 0.0 | 60.0 ± 10.0 | 10.0 ± 0.0 |")
