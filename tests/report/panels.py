"""Panels with known numbers, and logs to make reports of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.logs.panels import Axis, Bars, Grid, Line, Lines, Map, Mark, Panel, Raster, View
from dynamo_probe.sinks.tensorboard import TensorBoard

NAN = float("nan")
START = 1.7e9
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</title></style><b>&amp;&lt;",
    "../../etc/passwd",
    "層/слой/\U0001f9e0",
    "שלום \u202e fc1 \u2066",
    "x" * 10_000,
    "\x00\x01\x08\x0b\x1f\x7f\x85\ufffe\ud800 \U0010ffff",
    "a\nb\tc\r\n",
    "$\\frac{1}{0$",
    "_begins_with_one",
    "",
)


def axis(*updates: float, clock: str = "environment steps") -> Axis:
    """An axis with wall time of an hour an update, and a clock of four an update."""
    steps = np.array(updates, dtype=np.int64)
    clocked = steps * 4.0
    return {"updates": steps, "wall": START + steps * 3600.0, clock: clocked}


def mark(label: str, update: float) -> Mark:
    return Mark(label, {name: float(x[0]) for name, x in axis(update).items()})


def lines(name: str = "fc1", title: str = "Loss") -> Lines:
    return Lines(
        "loss",
        title,
        "loss (nats)",
        (
            Line(name, axis(0, 10, 20, 30), np.array([4.0, NAN, 1.0, 2.0])),
            Line("target", axis(0, 30), np.array([3.0, 3.5]), "dashed"),
        ),
        help="Lower is better.",
        marks=(mark("recycled", 20),),
    )


def heat(name: str = "fc1", title: str = "Dormant") -> Map:
    values = np.array([[0.0, 0.5, 1.0], [NAN, 0.25, 0.75]], np.float32)
    marks = (mark("alert", 10),)
    rows = (name, "fc2")
    return Map(
        "dormant", title, rows, "layer", axis(0, 10, 100), values, "fraction", (0, 1), "", marks
    )


def raster(title: str = "Units") -> Raster:
    codes = np.array([[0, 1, 2, 3], [3, 254, 254, 254], [255, 2, 1, 0]], np.uint8)
    recycled = np.array([[0, 10], [2, 20]])
    units = np.array([3, 5, 7])
    times = axis(0, 10, 20, 30)
    return Raster("raster", title, units, 9, times, codes, (0.0, 0.1, 0.5), recycled)


def grid(row: str = "layer 0", count: int = 9) -> Grid:
    frames = np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2) / (count * 4)
    frames[0, 1, 1] = NAN
    times = axis(*(2**place - 1 for place in range(count)))
    rows, columns = (row, "layer 1"), ("head 0", "head 1")
    return Grid("prefix", "Prefix", rows, columns, times, frames, "mass", (0.0, 1.0))


def bars(name: str = "1") -> Bars:
    return Bars("repeats", "Repeats", "share", "times", (name, "2", "4"), np.array([0.5, 0.3, 0.2]))


def all_panels(name: str = "fc1", title: str = "A title") -> list[Panel]:
    return [lines(name, title), heat(name, title), raster(title), grid(name), bars(name)]


def views(name: str = "fc1", title: str = "A title") -> list[View]:
    alert = {"update": 650, "kind": "alert", "subject": name, "text": f"{name} is too high"}
    return [
        View("heads", (grid(name), bars(name))),
        View("overview", (lines(name, title),), (f"31 % of {name} dormant.",), (alert,)),
        View("connections", empty=f"No connections were recorded in {name}: add dp.Topology()."),
        View("units", (heat(name, title), raster(title)), taus=(0.0, 0.1, 0.5), tau=0.1),
    ]


def write_log(folder: Path, layer: str = "fc1", updates: int = 6) -> None:
    """Write a log with four units: at update n, units 0 to n - 1 are dormant at any threshold."""
    sink = TensorBoard(folder)
    for step in range(1, updates + 1):
        scores = (np.arange(4) >= min(step, 4)).astype(np.float64)
        readings = [Reading(step, f"dormancy/scores/{layer}", scores)]
        readings.append(Reading(step, "dormancy/overlap", step / 10))
        sink.write(step, readings, [Event(step, "alert", layer, {"reason": "high"})])
    sink.close()
