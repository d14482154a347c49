"""Updates that nobody is to hear of: hooks that listen to a training are silent for a while."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.observation.recorder import Gate

_OF_MODULES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_OPTIMIZERS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_OF_ALL_OPTIMIZERS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")

_Hooks = MutableMapping[int, Any]


@contextmanager
def quiet(
    model: nn.Module, optimizers: Sequence[Optimizer], *, keep_hooks: bool = False
) -> Generator[None, None, None]:
    """Silence watches, and hooks on optimizers' steps.

    Of the hooks on modules and parameters only this library's own are silent: with the user's, the
    model would be another one. Hooks that are put on optimizers meanwhile are gone afterwards.

    Args:
        model: the model, best with its wrappers.
        optimizers: the optimizers.
        keep_hooks: the user's own hooks on steps go on working.
    """

    def chosen(hooks: _Hooks) -> OrderedDict[int, Any]:
        return OrderedDict((k, h) for k, h in hooks.items() if keep_hooks and not _is_ours(h))

    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    with ExitStack() as stack:
        for hooks in _hooks_of(model, held):
            stack.callback(_silence(hooks))
        # A loop may be going over these very hooks: the dicts are exchanged and not changed.
        for optimizer in optimizers:
            for name in _OF_OPTIMIZERS:
                _exchange(stack, vars(optimizer), name, chosen)
        for name in _OF_ALL_OPTIMIZERS:
            _exchange(stack, vars(sys.modules[Optimizer.__module__]), name, chosen)
        yield


def _hooks_of(model: nn.Module, held: Iterable[Tensor]) -> Generator[_Hooks, None, None]:
    for module in model.modules():
        for name in _OF_MODULES:
            yield getattr(module, name)
    tensors = {id(t): t for t in (*model.parameters(), *held)}
    for tensor in tensors.values():
        hooks = getattr(tensor, "_post_accumulate_grad_hooks", None)
        if hooks:
            yield hooks


def _silence(hooks: _Hooks) -> Callable[[], None]:
    """Shut the gates of our hooks, and take those without a gate off; return how to undo it."""
    before = list(hooks.items())
    gates = [gate for _, hook in before if (gate := _gate_of(hook)) is not None and gate.on]
    taken = {k for k, hook in before if _is_ours(hook) and _gate_of(hook) is None}
    for gate in gates:
        gate.on = False
    for key in taken:
        del hooks[key]

    def undo() -> None:
        for gate in gates:
            gate.on = True
        if taken:  # in their old order, and what is new behind
            new = [(k, h) for k, h in hooks.items() if k not in dict(before)]
            old = [(k, h) for k, h in before if k in taken or k in hooks]
            hooks.clear()
            hooks.update([*old, *new])

    return undo


def _exchange(
    stack: ExitStack,
    home: dict[str, Any],
    name: str,
    chosen: Callable[[_Hooks], OrderedDict[int, Any]],
) -> None:
    stack.callback(home.__setitem__, name, home[name])
    home[name] = chosen(home[name])


def _gate_of(hook: Any) -> Gate | None:
    # With a shut gate a hook may stay: code that was compiled with it needs no other version.
    for holder in (hook, getattr(hook, "observe", None)):
        gate = getattr(holder, "gate", None)
        if isinstance(gate, Gate):
            return gate
    return None


def _is_ours(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "dynamo_probe"
