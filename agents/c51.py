"""C51, a DQN that learns the distribution of returns (Bellemare et al. 2017, algorithm 1).

`python -m agents.c51 --help`. Everything but the rule of learning is `agents/dqn.py`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from agents import dqn
from agents.replay import Batch
from agents.runs import Result, say_result


@dataclass(frozen=True)
class Args(dqn.Args):
    """Train a C51 agent; watch its network and recycle its dormant units, if asked to."""

    atoms: int = 51
    """Returns that the distribution is over, at equal distances."""
    v_min: float = 0.0
    """The smallest of them; -10 is usual on Atari with clipped rewards."""
    v_max: float = 100.0
    """The largest of them; 10 is usual on Atari with clipped rewards."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        self.check_at_least(2, "atoms")
        if not self.v_min < self.v_max:
            raise ValueError(f"v_min {self.v_min} is not below v_max {self.v_max}")


def project(
    rewards: Tensor, discounts: Tensor, next_probabilities: Tensor, support: Tensor
) -> Tensor:
    """Project the distribution of r + discount * Z onto the support (algorithm 1, lines 5 to 10).

    Args:
        rewards: `[batch]`.
        discounts: gamma, and 0 where the episode terminated, `[batch]`.
        next_probabilities: of Z over the support, `[batch, atoms]`.
        support: the atoms, rising at equal distances, `[atoms]`.

    Returns:
        Probabilities over the support, `[batch, atoms]`; what lies beyond an end goes to that end.
    """
    low, high, last = float(support[0]), float(support[-1]), len(support) - 1
    moved = torch.addcmul(rewards.unsqueeze(1), discounts.unsqueeze(1), support)
    place = (moved.clamp(low, high) - low) * (last / (high - low))
    # Rounding may put the largest just beyond the last atom.
    below = place.floor().clamp(max=last - 1)
    upper = place - below
    projected = torch.zeros_like(next_probabilities)
    index = below.long()
    projected.scatter_add_(1, index, next_probabilities * (1 - upper))
    projected.scatter_add_(1, index + 1, next_probabilities * upper)
    return projected


class Categorical:
    """The outputs of an action are the logits of a distribution over returns."""

    name = "c51"

    def __init__(self, args: Args) -> None:
        """Lay out the support."""
        self.outputs = args.atoms
        self.gamma, self.double_q = args.gamma, args.double_q
        self.support = torch.linspace(args.v_min, args.v_max, args.atoms, device=args.device)

    def logits(self, network: nn.Module, observations: Tensor) -> Tensor:
        """Return the logits of each action's distribution, `[batch, actions, atoms]`."""
        return network(observations).unflatten(1, (-1, self.outputs))

    def values(self, network: nn.Module, observations: Tensor) -> Tensor:
        """Return the expected return of each action, `[batch, actions]`."""
        return self.logits(network, observations).softmax(2) @ self.support

    def loss(self, batch: Batch, network: nn.Module, target: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy to the projected target, and the expected returns, `[batch]`."""
        rows = torch.arange(len(batch.actions), device=batch.actions.device)
        with torch.no_grad():
            following = self.logits(target, batch.next_observations).softmax(2)
            judge = following @ self.support
            if self.double_q:
                judge = self.values(network, batch.next_observations)
            projected = project(
                batch.rewards,
                self.gamma * batch.continues,
                following[rows, judge.argmax(1)],
                self.support,
            )
        logits = self.logits(network, batch.observations)[rows, batch.actions]
        loss = F.cross_entropy(logits, projected)
        return loss, logits.detach().softmax(1) @ self.support


def train(args: Args, instruments: dqn.Instruments = dqn.make_instruments) -> Result:
    """Train an agent; see `dqn.train`."""
    return dqn.train(args, instruments, Categorical(args))


def main() -> None:
    """Train from the command line."""
    logging.basicConfig(format="%(message)s")
    say_result(train(tyro.cli(Args)))


if __name__ == "__main__":
    main()
