"""Which demos there are. Nothing is imported before it runs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int], None]
"""Called with the number of updates made so far, over all runs of a demo."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A training that shows something.

    Attributes:
        name: what it is called on the command line.
        shows: what can be seen in its log, in a line.
        runs: how many runs it trains, one after the other.
        updates: of each run, by default.
    """

    name: str
    shows: str
    runs: int
    updates: int

    def run(
        self,
        log_dir: str | os.PathLike[str],
        *,
        seed: int = 0,
        updates: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Train, and write a log.

        Args:
            log_dir: where to; each run has a directory in it.
            seed: of weights and data.
            updates: of each run; None takes as many as show what there is to see.
            progress: told now and then how many updates have been made.

        Raises:
            ValueError: when `updates` is below 1.
            OSError: when the directory cannot be written.
        """
        if updates is not None and updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        module = importlib.import_module(f"dynamo_probe.demos.{self.name}")
        module.run(
            log_dir,
            seed=seed,
            updates=self.updates if updates is None else updates,
            progress=progress or (lambda done: None),
        )


DEMOS = {
    demo.name: demo
    for demo in (
        Demo(
            "dormancy",
            "units that go dormant while targets move, with and without ReDo",
            runs=2,
            updates=4000,
        ),
        Demo(
            "sparsity",
            "connections that go and come (GraNet), and what pruning costs as the rate drops",
            runs=1,
            updates=1500,
        ),
        Demo(
            "heads",
            "induction heads that form, without and with data that repeat",
            runs=2,
            updates=400,
        ),
    )
}
