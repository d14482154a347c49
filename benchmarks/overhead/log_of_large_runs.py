"""What the log of a large run costs: `python -m benchmarks.overhead.log_of_large_runs`.

200 layers of 4,096 units, 10,000 readings. Time is made up, a reading every `--seconds`, so that
writes lie where they would in such a run. Printed are the size of the log, the processor time of
recording and packing as a share of the run, and how long the first views take from the bytes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np

from dynamo_probe.instrument import Reading
from dynamo_probe.logs.as_json import plain
from dynamo_probe.logs.recording import Recording
from dynamo_probe.logs.runlog import packed, unpacked
from dynamo_probe.logs.times import WriteTimes
from dynamo_probe.logs.units_view import raster
from dynamo_probe.logs.views import view


def scores_of_run(layers: int, units: int, readings: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (number, scores of each layer): each changes by about a third between two readings."""
    random = np.random.default_rng(0)
    base = [random.exponential(1.0, units) for _ in range(layers)]
    noise = [random.lognormal(0.0, 0.3, units) for _ in range(97)]
    for step in range(1, readings + 1):
        yield step, [x * noise[(step * 31 + n) % len(noise)] for n, x in enumerate(base)]


def readings_of(step: int, scores: list[np.ndarray]) -> list[Reading]:
    found = [Reading(step, f"dormancy/scores/blocks.{n}", x) for n, x in enumerate(scores)]
    for tau in (0.0, 0.025, 0.1):
        found += [
            Reading(step, f"dormancy/layer/blocks.{n}/tau={tau}", float((x <= tau).mean()))
            for n, x in enumerate(scores)
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--readings", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="between two readings")
    options = parser.parse_args()
    recording, times = Recording(), WriteTimes()
    written, adding, packing, raw = [], 0.0, 0.0, b""
    for step, scores in scores_of_run(options.layers, options.units, options.readings):
        readings, now = readings_of(step, scores), step * options.seconds
        started = time.process_time()
        recording.add(step, readings, [], 1e9 + now)
        adding += time.process_time() - started
        if times.due(now) or step == options.readings:
            started = time.process_time()
            raw = packed(recording.log())
            packing += time.process_time() - started
            times.written(now, len(raw))
            written.append(len(raw))
    run = options.readings * options.seconds
    print(f"log: {sum(written) / 1e6:.1f} MB in {len(written)} writes, the last {len(raw):,} bytes")
    print(f"recording: {1e3 * adding / options.readings:.2f} ms a reading")
    print(f"recording and packing: {100 * (adding + packing) / run:.2f} % of {run:,.0f} s")
    started = time.perf_counter()
    log = unpacked(raw)
    opened = time.perf_counter() - started
    for name, make in (
        ("overview", lambda: view(log, "overview")),
        ("units", lambda: view(log, "units")),
        ("raster", lambda: raster(log, "blocks.7")),
    ):
        started = time.perf_counter()
        text = json.dumps(plain(make()))
        took = time.perf_counter() - started
        print(f"{name}: {took:.2f} s and {len(text) / 1e6:.2f} MB, after {opened:.2f} s to unpack")


if __name__ == "__main__":
    main()
