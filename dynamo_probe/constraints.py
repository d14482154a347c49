"""What holds around every step of every optimizer, whatever the schedule: masks, for one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from dynamo_probe.agenda import Agenda
from dynamo_probe.site import Constraint, Site

logger = logging.getLogger("dynamo_probe")


class Constraints:
    """Runs the constraints of instruments; one that fails is taken off and told of once.

    Attributes:
        strict: a failure is raised and not only told.
    """

    def __init__(
        self, site: Site, agenda: Agenda, warn: Callable[[str], None], *, strict: bool
    ) -> None:
        """Take what the site has been asked for."""
        self.strict = strict
        self._site = site
        self._agenda = agenda
        self._warn = warn
        # The constraints of masks come last before a step, and first after it.
        self._masks_last = sorted(site.constraints, key=lambda one: one.masks)
        self._masks_first = sorted(site.constraints, key=lambda one: not one.masks)

    def hook(self, optimizer: Optimizer) -> RemovableHandle:
        """Put a hook after the steps of an optimizer."""
        return optimizer.register_step_post_hook(self._after)

    def before(self, optimizer: Optimizer, closure: bool) -> None:
        """Do what is to be done before a step."""
        for one in self._masks_last:
            if one.off is None:
                self._run(one, one.before, optimizer, closure)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        closure = has_closure(args, kwargs)
        for one in self._masks_first:
            if one.off is None:
                self._run(one, one.after, optimizer, closure)

    def hold(self) -> None:
        """Put right what treatments may have broken."""
        for one in self._masks_first:
            if one.off is None:
                self._run(one, one.hold)

    def _run(self, one: Constraint, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:
            if self.strict:
                raise
            one.off = f"{type(error).__name__}: {error}"
            name = one.instrument.name
            logger.debug("%s failed", name, exc_info=True)
            self._agenda.disable(one.instrument, one.off)
            self._site.note("disabled", name, reason=one.off)
            self._warn(
                f"{name} failed at update {self._site.step} and is disabled: what it held no "
                f"longer holds, training goes on. {one.off}"
            )


def has_closure(args: Any, kwargs: Any) -> bool:
    """Whether a step was given a closure, from what its hooks get: the optimizer comes first."""
    return kwargs.get("closure", args[1] if len(args) > 1 else None) is not None
