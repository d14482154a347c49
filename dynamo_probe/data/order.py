"""A fixed order of a dataset's samples, and the sampler that walks it: sharded, and resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.utils.data import Dataset, Sampler

Sample = TypeVar("Sample", covariant=True)


class SampleOrder(Dataset[Sample]):
    """A dataset read in a fixed order, in which a sample may come several times.

    Args:
        dataset: a dataset with `len(dataset)` and `dataset[index]`.
        order: indices into it, in the order of the training, `[positions]`.
        repeated: which positions belong to samples that come several times, `[positions]`.
        origin: what the order follows from; a saved sampler is resumed only where it is the same.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        order: Tensor,
        repeated: Tensor,
        origin: Mapping[str, Any],
    ) -> None:
        """Keep the order."""
        self.dataset = dataset
        self.order = order
        self.repeated = repeated
        self.origin = dict(origin)

    def __len__(self) -> int:
        """Return how many positions there are."""
        return len(self.order)

    def __getitem__(self, position: int) -> Sample:
        """Return the sample at a position."""
        return self.dataset[int(self.order[position])]

    def __getitems__(self, positions: list[int]) -> list[Sample]:
        """Return the samples at several positions, at once where the dataset can do that."""
        indices = self.order[positions].tolist()
        if hasattr(self.dataset, "__getitems__"):
            return cast(Any, self.dataset).__getitems__(indices)
        return [self.dataset[index] for index in indices]

    def sampler(self, *, rank: int = 0, world: int = 1) -> OrderSampler:
        """Return a sampler of this order, for a `DataLoader` of the underlying dataset.

        Args:
            rank: of this process.
            world: how many processes share the order. Process r gets the positions r, r + world,
                r + 2 * world and so on: all of them together get every position once, and a batch
                of each makes the batch that one process alone would get. Where the positions are
                not a multiple of the world, the first ranks get one more.

        Raises:
            ValueError: when the rank is not below the world.
        """
        return OrderSampler(self, rank, world)


class OrderSampler(Sampler[int]):
    """Walks a `SampleOrder` once and gives indices into its dataset.

    A second full pass would repeat what is to come once, so it is refused. An iterator begins at
    the start, or where `load_state_dict` says; looking at a first batch takes nothing away.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from dynamo_probe.data import RepeatedMixture
        >>> data = TensorDataset(torch.arange(100))
        >>> mixture = RepeatedMixture(data, fraction=0.5, pool=2, repeats=10, seed=0)
        >>> loader = DataLoader(data, batch_size=8, sampler=mixture.sampler())
        >>> [len(batch) for (batch,) in loader]
        [8, 8, 8, 8, 8]
    """

    def __init__(self, order: SampleOrder[Any], rank: int = 0, world: int = 1) -> None:
        """Start before the first sample."""
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}; give 0 <= rank < world")
        self.order, self.rank, self.world = order, rank, world
        self._begin = 0
        self._given = 0
        self._iterators = 0
        self._fresh = True

    def __len__(self) -> int:
        """Return how many samples an iterator gives this rank."""
        return len(range(self._begin + self.rank, len(self.order), self.world))

    def __iter__(self) -> Iterator[int]:
        """Give the indices of this rank's samples.

        Raises:
            RuntimeError: when the order has been walked to its end.
        """
        if not self._fresh and self._given == len(self):
            raise RuntimeError(
                "every sample has been given; another pass would repeat the samples that are to "
                "come once. Make the order with more samples, or call restart() to repeat it"
            )
        self._given, self._iterators, self._fresh = 0, self._iterators + 1, False
        mine = self.order.order[self._begin + self.rank :: self.world]
        return self._walk(mine.tolist(), self._iterators)

    def _walk(self, indices: list[int], number: int) -> Iterator[int]:
        for given, index in enumerate(indices, start=1):
            # An iterator that another one has replaced no longer counts.
            if number == self._iterators:
                self._given = given
            yield index

    def restart(self) -> None:
        """Begin again at the first sample."""
        self._begin, self._given, self._fresh = 0, 0, True

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Return where the walk is.

        Args:
            consumed: samples of this rank that the training has used since the iterator began. Left
                out, it is what has been given to the loader, which is the same with
                `num_workers=0`; workers fetch up to `prefetch_factor * num_workers` batches ahead.

        Raises:
            ValueError: when more were consumed than given.
        """
        if consumed is not None and not 0 <= consumed <= self._given:
            raise ValueError(
                f"consumed={consumed}, but the iterator gave {self._given}; count the samples of "
                "this rank since its iterator began"
            )
        given = self._given if consumed is None else consumed
        position = min(self._begin + given * self.world, len(self.order))
        return {"position": position, "origin": dict(self.order.origin)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let iterators go on from a state, of any rank and of any number of ranks.

        Args:
            state: what `state_dict` gave, between two updates of all ranks.

        Raises:
            ValueError: when it belongs to another order; nothing is changed then.
        """
        before, now = state["origin"], self.order.origin
        if before != now:
            names = sorted(
                name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
            )
            made = ", ".join(f"{name}={before.get(name)!r}" for name in names)
            here = ", ".join(f"{name}={now.get(name)!r}" for name in names)
            raise ValueError(f"the state was made with {made}, here it is {here}; set the same")
        self._begin, self._given, self._fresh = int(state["position"]), 0, True
