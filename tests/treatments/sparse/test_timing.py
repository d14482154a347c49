"""The times of mask updates, against a walk over all updates."""

from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe import Every
from dynamo_probe.treatments.sparse.timing import MaskUpdates


@given(
    n=st.integers(1, 20),
    start=st.integers(0, 30),
    length=st.none() | st.integers(0, 60),
    also=st.lists(st.integers(-2, 90), max_size=5),
)
def test_masks_change_at_the_schedules_updates_and_at_those_that_belong_to_it(
    n: int, start: int, length: int | None, also: list[int]
) -> None:
    end = None if length is None else start + length
    times = MaskUpdates(Every(n, start, end), also)
    expected = {u for u in range(1, 101) if u % n == 0 and u >= start and (not end or u <= end)}
    if end == 0:
        expected = set()
    expected |= {update for update in also if update > 0}
    found, update = [], 0
    while (following := times.after(update)) is not None and following <= 100:
        found.append(following)
        update = following
    assert found == sorted(expected)


def test_what_was_put_off_is_due_at_once_and_then_the_schedule_goes_on() -> None:
    times = MaskUpdates(Every(10), [25])
    assert times.after(10) == 20
    times.put_off = True
    assert (times.after(10), times.after(11)) == (11, 12)
    times.put_off = False
    assert [times.after(update) for update in (12, 20, 25)] == [20, 25, 30]
    assert str(times) == "every 10 updates"
