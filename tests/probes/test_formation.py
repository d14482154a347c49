"""The update of a formation is that of the rise, and not that at which it was noticed."""

import numpy as np

from dynamo_probe.probes import formation
from dynamo_probe.probes.formation import Formation


def best_split(values: list[float]) -> int:
    """Return where to split a series for the least squared error, by trying all places."""
    errors = {
        k: np.var(values[:k]) * k + np.var(values[k:]) * (len(values) - k)
        for k in range(1, len(values))
    }
    return min(errors, key=lambda k: errors[k])


def test_a_slow_rise_is_dated_by_its_best_split_and_noticed_later() -> None:
    scores = [0.03, 0.03, 0.04, 0.03, 0.2, 0.22, 0.25, 0.27, 0.29, 0.31, 0.4]
    gaps = [0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 1.5, 1.6, 1.7, 1.7, 1.8]
    found, told = Formation(), []
    for index, (score, gap) in enumerate(zip(scores, gaps, strict=True)):
        step = 10 * (index + 1)
        if found.add(step, {"score": score, "gap": gap}, high=score > 0.3):
            told.append(step)
    assert told == [100]
    wanted = {"score": 10 * (best_split(scores[:10]) + 1), "gap": 10 * (best_split(gaps[:10]) + 1)}
    assert found.at == wanted == {"score": 50, "gap": 70}


def test_both_series_have_to_rise() -> None:
    found = Formation()
    for step in range(1, 40):
        high = step > 20
        assert not found.add(step, {"score": 0.9 if high else 0.0, "gap": 0.1 * (step % 2)}, high)
        assert found.at is None


def test_a_fall_is_no_formation() -> None:
    found = Formation()
    for step in range(1, 40):
        assert not found.add(step, {"score": 0.9 if step < 20 else 0.4}, True)


def test_what_formed_is_not_told_again_also_after_a_resume() -> None:
    found = Formation()
    for step in range(1, 20):
        found.add(step, {"score": float(step > 10)}, step > 10)
    assert found.at == {"score": 11}
    again = Formation()
    again.load_state_dict(found.state_dict())
    assert again.at == {"score": 11} and not again.add(20, {"score": 9.0}, True)


def test_a_long_series_is_thinned_and_still_dated(monkeypatch) -> None:
    monkeypatch.setattr(formation, "MOST", 64)
    found = Formation()
    for step in range(1, 1001):
        if found.add(step, {"score": float(step > 900) + 0.01 * (step % 2)}, step > 950):
            break
    assert found.at is not None and 900 < found.at["score"] <= 932
