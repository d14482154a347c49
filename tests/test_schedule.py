"""Schedules against a naive walk over all updates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe import Every, LogSpaced


def walk(schedule: Every | LogSpaced, last: int) -> list[int]:
    """All scheduled updates up to `last`, from one `after` to the next."""
    found, update = [], 0
    while (following := schedule.after(update)) is not None and following <= last:
        assert following > update
        found.append(following)
        update = following
    return found


@given(
    n=st.integers(1, 30),
    start=st.integers(0, 60),
    length=st.none() | st.integers(0, 80),
    first=st.booleans(),
    asked=st.integers(0, 150),
)
def test_every_equals_the_definition_tried_on_each_update(
    n: int, start: int, length: int | None, first: bool, asked: int
) -> None:
    end = None if length is None else start + length
    schedule = Every(n, start, end, first)

    def scheduled(update: int) -> bool:
        within = start <= update and (end is None or update <= end)
        return within and (update % n == 0 or (first and update == max(start, 1)))

    assert walk(schedule, 150) == [u for u in range(1, 151) if scheduled(u)]
    later = [u for u in range(asked + 1, 400) if scheduled(u)]
    assert schedule.after(asked) == (later[0] if later else None)


@given(per_decade=st.integers(1, 20), update=st.integers(0, 10**7))
def test_log_spaced_updates_are_the_rounded_powers_of_ten(per_decade: int, update: int) -> None:
    powers = {round(10 ** (k / per_decade)) for k in range(8 * per_decade + 1)}
    assert LogSpaced(per_decade).after(update) == min(p for p in powers if p > update)


@pytest.mark.parametrize("wrong", [0, -3])
def test_a_period_below_one_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="give 1 or more"):
        Every(wrong)
    with pytest.raises(ValueError, match="give 1 or more"):
        LogSpaced(wrong)
