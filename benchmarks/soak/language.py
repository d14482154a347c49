"""A language model beside the soaked training, for the probes that look at tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dynamo_probe as dp
from tests.models import GPT

VOCABULARY = 11


def probes(every: int) -> dict[str, Callable[[], dp.Probe]]:
    """Return how each public probe of language models is made.

    Args:
        every: period of the probes that are read often.
    """
    return {
        "Induction": lambda: dp.Induction(every=10 * every, period=5, sequences=4),
        "Repetition": lambda: dp.Repetition(every=every, ngram=8, memory=1 << 22),
    }


class Language:
    """A small GPT with its optimizer and watch; a part of its data comes again and again."""

    def __init__(self, every: int, capacity: int) -> None:
        self.model = GPT()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        instruments = [make() for make in probes(every).values()]
        self.watch = dp.watch(self.model, self.optimizer, instruments, on_error="raise")
        self.watch.history = dp.History(capacity=capacity)
        self.watch.most_events = 100
        self.pool = torch.randint(VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(3))

    def update(self) -> None:
        """Make an update on fresh tokens and on one row of the pool."""
        fresh = torch.randint(VOCABULARY, (3, 24))
        tokens = torch.cat([fresh, self.pool[torch.randint(len(self.pool), (1,))]])
        self.optimizer.zero_grad()
        self._loss(tokens).backward()
        self.optimizer.step()

    def _loss(self, tokens: Tensor) -> Tensor:
        return F.cross_entropy(self.model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "watch": self.watch.state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.watch.load_state_dict(state["watch"])
