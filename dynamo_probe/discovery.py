"""Meet the modules that a loop calls, at their first forward pass, from outside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dynamo_probe.anatomy.taps import Removable
from dynamo_probe.observation.batch import Batch


class Discovery:
    """Hooks that tell of each module's first call that is not inside another module's call.

    Usually that is the model itself. An agent whose methods call `self.actor(...)` and
    `self.critic(...)` has two such modules. Once a module is met, the hooks below it are gone; the
    hook on itself stays until `settle`, to see the inputs of the first training pass.
    """

    def __init__(
        self, model: nn.Module, wrapper: nn.Module, met: Callable[[str, Batch], None]
    ) -> None:
        """Put the hooks on.

        Args:
            model: the model inside any wrapper.
            wrapper: what the loop calls; the same as `model` where nothing is wrapped.
            met: called with a module's qualified name and inputs, again at each later call with
                gradients until `settle`.
        """
        self._tell = met
        self._met: set[str] = set()
        self._handles: dict[str, RemovableHandle] = {}
        compiled = compiled_wrapper(wrapper)
        if compiled is not None:
            # A hook on a module inside would be traced; one on the wrapper runs before the graph.
            self._put("", compiled)
        else:
            for name, module in model.named_modules():
                if not is_compiled(module):
                    self._put(name, module)

    def _put(self, name: str, module: nn.Module) -> None:
        self._handles[name] = module.register_forward_pre_hook(
            _Called(self, name), with_kwargs=True
        )

    def called(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call: drop the hooks below and tell."""
        if name not in self._met:
            self._met.add(name)
            for other in [o for o in self._handles if o != name and _is_below(o, name)]:
                self._handles.pop(other).remove()
        self._tell(name, Batch(args, kwargs))

    def settle(self) -> None:
        """Stop looking at modules that were met; those not yet called are still looked out for."""
        for name in self._met & self._handles.keys():
            self._handles.pop(name).remove()

    def close(self) -> None:
        """Take all hooks off."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()


def _is_below(name: str, parent: str) -> bool:
    return not parent or name.startswith(f"{parent}.")


class _Called(Removable):
    __slots__ = ("discovery", "name")

    def __init__(self, discovery: Discovery, name: str) -> None:
        self.discovery = discovery
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return  # inside a compiled train step: what follows could not be traced
        self.discovery.called(self.name, args, kwargs)


def compiled_wrapper(wrapper: nn.Module) -> nn.Module | None:
    """Return the `torch.compile` wrapper that a call goes through; None where there is none."""
    outer: Any = wrapper
    while isinstance(outer, nn.Module):
        if type(outer).__name__ == "OptimizedModule":
            return outer
        parallel = isinstance(outer, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        outer = outer.module if parallel else None
    return None


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return getattr(module, "_compiled_call_impl", None) is not None


def already_ran_compiled(model: nn.Module, wrapper: nn.Module) -> bool:
    """Whether compiled code of the model may exist: hooks that come now would be ignored by torch.

    The compiler keeps its code by class, so that another model of the same class answers yes too.
    That errs on the side of not trusting a hook.

    Args:
        model: the model inside any wrapper.
        wrapper: what the loop calls.
    """
    if "torch._dynamo" not in sys.modules:
        return False
    outer: Any = compiled_wrapper(wrapper)
    if outer is None and not any(is_compiled(module) for module in model.modules()):
        return False
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    called = (
        type(model).forward,
        nn.Module._call_impl,
        # What torch's own modules, such as nn.Sequential, are compiled from.
        getattr(getattr(outer, "forward", None), "_torchdynamo_orig_callable", None),
    )
    codes = {code for f in called if (code := getattr(f, "__code__", None)) is not None}
    return any(len(_debug_get_cache_entry_list(code)) > 0 for code in codes)
