"""The contract between a watch and what it carries: instruments, readings, events.

A *probe* reads and a *treatment* acts. Both are told when by a schedule and see the run through a
`Site` (`dynamo_probe/site.py`); neither knows of hooks, optimizers' hooks or files.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from dynamo_probe.schedule import Schedule, as_schedule

if TYPE_CHECKING:
    from dynamo_probe.site import Site


@dataclass(frozen=True, slots=True)
class Reading:
    """One figure, or one figure per unit, and the update it belongs to.

    Attributes:
        step: the optimizer update, counted from 1; 0 is before the first.
        tag: what it is, such as `"dormancy/layer/fc1/tau=0.1"`.
        value: a float, or a float array `[units]` where there is a figure for each unit.
        samples: how many samples the figure was computed from; None where that has no meaning.
    """

    step: int
    tag: str
    value: float | np.ndarray
    samples: int | None = None

    @property
    def scalar(self) -> bool:
        """Whether the value is one number."""
        return not isinstance(self.value, np.ndarray)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done or noticed.

    Attributes:
        step: the optimizer update it happened at.
        kind: `recycled`, `pruned`, `regrown`, `alert`, `skipped`, `disabled`, `note`.
        subject: a layer, an instrument or a sink.
        detail: what exactly, by name.
    """

    step: int
    kind: str
    subject: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Put the event in one line."""
        facts = ", ".join(f"{key}: {value}" for key, value in self.detail.items())
        return f"update {self.step}: {self.kind} {self.subject}" + (f" ({facts})" if facts else "")


class Instrument(abc.ABC):
    """What a watch carries. Derive from `Probe` or `Treatment`, never from this.

    Attributes:
        name: names the instrument in tags, events and checkpoints; a watch numbers duplicates.
        schedule: the updates at which it fires.
        attached: whether a watch has it; an instrument serves one watch.
        observes: what it looks at, for `Watch.doctor()`, where it asks the site for no source.
    """

    name: str
    schedule: Schedule
    attached: bool = False
    observes: str | None = None

    def __init__(self, every: int | Schedule) -> None:
        """Set the schedule.

        Args:
            every: the number of updates between two firings, or a `Schedule`.
        """
        self.schedule = as_schedule(every)

    def attach(self, site: Site) -> None:  # noqa: B027 - optional
        """Meet the run, before anything has been observed; ask the site for a recorder here.

        Raises:
            ValueError: when the instrument cannot work here at all; the message says the fix.
        """

    def begin(self, site: Site) -> None:  # noqa: B027 - optional
        """Meet the layers: called when a forward pass has shown (more of) the anatomy."""

    def start(self, site: Site) -> None:  # noqa: B027 - optional
        """Begin: called once, after any saved state was loaded.

        That is before the first forward pass of the whole model with gradients, or before the first
        step of an optimizer where no such pass was seen.
        """

    @abc.abstractmethod
    def fire(self, site: Site) -> None:
        """Do what is due at update `site.step`; emit readings and events through the site."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit-identically; tensors and plain values only."""
        return {}

    def check_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Look at a state before anything is loaded.

        Raises:
            ValueError: when it does not fit.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Take back what `state_dict` gave."""

    def finish(self, site: Site) -> str | None:  # noqa: B027 - optional
        """Let go when the watch is closed; return what the user should be told, if anything."""

    def report(self) -> list[str]:
        """Return lines for `Watch.doctor()` beyond the schedule and the count of firings."""
        return []


def fresh_copy(instrument: Instrument) -> Instrument:
    """Copy an instrument that is not attached, but not the networks and tensors that it was given.

    A treatment's target network has to stay the very one that the loop uses.
    """
    memo: dict[int, Any] = {}
    for value in vars(instrument).values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, (nn.Module, Tensor)):
                memo[id(part)] = part
    return copy.deepcopy(instrument, memo)


class Probe(Instrument):
    """An instrument that reads. A run with it is bit-identical to the run without."""


class Treatment(Instrument):
    """An instrument that changes the network. It fires after every probe's reading of an update.

    Attributes:
        enabled: a treatment that is switched off does not fire; switch it at any update.
    """

    enabled: bool = True
