"""Schedules against a naive walk over all updates; values against their formulas."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_probe import Every, LogSpaced
from dynamo_probe.schedule import Alternating, Constant, Cosine, Cubic, Value


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


# --- how much -------------------------------------------------------------------------------------

SPANS = st.tuples(st.integers(0, 500), st.integers(1, 1000)).map(lambda s: (s[0], s[0] + s[1]))
VALUES = st.floats(0, 1)


def test_a_constant_never_changes() -> None:
    value = Constant(0.3)
    assert [value.at(update) for update in (0, 1, 10**9)] == [0.3, 0.3, 0.3]
    assert str(value) == "0.3"


@given(initial=VALUES, final=VALUES, span=SPANS, update=st.integers(0, 2000))
def test_the_cubic_is_zhu_and_guptas_of_the_sparsity(
    initial: float, final: float, span: tuple[int, int], update: int
) -> None:
    start, end = span
    # s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 for t_0 <= t <= t_0 + n dt, exactly
    t = min(max(update, start), end)
    s_i, s_f = 1 - Fraction(initial), 1 - Fraction(final)
    sparsity = s_f + (s_i - s_f) * (1 - Fraction(t - start, end - start)) ** 3
    found = Cubic(initial, final, start, end).at(update)
    assert found == pytest.approx(float(1 - sparsity), abs=1e-12)


@given(initial=VALUES, final=VALUES, span=SPANS, update=st.integers(0, 2000))
def test_the_cosine_is_half_a_period(
    initial: float, final: float, span: tuple[int, int], update: int
) -> None:
    start, end = span
    # cos^2 of half the angle
    t = min(max(update, start), end)
    half = math.pi / 2 * (t - start) / (end - start)
    expected = final * math.sin(half) ** 2 + initial * math.cos(half) ** 2
    assert Cosine(initial, final, start, end).at(update) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [Cubic, Cosine])
@given(initial=VALUES, final=VALUES, span=SPANS)
def test_a_value_is_the_final_one_exactly_at_the_end_and_after(
    kind: type[Cubic] | type[Cosine], initial: float, final: float, span: tuple[int, int]
) -> None:
    start, end = span
    value = kind(initial, final, start, end)
    assert all(value.at(update) == final for update in (end, end + 1, 10**9))
    assert value.at(start) == value.at(0) == pytest.approx(initial, abs=1e-15)
    path = [value.at(update) for update in range(start, end + 1, max(1, (end - start) // 50))]
    steps = [after - before for before, after in zip(path, path[1:], strict=False)]
    assert all(step * (final - initial) >= -1e-12 for step in steps)


def test_granets_densities_by_hand() -> None:
    # From dense to 10 % in ten steps: 0.1 + 0.9 (1 - k/10)^3.
    value = Cubic(1.0, 0.1, start=100, end=1100)
    expected = [1.0, 0.7561, 0.5608, 0.4087, 0.2944, 0.2125, 0.1576, 0.1243, 0.1072, 0.1009, 0.1]
    assert [value.at(100 + 100 * k) for k in range(11)] == pytest.approx(expected)


PHASES = st.builds(
    lambda start, length, low, high: Alternating(1.0, 0.25, start, start + length, low, high),
    st.integers(0, 40), st.integers(1, 120), st.integers(1, 25), st.integers(1, 25),
)  # fmt: skip


@given(phases=PHASES)
def test_phases_alternate_low_first_and_end_low(phases: Alternating) -> None:
    # Written out, phase after phase.
    written = [1.0] * phases.start
    while len(written) < phases.end:
        written += [0.25] * phases.low_for + [1.0] * phases.high_for
    written = written[: phases.end] + [0.25] * 60
    assert [phases.at(update) for update in range(len(written))] == written
    before = [1.0, *written]
    changes = [update for update, value in enumerate(written) if value != before[update]]
    assert phases.changes() == changes


@pytest.mark.parametrize("make", [
    lambda start, end: Cubic(1.0, 0.1, start, end),
    lambda start, end: Cosine(1.0, 0.1, start, end),
    lambda start, end: Alternating(1.0, 0.1, start, end, 5, 5),
])  # fmt: skip
def test_a_span_that_is_none_is_refused(make) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=r"end \(10\) has to lie after start \(10\)"):
        make(10, 10)
    with pytest.raises(ValueError, match="start is update -1; give 0 or more"):
        make(-1, 10)


@pytest.mark.parametrize(("low", "high"), [(0, 5), (5, 0), (-1, 5)])
def test_a_phase_without_length_is_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="the phases last .* give 1 or more"):
        Alternating(1.0, 0.1, 0, 100, low, high)


def test_values_say_what_they_do() -> None:
    assert str(Cubic(1.0, 0.05, 0, 300)) == "1 to 0.05, cubic from update 0 to 300"
    assert str(Cosine(0.5, 0.0, 10, 90)) == "0.5 to 0, cosine from update 10 to 90"
    assert "alternating 0.1 for 5 updates and 1 for 7, 0.1 from 100 on" in str(
        Alternating(1.0, 0.1, 0, 100, 5, 7)
    )
    assert all(isinstance(value, Value) for value in (Constant(1), Cubic(1, 0, 0, 1)))
