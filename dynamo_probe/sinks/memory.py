"""Readings in memory: what `watch.history` is."""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynamo_probe.instrument import Reading
from dynamo_probe.sinks.sink import settled
from dynamo_probe.thinning import Thinning

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_NO_COUNT = -1  # stands for samples=None in an integer array


class _Series:
    """The points of one scalar tag, 24 bytes each."""

    __slots__ = ("columns", "samples", "steps", "thinning", "values")

    def __init__(self, capacity: int) -> None:
        self.steps = array("q")
        self.values = array("d")
        self.samples = array("q")
        self.columns = (self.steps, self.values, self.samples)
        self.thinning = Thinning(capacity)


class History:
    """The readings of a run in memory, bounded.

    A scalar tag keeps at most `capacity` points. When it is full every second point goes, and from
    then on only every second reading is kept, and so on: the first and the newest reading are
    always there and the others are evenly spaced over the run (see `Thinning`). Of a tag with one
    figure per unit only the newest reading is kept. Not safe to use from several threads.

    Args:
        capacity: the most points a scalar tag keeps, at least 2; a point takes 24 bytes.

    Raises:
        ValueError: when `capacity < 2`.

    Example:
        >>> history = History()
        >>> history.add(Reading(step, "dormancy/tau=0.1", step / 100) for step in (10, 20))
        >>> history.series("dormancy/tau=0.1")
        (array([10, 20]), array([0.1, 0.2]))
    """

    def __init__(self, capacity: int = 20_000) -> None:
        """Start empty."""
        Thinning(capacity)  # refuses a capacity that cannot be meant, now and not at a reading
        self._capacity = capacity
        self._scalars: dict[str, _Series] = {}
        self._vectors: dict[str, Reading] = {}

    def add(self, readings: Iterable[Reading]) -> None:
        """Take readings, each tag's in the order of its updates. Values are copied.

        Raises:
            TypeError: when a value is neither a real number nor a real array.
            ValueError: when a tag held one figure and now holds one per unit, or the reverse.
        """
        for reading in readings:
            if type(reading.value) is not float:  # a plain float has nothing to be copied
                reading = settled(reading)
            tag, value = reading.tag, reading.value
            if tag in (self._scalars if isinstance(value, np.ndarray) else self._vectors):
                raise ValueError(
                    f"tag {tag!r} holds both one figure and one figure per unit; use two tags"
                )
            if isinstance(value, np.ndarray):
                self._vectors[tag] = reading
                continue
            series = self._scalars.get(tag)
            if series is None:
                series = self._scalars[tag] = _Series(self._capacity)
            samples = _NO_COUNT if reading.samples is None else int(reading.samples)
            series.thinning.append(series.columns, (int(reading.step), value, samples))

    def tags(self) -> list[str]:
        """Return every tag that has been read, sorted."""
        return sorted([*self._scalars, *self._vectors])

    def series(self, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the updates and the values of a tag.

        Returns:
            `(steps, values)`: int64 `[points]` and float64 `[points]`; for a tag with one figure
            per unit, where only the newest reading is kept, int64 `[1]` and float64 `[1, units]`.

        Raises:
            KeyError: when nothing was read under this tag; the message names similar tags.
        """
        if tag in self._vectors:
            reading = self._vectors[tag]
            values = np.array(reading.value, dtype=np.float64)[None]
            return np.array([reading.step], dtype=np.int64), values
        series = self._find(tag)
        return np.array(series.steps, dtype=np.int64), np.array(series.values, dtype=np.float64)

    def latest(self, tag: str) -> float | np.ndarray:
        """Return the newest value: a float, or a read-only array `[units]`.

        Raises:
            KeyError: when nothing was read under this tag; the message names similar tags.
        """
        if tag in self._vectors:
            return self._vectors[tag].value
        return self._find(tag).values[-1]

    def samples(self, tag: str) -> int | None:
        """Return how many samples the newest value was computed from; None where meaningless.

        Raises:
            KeyError: when nothing was read under this tag; the message names similar tags.
        """
        if tag in self._vectors:
            return self._vectors[tag].samples
        count = self._find(tag).samples[-1]
        return None if count == _NO_COUNT else count

    def to_pandas(self) -> pandas.DataFrame:
        """Return the scalar readings as a table, a row each, sorted by tag and then by update.

        Returns:
            A `DataFrame` with the columns `step` (int64), `tag`, `value` (float64) and `samples`
            (nullable Int64). Readings with one figure per unit are left out: see `latest`.

        Raises:
            ImportError: when pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_pandas() needs pandas; install it (pip install pandas), "
                "or use series(tag), which returns NumPy arrays"
            ) from error
        tags = sorted(self._scalars)
        columns = [self._scalars[tag].columns for tag in tags]
        samples = np.array([n for _, _, counts in columns for n in counts], dtype=np.int64)
        return pandas.DataFrame(
            {
                "step": np.array([n for steps, _, _ in columns for n in steps], dtype=np.int64),
                "tag": [t for t, (steps, _, _) in zip(tags, columns, strict=True) for _ in steps],
                "value": np.array([x for _, values, _ in columns for x in values], dtype=float),
                "samples": pandas.arrays.IntegerArray(samples, samples == _NO_COUNT),
            }
        )

    def plot(
        self,
        tags: str | Iterable[str] | None = None,
        ax: Axes | None = None,
        *,
        logx: bool = False,
    ) -> Axes:
        """Draw series over updates; needs matplotlib (the extra `report`).

        Args:
            tags: a tag, several, or patterns such as `"dormancy/layer/*"` (`*`, `?` and `[...]`,
                over slashes too), which mean tags with one figure; None means the pooled figures,
                whose tags have one slash.
            ax: where to draw; None means the current axes of pyplot.
            logx: whether updates are on a logarithmic axis.

        Returns:
            The axes: a line for each tag, in the order given, labels and a legend.

        Raises:
            KeyError: when nothing was read under a tag, or none matches a pattern.
            ValueError: when there is nothing to draw, or a tag has one figure per unit.
            ModuleNotFoundError: when matplotlib is not installed.
        """
        from dynamo_probe.display import plot

        return plot.draw(self, tags, ax, logx=logx)

    def state_dict(self) -> dict[str, Any]:
        """Return all readings as tensors and plain values (`torch.load(weights_only=True)`)."""
        return {
            "scalars": {
                tag: {
                    "steps": torch.from_numpy(np.array(series.steps, dtype=np.int64)),
                    "values": torch.from_numpy(np.array(series.values, dtype=np.float64)),
                    "samples": torch.from_numpy(np.array(series.samples, dtype=np.int64)),
                    "count": series.thinning.count,
                    "stride": series.thinning.stride,
                }
                for tag, series in self._scalars.items()
            },
            "vectors": {
                tag: {
                    "step": reading.step,
                    "value": torch.from_numpy(np.array(reading.value)),
                    "samples": reading.samples,
                }
                for tag, reading in self._vectors.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what is held by what `state_dict` gave; thinned further if it does not fit.

        Raises:
            ValueError: when `state` did not come from `state_dict`; nothing is changed then.
        """
        scalars: dict[str, _Series] = {}
        vectors: dict[str, Reading] = {}
        try:
            for tag, held in state["scalars"].items():
                series = scalars[tag] = _Series(self._capacity)
                series.steps.extend(held["steps"].tolist())
                series.values.extend(held["values"].tolist())
                series.samples.extend(held["samples"].tolist())
                series.thinning.count, series.thinning.stride = held["count"], held["stride"]
                series.thinning.fit(series.columns)
            for tag, held in state["vectors"].items():
                value = held["value"].numpy()
                vectors[tag] = settled(Reading(held["step"], tag, value, held["samples"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"this is not a history's state ({error}); give what History.state_dict() returned"
            ) from error
        self._scalars, self._vectors = scalars, vectors

    def beginnings(self) -> dict[int, list[str]]:
        """Return the scalar tags by the update of their first reading, in order."""
        found: dict[int, list[str]] = {}
        for tag, series in self._scalars.items():
            found.setdefault(series.steps[0], []).append(tag)
        return dict(sorted(found.items()))

    def __len__(self) -> int:
        """Return the number of readings held."""
        return sum(len(series.steps) for series in self._scalars.values()) + len(self._vectors)

    def __contains__(self, tag: object) -> bool:
        """Return whether anything was read under this tag."""
        return tag in self._scalars or tag in self._vectors

    def __repr__(self) -> str:
        """Say how much is held, and of which updates."""
        if not len(self):
            return "History(empty)"
        ends = [(series.steps[0], series.steps[-1]) for series in self._scalars.values()]
        ends += [(reading.step, reading.step) for reading in self._vectors.values()]
        first, last = min(end[0] for end in ends), max(end[1] for end in ends)
        tags = len(self._scalars) + len(self._vectors)
        return f"History({len(self)} readings of {tags} tags, updates {first} to {last})"

    def _repr_html_(self) -> str:
        """Show it in a notebook: a row for each tag, with a curve."""
        from dynamo_probe.display import html

        return html.of_history(self)

    def __rich__(self) -> object:
        """Show it in a terminal: `rich.print(watch.history)`."""
        from dynamo_probe.display import table

        return table.of_history(self)

    def _find(self, tag: str) -> _Series:
        series = self._scalars.get(tag)
        if series is None:
            near = difflib.get_close_matches(tag, self.tags(), n=3, cutoff=0.5)
            if near:
                hint = "did you mean " + " or ".join(map(repr, near)) + "?"
            elif len(self):
                hint = "tags() lists what was"
            else:
                hint = "nothing was read at all so far"
            raise KeyError(f"nothing was read under {tag!r}; {hint}")
        return series
