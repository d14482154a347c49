"""A run as its log tells it, and the bytes that it is kept as.

The bytes are a header in JSON and one compressed block of arrays: reading them runs no code, and
bytes that were cut short, changed or made by a newer version are refused with the reason.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VERSION = 1
"""Of the format; logs of newer versions are refused."""

MOST_EVENTS = 500
"""Events that a log keeps; where there are as many, there were more."""

_MAGIC = b"dynamo_probe log\n"
_MOST = 1 << 30
"""Bytes that a log may unpack to; more is not ours."""


class Unreadable(ValueError):
    """Raised for bytes that are not a log that can be read; carries the reason."""


@dataclass(frozen=True, slots=True)
class Series:
    """A figure over time.

    Attributes:
        steps: the update of each reading, int64 `[points]`.
        walls: when it was read, float64 `[points]`, seconds since 1970.
        values: float64 `[points]`, or float32 `[points, numbers]`.
    """

    steps: np.ndarray
    walls: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class UnitLog:
    """The units of a layer over time.

    Attributes:
        of: how many units the layer has.
        counts: how many units have each code, int32 values `[points, codes]`: all units.
        shown: the indices of the units whose codes are kept, int64 `[shown]`.
        codes: uint8 values `[points, shown]`: the first threshold that the unit's score does not
            exceed; as many as there are thresholds where it exceeds all; 254 where the unit is
            pruned, 255 where its score is not finite.
    """

    of: int
    counts: Series
    shown: np.ndarray
    codes: Series


@dataclass(frozen=True, slots=True)
class RunLog:
    """All that the log of a run tells.

    Attributes:
        step: the newest update that it knows of.
        wall: when that was, seconds since 1970.
        started: when the first update was recorded.
        taus: thresholds of dormancy, ascending.
        series: single figures by tag.
        arrays: short arrays over time by tag.
        units: by layer.
        recycled: {layer: (update, unit) of each recycled unit, int64 `[recyclings, 2]`}.
        events: what was done or noticed, oldest first: `{"step", "kind", "subject", "detail"}`.
        writer: names the process that wrote it.
        earlier: the writers of the runs that it goes on from.
    """

    step: int
    wall: float
    started: float
    taus: tuple[float, ...] = ()
    series: dict[str, Series] = field(default_factory=dict)
    arrays: dict[str, Series] = field(default_factory=dict)
    units: dict[str, UnitLog] = field(default_factory=dict)
    recycled: dict[str, np.ndarray] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    writer: str = ""
    earlier: tuple[str, ...] = ()


class _Packer:
    """Collects arrays; equal ones are kept once."""

    def __init__(self) -> None:
        self.shapes: list[tuple[str, list[int]]] = []
        self.parts: list[bytes] = []
        self._known: dict[tuple[str, bytes], int] = {}

    def put(self, array: np.ndarray) -> int:
        array = np.ascontiguousarray(array)
        kind = array.dtype.newbyteorder("<").str
        raw = array.astype(kind, copy=False).tobytes()
        key = (f"{kind}{array.shape}", raw)
        if key not in self._known:
            self._known[key] = len(self.parts)
            self.shapes.append((kind, list(array.shape)))
            self.parts.append(raw)
        return self._known[key]

    def series(self, one: Series) -> list[int]:
        return [self.put(one.steps), self.put(one.walls), self.put(one.values)]


def packed(log: RunLog) -> bytes:
    """Return a log as bytes."""
    packer = _Packer()
    header: dict[str, Any] = {
        "version": VERSION,
        "step": log.step,
        "wall": log.wall,
        "started": log.started,
        "taus": list(log.taus),
        "events": log.events,
        "series": _by_steps(packer, log.series),
        "arrays": {tag: packer.series(one) for tag, one in log.arrays.items()},
        "units": {
            layer: [
                one.of,
                packer.put(one.shown),
                packer.series(one.counts),
                packer.series(one.codes),
            ]
            for layer, one in log.units.items()
        },
        "recycled": {layer: packer.put(pairs) for layer, pairs in log.recycled.items()},
    }
    header["shapes"] = packer.shapes
    head = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join([len(head).to_bytes(8, "little"), head, *packer.parts])
    signature = json.dumps([log.writer, *log.earlier]).encode()
    parts = [_MAGIC, VERSION.to_bytes(2, "little"), len(signature).to_bytes(4, "little")]
    return b"".join([*parts, signature, zlib.compress(body, 1)])


def writers(raw: bytes) -> list[str]:
    """Return who wrote a log, and the writers that it goes on from; unpacks nothing.

    Raises:
        Unreadable: when the bytes are not such a log, or one of a newer version.
    """
    return _signature(raw)[0]


def _signature(raw: bytes) -> tuple[list[str], int]:
    """Return who wrote a log, and where it begins."""
    start = len(_MAGIC)
    if raw[:start] != _MAGIC:
        raise Unreadable("this is not a log of dynamo_probe")
    version = int.from_bytes(raw[start : start + 2], "little")
    if version != VERSION:
        raise Unreadable(
            f"the log has format {version}, and this version of dynamo_probe reads {VERSION}; "
            "read it with the version that wrote it"
        )
    begin = start + 6
    end = begin + int.from_bytes(raw[start + 2 : begin], "little")
    try:
        return [str(one) for one in json.loads(raw[begin:end])], end
    except ValueError as error:
        raise Unreadable("the log is cut short or damaged") from error


def _by_steps(packer: _Packer, series: dict[str, Series]) -> list[Any]:
    """Put figures that were read at the same updates into one table each."""
    groups: dict[tuple[bytes, bytes], list[str]] = {}
    for tag, one in series.items():
        groups.setdefault((one.steps.tobytes(), one.walls.tobytes()), []).append(tag)
    return [
        [
            tags,
            packer.put(series[tags[0]].steps),
            packer.put(series[tags[0]].walls),
            packer.put(np.stack([series[tag].values for tag in tags])),
        ]
        for tags in groups.values()
    ]


def unpacked(raw: bytes) -> RunLog:
    """Return the log that bytes hold.

    Raises:
        Unreadable: when they are not such a log, or one of a newer version.
    """
    signed, start = _signature(raw)
    try:
        unzip = zlib.decompressobj()
        body = unzip.decompress(raw[start:], _MOST)
        if not unzip.eof:
            raise Unreadable("the log is cut short or damaged")
        end = 8 + int.from_bytes(body[:8], "little")
        header = json.loads(body[8:end])
        return _log(header, signed, _arrays(header["shapes"], memoryview(body)[end:]))
    except Unreadable:
        raise
    except Exception as error:  # whatever a damaged header leads to
        raise Unreadable(f"the log is damaged ({type(error).__name__}: {error})") from error


def _arrays(shapes: Iterable[tuple[str, list[int]]], body: memoryview) -> list[np.ndarray]:
    found, at = [], 0
    for kind, shape in shapes:
        dtype = np.dtype(kind)
        if dtype.hasobject:
            raise Unreadable("the log holds objects, which are never read")
        size = int(np.prod(shape, dtype=np.int64))
        found.append(np.frombuffer(body, dtype, size, at).reshape(shape))
        at += size * dtype.itemsize
    return found


def _log(header: dict[str, Any], signed: list[str], arrays: list[np.ndarray]) -> RunLog:
    def series(places: list[int]) -> Series:
        one = Series(*(arrays[place] for place in places))
        if not len(one.steps) == len(one.walls) == len(one.values):
            raise Unreadable("the log is damaged: columns differ in length")
        return one

    return RunLog(
        step=int(header["step"]),
        wall=float(header["wall"]),
        started=float(header["started"]),
        taus=tuple(map(float, header["taus"])),
        series={
            str(tag): Series(arrays[steps], arrays[walls], arrays[values][row])
            for tags, steps, walls, values in header["series"]
            for row, tag in enumerate(tags)
        },
        arrays={str(tag): series(places) for tag, places in header["arrays"].items()},
        units={
            str(layer): UnitLog(int(of), series(counts), arrays[shown], series(codes))
            for layer, (of, shown, counts, codes) in header["units"].items()
        },
        recycled={str(layer): arrays[place] for layer, place in header["recycled"].items()},
        events=list(header["events"]),
        writer=signed[0],
        earlier=tuple(signed[1:]),
    )
