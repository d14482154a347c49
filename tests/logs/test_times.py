"""When a log is written: sums over made-up runs."""

from __future__ import annotations

import pytest

from dynamo_probe.logs.times import WriteTimes


def written(seconds: int, size: int) -> list[int]:
    times, found = WriteTimes(), []
    for now in range(1000, 1000 + seconds):
        if times.due(float(now)):
            times.written(float(now), size)
            found.append(now - 1000)
    return found


def test_small_logs_lose_a_twentieth_of_the_run_at_most() -> None:
    found = written(100_000, 100)
    assert found[0] == 0
    for before, after in zip(found, found[1:], strict=False):
        assert after - before <= max(5, 0.05 * before + 1)
        assert after - before >= 5
    assert len(found) < 200  # ln(1,000) / ln(1.05) = 142, and the first ones


@pytest.mark.parametrize("size", [10_000, 100_000, 1_000_000])
def test_large_logs_are_written_at_500_bytes_a_second_at_most(size: int) -> None:
    found = written(50_000, size)
    assert (len(found) - 1) * size <= 500 * 50_000
    gaps = [after - before for before, after in zip(found, found[1:], strict=False)]
    assert min(gaps) == max(5, size // 500)
