"""The inputs of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Batch:
    """The arguments of one forward pass.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """Run the model on the batch."""
        return model(*self.args, **self.kwargs)

    def plain(self) -> tuple[list[Any], dict[str, Any]] | None:
        """Return the arguments for a checkpoint; None where they hold more than plain values."""
        args, kwargs = list(self.args), dict(self.kwargs)
        return (args, kwargs) if _is_plain(args) and _is_plain(kwargs) else None

    def clone(self) -> Batch:
        """Copy every tensor, so that a buffer the loop fills again cannot change the batch."""
        return Batch(_cloned(self.args), _cloned(dict(self.kwargs)))


def _is_plain(tree: Any) -> bool:
    if isinstance(tree, (list, tuple)):
        return all(_is_plain(item) for item in tree)
    if isinstance(tree, dict):
        return all(_is_plain(item) for item in tree.values())
    return tree is None or isinstance(tree, (Tensor, bool, int, float, str))


def as_batch(given: Any) -> Batch | Callable[[], Batch] | None:
    """Read what a user gives as a probe batch.

    Args:
        given: a tensor (one positional argument), a tuple or list (positional arguments), a mapping
            with string keys (keyword arguments), a callable that returns one of these at each
            call, or None.

    Raises:
        TypeError: for anything else.
    """
    if given is None or isinstance(given, Batch):
        return given
    if isinstance(given, Tensor):
        return Batch((given,))
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return Batch((), dict(given))
    if isinstance(given, (tuple, list)):
        return Batch(tuple(given))
    if callable(given):

        def batch() -> Batch:
            found = as_batch(given())
            if not isinstance(found, Batch):
                raise TypeError("the probe_batch callable must return a tensor, tuple or mapping")
            return found

        return batch
    raise TypeError(
        f"probe_batch is a {type(given).__name__}; give a tensor, a tuple of positional arguments, "
        "a dict of keyword arguments, or a callable that returns one of them"
    )


def _cloned(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: _cloned(item) for key, item in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_cloned(item) for item in tree)
    return tree
