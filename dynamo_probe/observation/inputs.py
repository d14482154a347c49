"""The tokens that the training's own forward passes are given, seen without touching them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynamo_probe.anatomy.taps import Removable
from dynamo_probe.observation.token_losses import token_losses

_NOT_TOKENS = {
    "attention_mask", "labels", "position_ids", "token_type_ids", "cache_position", "targets",
}  # fmt: skip
_MOST_OUTPUTS = 8


@dataclass(slots=True)
class Inputs:
    """The tokens of one forward pass.

    Attributes:
        tokens: whole numbers [rows, T].
        mask: bool [rows, T], False at padding; None where no mask was given.
        losses: the cross-entropy of each token, [rows, T], NaN at the first; None where it was not
            asked for or cannot be computed.
        no_losses: why it cannot.
    """

    tokens: Tensor
    mask: Tensor | None = None
    losses: Tensor | None = None
    no_losses: str | None = None


class InputTap:
    """A hook on the model that copies token ids; a pass counts when a backward pass reaches it.

    So evaluation, acting and the first run of a checkpointed part are not counted, and every
    micro-batch is. On a GPU the copy goes to pinned memory and nobody waits for it before `take`
    (written for that, and not tested there).

    Attributes:
        read_losses: whether the losses of tokens are wanted of the passes to come.
        problem: why nothing was seen so far, as far as is known.
    """

    def __init__(self) -> None:
        """Begin off the model."""
        self.read_losses = False
        self.problem: str | None = None
        self._failure: Exception | None = None
        self._seen: list[tuple[int, Inputs, Any]] = []
        self._passes = 0
        self._handle: RemovableHandle | None = None
        self._busy: Callable[[], bool] = lambda: False

    def put_on(self, module: nn.Module, busy: Callable[[], bool] = lambda: False) -> None:
        """Put the hook on what the loop calls.

        Args:
            module: the model, or the wrapper of `torch.compile` around it.
            busy: whether an instrument runs the model at the moment; such passes do not count.
        """
        if getattr(module, "_compiled_call_impl", None) is not None:
            self.problem = (
                "model.compile() hides the arguments of the forward passes: use "
                "torch.compile(model), or give tokens=, a callable that returns the update's tokens"
            )
            return
        self._busy = busy
        self._handle = module.register_forward_hook(_Passed(self), with_kwargs=True)

    def close(self) -> None:
        """Take it off, and forget what was not taken."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._seen = []

    def take(self) -> list[Inputs]:
        """Return the inputs of the passes that count since the last time, in forward order.

        Raises:
            Exception: what went wrong inside the hook, where something did.
        """
        seen, self._seen, self._passes = self._seen, [], 0
        if self._failure is not None:
            raise self._failure
        for _, _, copied in seen:
            if copied is not None:
                copied.synchronize()
        return [inputs for _, inputs, _ in sorted(seen, key=lambda one: one[0])]

    def passed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """See a forward pass; a failure is kept for `take` and does not reach the training."""
        try:
            self._see(args, kwargs, output)
        except Exception as error:
            self._failure = self._failure or error

    def _see(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        followed = [t for t in _tensors(output, 3) if t.requires_grad][:_MOST_OUTPUTS]
        if not followed or self._failure is not None or self._busy():
            return
        tokens = find_tokens(args, kwargs)
        if tokens is None:
            self.problem = (
                "no tensor of whole numbers, [rows, tokens], is among the arguments of the model's "
                "training forward passes: give tokens=, a callable that returns the update's tokens"
            )
            return
        mask = kwargs.get("attention_mask")
        inputs = Inputs(_host(tokens))
        if isinstance(mask, Tensor) and mask.shape == tokens.shape:
            inputs.mask = _host(mask != 0)
        if self.read_losses:
            with torch.no_grad():
                found = token_losses(output, tokens)
            if isinstance(found, str):
                inputs.no_losses = found
            else:
                inputs.losses = _host(found)
        copied = None
        if tokens.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        self._passes += 1
        counts = _Counts(self, (self._passes, inputs, copied))
        for tensor in followed:
            tensor.register_hook(counts)

    def count(self, entry: tuple[int, Inputs, Any]) -> None:
        """Take a pass as one of the training's."""
        if self._handle is not None:
            self._seen.append(entry)


class _Passed(Removable):
    __slots__ = ("tap",)

    def __init__(self, tap: InputTap) -> None:
        self.tap = tap

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self.tap.passed(args, kwargs, output)


class _Counts:
    """Hears of the backward pass through one forward pass, once."""

    __slots__ = ("entry", "tap")

    def __init__(self, tap: InputTap, entry: tuple[int, Inputs, Any]) -> None:
        self.tap = tap
        self.entry: tuple[int, Inputs, Any] | None = entry

    def __call__(self, gradient: Tensor) -> None:
        entry, self.entry = self.entry, None
        if entry is not None:
            self.tap.count(entry)


def find_tokens(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the tokens among a model's arguments, [rows, T]; None where there are none.

    `input_ids` comes first, then positional arguments, then other keywords; an argument that is a
    mapping, such as a batch of a tokenizer, is looked into.
    """
    for candidate in (*_named(kwargs), *args, *_others(kwargs)):
        if isinstance(candidate, Mapping):
            found = find_tokens((), candidate)
            if found is not None:
                return found
        elif _are_tokens(candidate):
            return candidate.detach().reshape(-1, candidate.shape[-1])
    return None


def _named(kwargs: Mapping[str, Any]) -> Iterator[Any]:
    if kwargs.get("input_ids") is not None:
        yield kwargs["input_ids"]


def _others(kwargs: Mapping[str, Any]) -> Iterator[Any]:
    for name, value in kwargs.items():
        if name not in _NOT_TOKENS:
            yield value


def _are_tokens(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or value.numel() == 0:
        return False
    return value.dtype != torch.bool and not (value.is_floating_point() or value.is_complex())


def _tensors(tree: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif depth and isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value, depth - 1)
    elif depth and isinstance(tree, (tuple, list)):
        for value in tree:
            yield from _tensors(value, depth - 1)
    elif depth and is_dataclass(tree):
        for field in fields(tree):
            yield from _tensors(getattr(tree, field.name), depth - 1)


def _host(tensor: Tensor) -> Tensor:
    """Copy to the CPU; from a GPU without waiting for it."""
    if tensor.device.type == "cpu":
        return tensor.detach().clone()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor.detach(), non_blocking=tensor.device.type == "cuda")
