"""Attention that is written by hand: a softmax over keys whose result averages values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}


@dataclass(frozen=True, slots=True)
class Averaging:
    """The product of an attention pattern and values.

    Attributes:
        pattern: `[*leading, queries, keys]`.
        value: `[*leading, keys, features]`.
        output: `[*leading, queries, features]`, a view of what the model computed.
        order: the axes of `output`, as axes of what the model computed.
    """

    pattern: Tensor
    value: Tensor
    output: Tensor
    order: tuple[int, ...]

    def restored(self, output: Tensor) -> Tensor:
        """Return an output in the layout of the model."""
        return output.permute([self.order.index(axis) for axis in range(len(self.order))])


class Patterns:
    """Follows results of softmax until they are multiplied with values.

    A result counts as an attention pattern when its last two axes are equal, the softmax was over
    the last, and it is the left factor of a matrix product. Dropout, a change of type, a product
    with a mask and whatever else keeps its shape may lie between.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._followed: dict[int, tuple[Tensor, Tensor]] = {}
        self.lost: dict[int, str] = {}

    def see(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
        where: str,
    ) -> Averaging | None:
        """Take note of a function that was called.

        Args:
            function: as it came to `__torch_function__`.
            args: its positional arguments.
            kwargs: its others.
            output: what it returned.
            where: name of the module that called it.

        Returns:
            The averaging of values, when this was one.
        """
        if not isinstance(output, Tensor):
            return None
        if function in _SOFTMAX:
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            square = output.dim() >= 3 and output.shape[-1] == output.shape[-2]
            if square and dim in (-1, output.dim() - 1):
                self._followed[id(output)] = (output, output)
                self.lost[id(output)] = where
            return None
        if not self._followed:
            return None
        if function is torch.einsum:
            return self._einsum(args, output)
        first = args[0] if args else None
        followed = self._followed.get(id(first)) if isinstance(first, Tensor) else None
        if followed is None or not isinstance(first, Tensor):
            return None
        if function in _MATMUL:
            value = args[1] if len(args) > 1 else next(iter(kwargs.values()))
            if id(value) in self._followed:
                return None
            self._settle(followed[1])
            return Averaging(first, value, output, tuple(range(output.dim())))
        if output.shape[-2:] == first.shape[-2:] and output.numel() == first.numel():
            if output.is_floating_point():
                self._followed[id(output)] = (output, followed[1])
        return None

    def _settle(self, origin: Tensor) -> None:
        self.lost.pop(id(origin), None)
        for key in [k for k, (_, other) in self._followed.items() if other is origin]:
            del self._followed[key]

    def _einsum(self, args: tuple[Any, ...], output: Tensor) -> Averaging | None:
        if len(args) == 2 and isinstance(args[1], (list, tuple)):
            args = (args[0], *args[1])
        if len(args) != 3 or not isinstance(args[0], str):
            return None
        inputs, _, letters = args[0].replace(" ", "").partition("->")
        operands = inputs.split(",")
        if len(operands) != 2 or not letters or "." in inputs:
            return None
        for index in (0, 1):
            followed = self._followed.get(id(args[1 + index]))
            if followed is None:
                continue
            pattern, own, other = args[1 + index], operands[index], operands[1 - index]
            leading, query, key = own[:-2], own[-2], own[-1]
            feature = [letter for letter in letters if letter not in own]
            if len(feature) != 1 or key in letters or set(other) - {*leading, key, *feature}:
                return None
            order = tuple(letters.index(letter) for letter in (*leading, query, *feature))
            wanted = [letter for letter in (*leading, key, *feature) if letter in other]
            value = args[2 - index].permute([other.index(letter) for letter in wanted])
            for axis, letter in enumerate(leading):
                if letter not in other:
                    value = value.unsqueeze(axis)
            self._settle(followed[1])
            return Averaging(pattern, value, output.permute(order), order)
        return None
