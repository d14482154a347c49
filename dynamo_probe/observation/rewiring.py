"""What updates of masks do over a run: counted at each of them, in one bit a weight and set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dynamo_probe.observation.packing import pack

Bits: TypeAlias = np.ndarray
"""uint8 [ceil(entries / 8)]."""

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.int64)
"""How many bits of each byte are set."""


def _bits(mask: Tensor) -> Bits:
    return pack(mask.bool()).numpy()


def count(bits: Bits) -> int:
    """Return how many bits are set."""
    return int(_ONES[bits].sum())


class Rewiring:
    """Counts what changes.

    Masks that are made or changed before the first update are the beginning: nothing was trained
    with others, so nothing was dropped or grown.

    Attributes:
        dropped, grown: connections at all updates of the masks since `restart`. One that goes and
            comes back at the same update of the masks is neither.
        awaited, survived: connections grown at the update of the masks before one of those, and
            those of them that are there after it.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._ever: dict[str, Bits] = {}
        self._fresh: dict[str, Bits] = {}
        self._regrown: dict[str, Bits] = {}
        self._alive: dict[str, int] = {}
        self.restart()

    def restart(self) -> None:
        """Begin a new span of counting."""
        self.dropped = self.grown = self.awaited = self.survived = 0

    def meet(self, masks: Mapping[str, Tensor]) -> None:
        """Take masks that are there from the beginning; those that are known are passed by."""
        for name, mask in masks.items():
            if name not in self._ever:
                self._ever[name] = _bits(mask)

    def take(
        self,
        step: int,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        names: Iterable[str],
    ) -> None:
        """Count an update of the masks.

        Args:
            step: the optimizer update at which it was made.
            before: the masks before it; those that are left out have not changed.
            after: the masks after it.
            names: all weights of the treatment that made it.
        """
        if step == 0:
            self._ever |= {name: _bits(mask) for name, mask in after.items()}
            return
        for name in names:
            fresh = self._fresh.pop(name, None)
            awaited = 0 if fresh is None else count(fresh)
            self.awaited += awaited
            if name not in after:
                self.survived += awaited
                continue
            then, now = _bits(before[name]), _bits(after[name])
            new = now & ~then
            self.dropped += count(then & ~now)
            self.grown += count(new)
            if fresh is not None:
                self.survived += count(fresh & now)
            self._fresh[name] = new
            self._ever[name] = self._ever.get(name, then) | now
            self._regrown[name] = self._regrown.get(name, np.zeros_like(new)) | new
            self._alive[name] = count(self._regrown[name] & now)

    def ever(self, names: Iterable[str]) -> int:
        """Return how many connections of some weights have been there at any time."""
        return sum(count(self._ever[name]) for name in names)

    def regrown(self, names: Iterable[str]) -> tuple[int, int]:
        """Return how many connections were ever grown, and how many of them are there now."""
        known = [name for name in names if name in self._regrown]
        return sum(count(self._regrown[n]) for n in known), sum(self._alive[n] for n in known)

    def state_dict(self) -> dict[str, Any]:
        """Return bits and counts."""
        sets = {"ever": self._ever, "fresh": self._fresh, "regrown": self._regrown}
        bits = {
            key: {name: torch.from_numpy(one.copy()) for name, one in found.items()}
            for key, found in sets.items()
        }
        counts = [self.dropped, self.grown, self.awaited, self.survived]
        return {**bits, "alive": dict(self._alive), "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._ever, self._fresh, self._regrown = (
            {name: bits.numpy().copy() for name, bits in state[key].items()}
            for key in ("ever", "fresh", "regrown")
        )
        self._alive = dict(state["alive"])
        self.dropped, self.grown, self.awaited, self.survived = state["counts"]
