"""Where a layer's units are read, and the hook that reads them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynamo_probe.anatomy.pointwise import Pointwise


@dataclass(frozen=True, slots=True)
class Tap:
    """Where the units of a layer are read.

    Attributes:
        module: qualified name of the module the hook sits on.
        argument: which argument of the module is read; None reads its output.
        function: applied to what is read; None where that is already after the activation.
        axis: the dimension of the units, counted from the end (negative).
    """

    module: str
    argument: int | str | None
    function: Pointwise | None
    axis: int

    def __str__(self) -> str:
        """Say it in words."""
        where = (
            f"input of {self.module}" if self.argument is not None else f"output of {self.module}"
        )
        return f"{self.function.name}({where})" if self.function else where


Observer = Callable[[Tensor], None]
"""Takes what is read at a tap, before the tap's function. It must return None."""


def install(model: nn.Module, tap: Tap, observe: Observer) -> RemovableHandle:
    """Put a hook on the model that hands what passes the tap to an observer.

    Args:
        model: the model that `tap.module` is named in.
        tap: where to read.
        observe: called at each pass with the tensor as it is there.
    """
    module = model.get_submodule(tap.module)
    if tap.argument is None:
        return module.register_forward_hook(_OutputHook(observe))
    if isinstance(tap.argument, int):
        return module.register_forward_pre_hook(_ArgumentHook(observe, tap.argument))
    return module.register_forward_pre_hook(_KeywordHook(observe, tap.argument), with_kwargs=True)


def _nothing(*_: object) -> None:
    """Stand in for a hook in a copy of the model: copies carry no ghost of the probe."""


def _no_hook() -> Callable[..., None]:
    return _nothing


class Removable:
    """A hook that stays with the model it was put on: copies and pickles get an empty one."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        """Give the copy a hook that does nothing."""
        return _nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        """Give the pickle a hook that does nothing."""
        return _no_hook, ()


class _OutputHook(Removable):
    __slots__ = ("observe",)

    def __init__(self, observe: Observer) -> None:
        self.observe = observe

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.observe(output)


class _ArgumentHook(Removable):
    __slots__ = ("argument", "observe")

    def __init__(self, observe: Observer, argument: int) -> None:
        self.observe = observe
        self.argument = argument

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.observe(args[self.argument])


class _KeywordHook(Removable):
    __slots__ = ("argument", "observe")

    def __init__(self, observe: Observer, argument: str) -> None:
        self.observe = observe
        self.argument = argument

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.observe(kwargs[self.argument])
