"""What the runs on repeated data are trained and tested on: the copy task, or a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.papers import corpora
from dynamo_probe.data.copying import CopyTask

COPY_TASK = "copy"


@dataclass(frozen=True, slots=True)
class Task:
    """Samples of token ids.

    Attributes:
        train: `train.__getitems__([i, j])` gives two samples of `length` tokens.
        test: samples that no training sample is among, `[samples, length]`.
        copies: held-out segments, repeated to the end, `[samples, length]`.
        lags: tokens of each of these segments, `[samples]`.
        vocab_size: token ids are below it.
    """

    train: Any
    test: Tensor
    copies: Tensor
    lags: Tensor
    vocab_size: int


class Windows(TensorDataset):
    """Pieces of a text, one after the other."""

    def __getitem__(self, index: int) -> Tensor:
        return self.tensors[0][index]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return list(self.tensors[0][indices])


def load(name: str, length: int, lag: tuple[int, int], samples: int, test_samples: int) -> Task:
    """Return the copy task (`copy`), or a corpus by its name; the same for every seed of a run.

    Of a text, training samples are pieces of some files and the test samples pieces of others. Its
    segments to copy are beginnings of test samples, with a random lag, as in the copy task.
    """
    if name == COPY_TASK:
        made = CopyTask(samples, seed=0, lag=lag, length=length)
        held_out = made.held_out(test_samples)
        test = held_out.tokens(range(test_samples))
        return Task(made, test, test, held_out.lags(range(test_samples)), made.vocab_size)
    text = corpora.load(name)
    generator = torch.Generator().manual_seed(0)
    train, test = (windows(part, length) for part in (text.train, text.test))
    if len(train) < samples or len(test) < test_samples:
        raise ValueError(
            f"{name} has {len(train)} and {len(test)} pieces of {length} tokens; the setting "
            f"needs {samples} and {test_samples}"
        )
    test = test[torch.randperm(len(test), generator=generator)[:test_samples]]
    lags = torch.randint(lag[0], lag[1] + 1, (test_samples,), generator=generator)
    copies = test.gather(1, torch.arange(length) % lags[:, None])
    return Task(Windows(train), test, copies, lags, text.vocab_size)


def windows(tokens: Tensor, length: int) -> Tensor:
    """Cut a text into pieces, `[pieces, length]`; the rest is dropped."""
    return tokens[: len(tokens) // length * length].view(-1, length)
