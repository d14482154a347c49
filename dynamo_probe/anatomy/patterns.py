"""Attention that is written by hand: a softmax over keys whose result averages values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamo_probe.anatomy.attention import FORBIDDEN

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
        mask: where the pattern was let through, bool, shaped as `pattern`. A weight that is 0
            because it is too small for its type was let through.
    """

    pattern: Tensor
    value: Tensor
    output: Tensor
    order: tuple[int, ...]
    mask: Tensor

    def restored(self, output: Tensor) -> Tensor:
        """Return an output in the layout of the model."""
        return output.permute([self.order.index(axis) for axis in range(len(self.order))])


class Patterns:
    """Follows results of softmax until they are multiplied with values.

    A result counts as an attention pattern when the softmax was over its last axis and it is the
    left factor of a matrix product. Dropout, a change of type, a product with a mask and whatever
    else keeps its shape may lie between. Whether it is attention over tokens its sizes will tell.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._followed: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int, Tensor] = {}
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
            if output.dim() >= 3 and dim in (-1, output.dim() - 1):
                self._followed[id(output)] = (output, output)
                logits = args[0] if args else kwargs["input"]
                self._masks[id(output)] = logits > FORBIDDEN
                # Of three axes, they may be probabilities of tokens or of experts.
                if output.dim() > 3 or output.shape[-1] == output.shape[-2]:
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
            mask = self._settle(first, followed[1])
            return Averaging(first, value, output, tuple(range(output.dim())), mask)
        if output.shape[-2:] == first.shape[-2:] and output.numel() == first.numel():
            if output.is_floating_point():
                self._followed[id(output)] = (output, followed[1])
        return None

    def _settle(self, pattern: Tensor, origin: Tensor) -> Tensor:
        """Forget a softmax whose product was found; return what was let through to there."""
        self.lost.pop(id(origin), None)
        free = self._masks.pop(id(origin))
        # What the softmax gave and the pattern lacks was masked in between.
        free = free.reshape(pattern.shape) & ((pattern != 0) | (origin.reshape(pattern.shape) == 0))
        for key in [k for k, (_, other) in self._followed.items() if other is origin]:
            del self._followed[key]
        return free

    def _einsum(self, args: tuple[Any, ...], output: Tensor) -> Averaging | None:
        if len(args) == 2 and isinstance(args[1], (list, tuple)):
            args = (args[0], *args[1])
        if len(args) != 3 or not isinstance(args[0], str):
            return None
        inputs, _, letters = args[0].replace(" ", "").partition("->")
        operands = inputs.split(",")
        if len(operands) != 2 or not letters:
            return None
        if "." in inputs:
            spelled = _spelled_out(operands, letters, args[1:])
            if spelled is None:
                return None
            operands, letters = spelled
        for index in (0, 1):
            followed = self._followed.get(id(args[1 + index]))
            if followed is None:
                continue
            pattern, own, other = args[1 + index], operands[index], operands[1 - index]
            # A query has a row of its own; what the values have too, a head is.
            key, alone = own[-1], [letter for letter in own[:-1] if letter not in other]
            query = alone[0] if len(alone) == 1 else own[-2]
            leading = own[:-1].replace(query, "")
            feature = [letter for letter in letters if letter not in own]
            if len(feature) != 1 or sorted(letters) != sorted((*leading, query, *feature)):
                return None
            if key not in other or set(other) - {*leading, key, *feature}:
                return None
            order = tuple(letters.index(letter) for letter in (*leading, query, *feature))
            wanted = [letter for letter in (*leading, key, *feature) if letter in other]
            value = args[2 - index].permute([other.index(letter) for letter in wanted])
            for axis, letter in enumerate(leading):
                if letter not in other:
                    value = value.unsqueeze(axis)
            mask = self._settle(pattern, followed[1])
            rows = [own.index(letter) for letter in (*leading, query, key)]
            return Averaging(
                pattern.permute(rows), value, output.permute(order), order, mask.permute(rows)
            )
        return None


def _spelled_out(
    operands: list[str], letters: str, tensors: tuple[Any, ...]
) -> tuple[list[str], str] | None:
    """Return an equation with letters in place of `...`; None where the operands' differ."""
    axes = {t.dim() - len(o.replace("...", "")) for t, o in zip(tensors, operands, strict=True)}
    if len(axes) != 1 or any(o.count("...") != 1 for o in (*operands, letters)):
        return None
    names = "αβγδεζηθ"[: axes.pop()]
    return [o.replace("...", names) for o in operands], letters.replace("...", names)
