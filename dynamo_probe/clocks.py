"""Other ways to count time beside updates: environment steps, tokens, epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from dynamo_probe.instrument import Reading
from dynamo_probe.logs.choosing import PREFIX


class Clocks:
    """Reads the run's clocks at every update that has readings, so that these can be placed."""

    def __init__(
        self, clocks: Mapping[str, Callable[[], float]] | None, tell: Callable[[str, str], None]
    ) -> None:
        """Take the clocks.

        Args:
            clocks: {name: returns the time}; None for none.
            tell: called once with the name of a clock that fails, and why.

        Raises:
            TypeError: when one of them cannot be called.
            ValueError: when one has a name that stands for something else.
        """
        self._clocks = dict(clocks or {})
        self._tell = tell
        for name, clock in self._clocks.items():
            if not callable(clock):
                raise TypeError(
                    f"the clock {name!r} is a {type(clock).__name__}; give a function that returns "
                    "the time, such as lambda: env_steps"
                )
            if name in ("updates", "wall", ""):
                raise ValueError(f"a clock cannot be called {name!r}; give another name")

    def readings(self, step: int) -> list[Reading]:
        """Return what the clocks say at an update; one that fails is not asked again."""
        found = []
        for name, clock in list(self._clocks.items()):
            try:
                time = float(clock())
                if not math.isfinite(time):
                    raise ValueError(f"it says {time}")
            except Exception as error:
                del self._clocks[name]
                self._tell(f"{PREFIX}{name}", f"{type(error).__name__}: {error}")
                continue
            found.append(Reading(step, f"{PREFIX}{name}", time))
        return found
