"""Change tensors in place and be able to take it all back."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from dynamo_probe.anatomy.shards import own_part


class Ledger:
    """Writes into tensors and keeps what was there, until its `with` block ends.

    An exception that leaves the block takes every change back, the last one first, so that what
    was written twice is as it was as well. Only what is written is kept, not whole tensors.
    """

    def __init__(self) -> None:
        """Begin with nothing written."""
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Ledger:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take everything back if the block failed, and forget."""
        if kind is not None:
            with torch.no_grad():
                for undo in reversed(self._undo):
                    undo()
        self._undo.clear()

    def write(self, tensor: Tensor, dim: int, index: Tensor, values: Tensor | float) -> None:
        """Write slices of a tensor; of a sharded one, this rank's part of them.

        Args:
            tensor: what is written into.
            dim: the dimension that `index` counts along.
            index: int64 [n], each position once.
            values: one number, or a tensor that is n long along `dim`.
        """
        tensor, index, values = own_part(tensor.detach(), dim, index, values)
        index = index.to(tensor.device)
        kept = tensor.detach().index_select(dim, index)
        self._undo.append(lambda: tensor.detach().index_copy_(dim, index, kept))
        if isinstance(values, Tensor):
            values = values.detach().to(device=tensor.device, dtype=tensor.dtype)
            tensor.detach().index_copy_(dim, index, values)
        else:
            tensor.detach().index_fill_(dim, index, values)

    def clear(self, tensor: Tensor, places: Tensor, value: float) -> None:
        """Write one number into some places of a plain tensor.

        Args:
            tensor: what is written into.
            places: BoolTensor of its shape.
            value: the number.
        """
        target = tensor.detach()
        if tensor.is_contiguous():  # flat positions are several times faster
            target, places = target.view(-1), places.reshape(-1)
        index = places.nonzero(as_tuple=True)
        kept = target[index]
        self._undo.append(lambda: target.index_put_(index, kept))
        target.index_put_(index, torch.full((), value, dtype=target.dtype, device=target.device))

    def fill(self, tensor: Tensor, value: float) -> None:
        """Write one number everywhere in a tensor."""
        kept = tensor.detach().clone()
        self._undo.append(lambda: tensor.detach().copy_(kept))
        tensor.detach().fill_(value)

    def put(self, mapping: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        """Exchange a value of a mapping that has the key."""
        kept = mapping[key]
        self._undo.append(lambda: mapping.__setitem__(key, kept))
        mapping[key] = value
