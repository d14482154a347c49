"""Whether a layer learns from a pass: only the batches of its own loss belong to its update.

An actor's loss runs through the critic. Where the critic is not frozen meanwhile, its gradients are
put on the critic's weights, and cleared before the critic's own backward pass: they never reach a
step. The same happens to an update that a gradient scaler skips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import is_sharded

Verdict = Literal["add", "restart", "ignore"]


@dataclass(frozen=True, slots=True)
class Learned:
    """A module whose weight is learned.

    Attributes:
        module: the module.
        owner: which of the optimizers has the weight, the first of them; 0 where none has.
        sharded: whether the weight is spread over ranks.
    """

    module: nn.Module
    owner: int
    sharded: bool


def learned_layers(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Learned]:
    """Return the modules whose weight requires gradients now, by name.

    To be called before a forward pass, in which shards are gathered.
    """
    owner: dict[int, int] = {}
    for index, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                owner.setdefault(id(parameter), index)
    return {
        name: Learned(module, owner.get(id(weight), 0), is_sharded(weight))
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.requires_grad
    }


class Learner:
    """A layer's weight, asked in each backward pass what the pass means for it.

    Attributes:
        owner: which of the watch's optimizers has the weight.
    """

    __slots__ = ("_learned", "_task", "owner")

    def __init__(self, learned: Learned | None = None) -> None:
        """Take the layer; None for one that was not learned, of which every pass counts."""
        self.owner = 0 if learned is None else learned.owner
        self._learned = learned
        self._task = -1

    @property
    def frozen(self) -> bool:
        """Whether the weight does not learn for now: the loss is another network's."""
        return self._learned is not None and not self._learned.module.weight.requires_grad

    def weight(self) -> Tensor | None:
        """Return the weight, if its gradient tells whether a batch belongs to the update."""
        learned = self._learned
        # The gradients of shards are kept elsewhere: on the gathered weight there is never one.
        if learned is None or learned.sharded or torch.compiler.is_compiling():
            return None
        weight: Any = learned.module.weight
        return weight if weight.is_leaf and weight.requires_grad else None

    def asked(self, weight: Tensor) -> Verdict:
        """Say, in a backward pass, what becomes of a batch that the pass has reached.

        Args:
            weight: as the forward pass had it.

        Returns:
            `restart` where no gradient is left of the batches since the last step, so that they
            do not reach the next one; `ignore` where this pass gives the weight no gradient.
        """
        task = torch._C._current_graph_task_id()
        fresh, self._task = task != self._task, task
        try:
            reached = torch._C._will_engine_execute_node(get_gradient_edge(weight).node)
        except RuntimeError:  # torch.autograd.grad: what becomes of the gradient is not known
            return "add"
        if not reached:
            return "ignore"
        return "restart" if fresh and weight.grad is None else "add"
