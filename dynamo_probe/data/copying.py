"""A synthetic task that a network can only solve by looking for an earlier copy.

Each sequence is one segment of random length, drawn from a bigram chain that is the same for all,
and repeated to the end. What follows the first copy can be known from it, but not by position,
because the lag differs from sequence to sequence: a small GPT learns it with induction heads
(Olsson et al. 2022). With one fixed lag (`lag=16`), position is enough, and a network of one layer
solves it without any: that is the negative control.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

# Indices that no training sample has.
_HELD_OUT = 2**62
_CHAIN = 2**63


class CopyTask(Dataset[Tensor]):
    """Segments of a bigram chain, repeated; sample i is the same whenever it is asked for.

    Args:
        size: samples.
        seed: of the chain and of all samples, at least 0.
        lag: tokens of the segment: shortest and longest, all lengths alike; one number fixes it.
        length: tokens of a sequence.
        vocab_size: token ids are below it.
        first: index of the first sample in the endless row of samples; see `held_out`.

    Raises:
        ValueError: when a number is out of range.

    Example:
        >>> task = CopyTask(1000, seed=0, lag=(8, 32), length=64)
        >>> task[3].shape, int(task.lags([3]))
        (torch.Size([64]), 19)
        >>> bool((task[3][19:] == task[3][:-19]).all())
        True
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        lag: tuple[int, int] | int = (8, 32),
        length: int = 64,
        vocab_size: int = 65,
        first: int = 0,
    ) -> None:
        """Draw the chain; samples are made when they are asked for."""
        shortest, longest = (lag, lag) if isinstance(lag, int) else lag
        if not 1 <= shortest <= longest < length:
            raise ValueError(
                f"the lag is {lag} and the length {length}; give 1 <= shortest <= longest < length"
            )
        if size < 1 or seed < 0 or vocab_size < 2 or first < 0:
            raise ValueError(
                f"size={size}, seed={seed}, vocab_size={vocab_size}, first={first}; give at least "
                "1, 0, 2 and 0"
            )
        self.size, self.seed, self.length = size, seed, length
        self.vocab_size, self.first = vocab_size, first
        self.lag = (shortest, longest)
        self._sums = np.cumsum(_chain(seed, vocab_size), axis=1)
        self._sums[:, -1] = 1.0

    @property
    def chain(self) -> Tensor:
        """The probability of each token after each token, `[vocab_size, vocab_size]`, float64."""
        return torch.from_numpy(_chain(self.seed, self.vocab_size))

    def held_out(self, size: int) -> CopyTask:
        """Return as many samples of the same chain, none of which is among these."""
        return CopyTask(
            size, seed=self.seed, lag=self.lag, length=self.length,
            vocab_size=self.vocab_size, first=self.first + _HELD_OUT,
        )  # fmt: skip

    def tokens(self, indices: Sequence[int]) -> Tensor:
        """Return samples, `[len(indices), length]`, int64."""
        uniform = self._uniform(indices)
        steps = np.empty((len(indices), self.lag[1]), np.int64)
        steps[:, 0] = uniform[:, 1] * self.vocab_size
        for time in range(1, self.lag[1]):
            below = self._sums[steps[:, time - 1]] <= uniform[:, time + 1, None]
            steps[:, time] = below.sum(axis=1)
        places = np.arange(self.length) % self._lags(uniform)[:, None]
        return torch.from_numpy(np.take_along_axis(steps, places, axis=1))

    def lags(self, indices: Sequence[int]) -> Tensor:
        """Return how many tokens lie between a token and its next copy, `[len(indices)]`."""
        return torch.from_numpy(self._lags(self._uniform(indices)))

    def __len__(self) -> int:
        """Return how many samples there are."""
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        """Return one sample, `[length]`."""
        return self.tokens([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Return several samples; a `DataLoader` asks for a batch this way."""
        return list(self.tokens(indices))

    def _uniform(self, indices: Sequence[int]) -> np.ndarray:
        """Return a row of numbers in [0, 1) for each sample: for the lag, then for the tokens."""
        rows = [_random(self.seed, self.first + self._checked(i), self.lag[1] + 1) for i in indices]
        return np.stack(rows)

    def _lags(self, uniform: np.ndarray) -> np.ndarray:
        shortest, longest = self.lag
        return shortest + (uniform[:, 0] * (longest - shortest + 1)).astype(np.int64)

    def _checked(self, index: int) -> int:
        if not -self.size <= index < self.size:
            raise IndexError(f"sample {index} of {self.size}")
        return index % self.size


def _random(seed: int, index: int, count: int) -> np.ndarray:
    """Return numbers in [0, 1) that follow from (seed, index) alone.

    Philox takes both as its key (Salmon et al. 2011), so that no sample has to be drawn before
    another. The bits are taken as they come: NumPy promises those to stay the same.
    """
    bits = np.random.Philox(key=np.array([seed, index], np.uint64)).random_raw(count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _chain(seed: int, vocab_size: int) -> np.ndarray:
    """Return rows drawn from Dirichlet(1/2): 3.5 nats each, on average, for 65 tokens."""
    uniform = _random(seed, _CHAIN, 2 * vocab_size**2).reshape(2, vocab_size, vocab_size)
    # A squared normal is a Gamma(1/2). Normals by Box and Muller; 1 - u is in (0, 1], never 0.
    normal = np.sqrt(-2 * np.log(1 - uniform[0])) * np.cos(2 * np.pi * uniform[1])
    return normal**2 / (normal**2).sum(axis=1, keepdims=True)
