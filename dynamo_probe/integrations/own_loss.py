"""Statistics of a network from its own loss alone, where another network's loss runs through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dynamo_probe.watch import Watch


class OwnLoss:
    """Takes back what the loss of another optimizer adds to a watch's statistics.

    An actor's loss is the critic's value of its actions. Its backward pass reaches the critic after
    the critic's step, so that it would be counted in the critic's next update. What was gathered
    when the owner has stepped is therefore put back when another optimizer has.
    """

    def __init__(self, watch: Watch, owner: Optimizer, others: Sequence[Optimizer]) -> None:
        """Put the hooks on.

        Args:
            watch: the watch, which was attached to the owner before.
            owner: the network's own optimizer.
            others: optimizers whose losses run through the network.
        """
        self._watch = watch
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._handles = [owner.register_step_post_hook(self._keep)] if others else []
        self._handles += [other.register_step_post_hook(self._put_back) for other in others]

    def _keep(self, *_: Any) -> None:
        recorders = [s.recorder for s in self._watch._site.sources if s.recorder.gate.on]
        self._kept = [
            (buffer, buffer.clone())
            for recorder in recorders
            for buffers in (recorder.buffers("sum"), recorder.buffers("max"))
            for buffer in buffers.values()
        ]

    def _put_back(self, *_: Any) -> None:
        for buffer, kept in self._kept:
            buffer.copy_(kept)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._kept = []
