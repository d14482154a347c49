"""Run a copy of a model as often as it takes to understand it, and leave no trace."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dynamo_probe.anatomy.twin import eager, twin, untouched_randomness

_SAMPLES = 8
"""How many samples of a large batch are run: enough to see units, and to differ."""


class Rehearsal:
    """A copy of a model, on the same weights, and the inputs of one forward pass.

    Attributes:
        model: the copy. Its parameters require gradients, so that autograd records all of it.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Copy the model; see `twin`."""
        self.model = twin(model, requires_grad=True)
        for module in self.model.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                module.max_norm = None  # would rescale the weights in place, which are shared
        whole = (tuple(args), dict(kwargs))
        self._inputs = _few(whole)
        if self._inputs is not whole:
            try:
                self.run()
            except Exception:
                self._inputs = whole  # a batch of another size is not understood

    def run(self) -> list[Tensor]:
        """Run on a copy of the inputs, always with the same random numbers.

        Returns:
            Every tensor in the output, whatever it is wrapped in.
        """
        return self._run(_copied(self._inputs))

    def run_flipped(self) -> list[Tensor]:
        """Run with the first axis of the floating-point inputs in reverse order."""

        def flipped(leaf: Any) -> Any:
            # Whole numbers may be indices: their order can matter for what is a valid one.
            turn = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0
            return leaf.flip(0) if turn else leaf

        return self._run(tree_map(flipped, _copied(self._inputs)))

    def _run(self, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
        with untouched_randomness(self.model):
            return list(_tensors(self.model(*inputs[0], **inputs[1]), set()))


@contextmanager
def unnoticed(model: nn.Module) -> Generator[None, None, None]:
    """Record gradients whatever the caller's modes are, in eager mode, and put everything back."""
    cache = torch.is_autocast_cache_enabled()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(untouched_randomness(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(eager())
        # A cached half-precision copy would hide that a weight is used twice.
        stack.callback(torch.set_autocast_cache_enabled, cache)
        torch.set_autocast_cache_enabled(False)
        yield


def _few(inputs: Any) -> Any:
    """Return the first samples of all inputs, or the inputs where that may not make sense."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    sizes = {tensor.shape[:1] for tensor in tensors}
    # Whole numbers beside other inputs may be indices into them.
    indices = len(tensors) > 1 and not all(t.is_floating_point() for t in tensors)
    if indices or len(sizes) != 1 or (sizes.pop() or (0,))[0] <= _SAMPLES:
        return inputs
    return tree_map(lambda leaf: leaf[:_SAMPLES] if isinstance(leaf, Tensor) else leaf, inputs)


def _copied(tree: Any) -> Any:
    return tree_map(_copied_leaf, tree)


def _copied_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    # A cache object, for instance, which the model fills.
    return copy.deepcopy(leaf)


def _tensors(value: Any, seen: set[int]) -> Generator[Tensor, None, None]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    if id(value) in seen or isinstance(value, (str, bytes, type, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = list(value)
    elif is_dataclass(value):
        parts = [getattr(value, field.name, None) for field in fields(value)]
    else:
        # An object of the user's own, such as a distribution.
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from _tensors(part, seen)
