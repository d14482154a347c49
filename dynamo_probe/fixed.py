"""The fixed inputs that probes run the model on: given by the user, or kept from the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dynamo_probe.observation.batch import Batch


class FixedBatches:
    """One batch for each module that the loop calls by itself; "" is the model.

    Attributes:
        given: what the user gave, for the model itself; None where nothing was given.
        wanted: whether an instrument asked for a batch; otherwise none is kept.
        seen: the newest inputs of each module, and after the first update the kept ones.
    """

    def __init__(self, given: Batch | Callable[[], Batch] | None) -> None:
        """Begin with what the user gave."""
        self.given = given
        self.wanted = False
        self.seen: dict[str, Batch] = {}
        self._kept: set[str] = set()

    def get(self) -> Mapping[str, Batch]:
        """Return the batches; empty before a forward pass was seen."""
        if self.given is not None:
            return {"": self.given if isinstance(self.given, Batch) else self.given()}
        return self.seen

    def see(self, prefix: str, batch: Batch) -> None:
        """Take note of the inputs of a forward pass, unless the fixed batch is already kept."""
        if prefix not in self._kept:
            self.seen[prefix] = batch

    def keep(self) -> None:
        """Keep the inputs of the first training forward pass, if anything asked for a batch."""
        if not self.wanted:
            self.seen, self._kept = {}, set()
        for prefix in self.seen.keys() - self._kept:
            self.seen[prefix] = self.seen[prefix].clone()
            self._kept.add(prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return the kept inputs; those that hold more than plain values are left out."""
        kept = {prefix: self.seen[prefix].plain() for prefix in sorted(self._kept)}
        return {prefix: batch for prefix, batch in kept.items() if batch is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back: a resumed run keeps its fixed batch."""
        for prefix, (args, kwargs) in state.items():
            self.seen[prefix] = Batch(tuple(args), dict(kwargs))
            self._kept.add(prefix)
