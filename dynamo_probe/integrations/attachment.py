"""A watch in the hands of a framework's callback: begun, resumed and closed when it says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.attach import watch
from dynamo_probe.instrument import Instrument, fresh_copy
from dynamo_probe.observation.parameters import held_by
from dynamo_probe.watch import Watch

STATE = "dynamo_probe.pt"
"""Name of the file with a watch's state in the directory of a checkpoint."""


class Attachment:
    """Holds the instruments between trainings, and the watch of the newest one.

    Every training gets copies of the instruments, so that a callback serves several. Training the
    same module again goes on where its last watch was closed.

    Attributes:
        watch: the newest watch, open or closed; None before the first training.
        open: whether it is attached.
    """

    def __init__(
        self,
        instruments: Instrument | Iterable[Instrument],
        log_dir: str | os.PathLike[str] | None,
        sinks: Sequence[Any],
        probe_batch: Any,
        seed: int,
        on_error: Literal["warn", "raise"],
    ) -> None:
        """Keep what `dynamo_probe.watch` will be given."""
        given = [instruments] if isinstance(instruments, Instrument) else list(instruments)
        self._templates = [fresh_copy(instrument) for instrument in given]
        self._log_dir = log_dir
        self._sinks = sinks
        self._probe_batch = probe_batch
        self._seed = seed
        self._on_error: Literal["warn", "raise"] = on_error
        self._state: dict[str, Any] = {}
        self.watch: Watch | None = None
        self.open = False

    def begin(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        *,
        log_dir: str | os.PathLike[str] | None = None,
        writes: bool = True,
        clocks: Mapping[str, Callable[[], float]] | None = None,
    ) -> Watch:
        """Attach, and go on from a loaded state or from the last watch of this very module.

        Args:
            model: what to watch.
            optimizers: one or several; the first one's steps are the clock.
            log_dir: where to write when the user named no directory.
            writes: whether this rank writes; the others only take part in reductions.
            clocks: other ways to count time.
        """
        self.close()
        if self.watch is not None and self.watch.model is not unwrap(model):
            self._state = {}  # of another module; a loaded state has let go of the watch
        self.watch = watch(
            model,
            optimizers,
            [fresh_copy(instrument) for instrument in self._templates],
            log_dir=(log_dir if self._log_dir is None else self._log_dir) if writes else None,
            sinks=self._sinks if writes else (),
            probe_batch=self._probe_batch,
            process_group=_all_ranks(),
            seed=self._seed,
            on_error=self._on_error,
            clocks=clocks,
        )
        self.open = True
        if self._state:
            try:
                self.watch.load_state_dict(self._state)
            except BaseException:
                self._state = {}
                self.close()
                raise
        return self.watch

    def count_from(self, step: int) -> None:
        """Number the next update `step + 1`, where no state has said how many were before it."""
        if self.open and self.watch is not None and self.watch.step == 0 and step > 0:
            self.watch._site.step = step
            agenda = self.watch._agenda
            for timer in agenda.timers:
                timer.due = timer.instrument.schedule.after(step)
            agenda.arm(step)

    def close(self) -> None:
        """Let go of the model and keep the state; may be called again."""
        if self.open and self.watch is not None:
            self.open = False
            self._state = self.watch.state_dict()
            self.watch.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the watch; empty before the first training."""
        if self.open and self.watch is not None:
            return self.watch.state_dict()
        return self._state

    def save(self, directory: Path) -> None:
        """Write the state into a checkpoint's directory."""
        torch.save(self.state_dict(), directory / STATE)

    def load(self, directory: Path) -> bool:
        """Go on from the state in a checkpoint's directory; return whether there is one."""
        found = (directory / STATE).is_file()
        self.load_state_dict(
            torch.load(directory / STATE, map_location="cpu", weights_only=True) if found else {}
        )
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from this state: now where a watch is open, otherwise when one begins."""
        if self.open and self.watch is not None:
            if state:
                self.watch.load_state_dict(state)
            return
        self.watch = None
        self._state = state


def trained_by(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[Optimizer]:
    """Return the optimizers that hold parameters of the model; all of them where none does."""
    ours = {id(parameter) for parameter in model.parameters()}
    holding = [o for o in optimizers if not ours.isdisjoint(held_by(o))]
    return holding or list(optimizers)


def _all_ranks() -> Any:
    """Return the process group of all ranks; None where there is one rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None
