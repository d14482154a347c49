"""The bytes of a log: they come back as they were, and damage is refused."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynamo_probe.logs.runlog import RunLog, Series, UnitLog, Unreadable, packed, unpacked, writers

names = st.text(min_size=1, max_size=30)
figures = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def series(draw: st.DrawFn, dtype: type = np.float64, width: int | None = None) -> Series:
    points = draw(st.integers(0, 6))
    shape = (points,) if width is None else (points, width)
    elements = figures if dtype is np.float64 else None
    return Series(
        np.sort(draw(hnp.arrays(np.int64, points, elements=st.integers(0, 2**40)))),
        draw(hnp.arrays(np.float64, points, elements=st.floats(0, 2e9))),
        draw(hnp.arrays(dtype, shape, elements=elements)),
    )


@st.composite
def layers(draw: st.DrawFn) -> UnitLog:
    shown = draw(st.integers(1, 5))
    return UnitLog(
        of=draw(st.integers(shown, 9)),
        counts=draw(series(np.int32, 4)),
        shown=np.arange(shown),
        codes=draw(series(np.uint8, shown)),
    )


@st.composite
def logs(draw: st.DrawFn) -> RunLog:
    return RunLog(
        step=draw(st.integers(0, 2**40)),
        wall=draw(st.floats(0, 2e9)),
        started=draw(st.floats(0, 2e9)),
        taus=tuple(draw(st.lists(st.floats(0, 2), max_size=4))),
        series=draw(st.dictionaries(names, series(), max_size=5)),
        arrays=draw(st.dictionaries(names, series(np.float32, 3), max_size=2)),
        units=draw(st.dictionaries(names, layers(), max_size=3)),
        recycled={"a": np.array([[1, 2], [3, 4]])},
        events=[{"step": 1, "kind": "alert", "subject": draw(names), "detail": {"x": 1.5}}],
        writer=draw(names),
        earlier=tuple(draw(st.lists(names, max_size=2))),
    )


def same(left: object, right: object) -> bool:
    if isinstance(left, Series) and isinstance(right, Series):
        return all(
            np.array_equal(a, b, equal_nan=a.dtype.kind == "f") and a.dtype == b.dtype
            for a, b in (
                (left.steps, right.steps),
                (left.walls, right.walls),
                (left.values, right.values),
            )
        )
    if isinstance(left, UnitLog) and isinstance(right, UnitLog):
        return (
            left.of == right.of
            and np.array_equal(left.shown, right.shown)
            and same(left.counts, right.counts)
            and same(left.codes, right.codes)
        )
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)  # type: ignore[arg-type]
    return left == right


@given(logs())
def test_a_log_comes_back_as_it_was(log: RunLog) -> None:
    raw = packed(log)
    back = unpacked(raw)
    for name in RunLog.__slots__:
        assert same(getattr(log, name), getattr(back, name)), name
    assert writers(raw) == [log.writer, *log.earlier]


@given(logs(), st.data())
def test_bytes_that_are_cut_short_are_refused(log: RunLog, data: st.DataObject) -> None:
    raw = packed(log)
    end = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(Unreadable):
        unpacked(raw[:end])


@given(st.binary(max_size=200))
def test_any_bytes_after_the_beginning_of_a_log_are_read_or_refused(noise: bytes) -> None:
    for raw in (noise, b"dynamo_probe log\n" + noise, b"dynamo_probe log\n\x01\x00" + noise):
        with pytest.raises(Unreadable):
            unpacked(raw)


def test_a_newer_format_is_refused_with_what_to_do() -> None:
    raw = packed(RunLog(1, 2.0, 1.0))
    newer = raw.replace(b"\n\x01\x00", b"\n\x02\x00", 1)
    with pytest.raises(Unreadable, match="format 2.*reads 1.*with the version that wrote it"):
        unpacked(newer)


def test_arrays_of_objects_are_never_made() -> None:
    raw = packed(RunLog(1, 2.0, 1.0, series={"a": Series(*(np.zeros(1),) * 3)}))
    start = raw.index(b"\x78\x01")
    body = zlib.decompress(raw[start:])
    end = 8 + int.from_bytes(body[:8], "little")
    head = body[8:end].replace(b'"<f8"', b'"|O"')
    forged = raw[:start] + zlib.compress(len(head).to_bytes(8, "little") + head + body[end:])
    with pytest.raises(Unreadable, match="objects"):
        unpacked(forged)


def test_equal_updates_are_kept_once() -> None:
    steps, walls = np.arange(1000), np.linspace(0, 1, 1000)
    one = {"a": Series(steps, walls, np.random.default_rng(0).random(1000))}
    many = {f"a{n}": Series(steps.copy(), walls.copy(), one["a"].values) for n in range(2)}
    single, double = (len(packed(RunLog(1, 2.0, 1.0, series=s))) for s in (one, many))
    assert double < single + 8_500  # one more column of values, and no more of the others
