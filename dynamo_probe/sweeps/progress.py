"""How a sweep goes: a live table on a terminal, a line for each run elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

logger = logging.getLogger("dynamo_probe")


class Progress:
    """Counts runs by their settings, and shows the counts."""

    def __init__(self, groups: Sequence[str], total: Sequence[int], shown: bool) -> None:
        """Set up the counts.

        Args:
            groups: what each line of the table is called.
            total: runs in each.
            shown: show a table, if rich is installed and there is a terminal.
        """
        self.groups, self.total = list(groups), list(total)
        self.done, self.failed = [0] * len(groups), [0] * len(groups)
        self.running = [0] * len(groups)
        self._started = time.perf_counter()
        self._made = 0
        self._live: Any = None
        if shown and sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.live import Live
            except ModuleNotFoundError:
                return
            self._live = Live(
                get_renderable=self.table, console=Console(stderr=True), refresh_per_second=2
            )

    def __enter__(self) -> Progress:
        """Show it."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the terminal."""
        if self._live is not None:
            self._live.stop()

    def known(self, group: int) -> None:
        """Count a run that was made earlier."""
        self.done[group] += 1

    def begin(self, group: int) -> None:
        """Count a run that begins."""
        self.running[group] += 1

    def end(self, group: int, what: str, failed: bool, seconds: float) -> None:
        """Count a run that ended."""
        self.running[group] -= 1
        (self.failed if failed else self.done)[group] += 1
        self._made += 1
        if self._live is None:
            count = f"{sum(self.done) + sum(self.failed)}/{sum(self.total)}"
            state = "failed" if failed else "done"
            logger.info("%s %s %s in %.1f s, %s", count, what, state, seconds, self.left())

    def left(self) -> str:
        """Say how long the rest will take, at the pace so far."""
        remaining = sum(self.total) - sum(self.done) - sum(self.failed)
        if not self._made:
            return "time left unknown"
        pace = (time.perf_counter() - self._started) / self._made
        return f"about {pace * remaining / 60:.1f} min left"

    def table(self) -> Any:
        """Return the state as a rich table."""
        from rich.table import Table

        elapsed = time.perf_counter() - self._started
        title = f"{elapsed / 60:.1f} min, {self.left()}"
        table = Table("settings", "done", "running", "failed", "of", title=title)
        for row in zip(self.groups, self.done, self.running, self.failed, self.total, strict=True):
            table.add_row(*map(str, row))
        return table
