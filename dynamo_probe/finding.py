"""Find what a script trains, and watch it: from outside, by hooks of torch alone."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from dynamo_probe.anatomy.taps import Removable
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.instrument import Instrument, fresh_copy
from dynamo_probe.watch import Watch

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one network.

    Attributes:
        name: the variable of the script that holds it, or its class.
        updates: how many updates were seen.
        log_dir: where its log is; "" where none was wanted.
        trouble: why it was not watched; None where it was.
    """

    name: str
    updates: int
    log_dir: str
    trouble: str | None = None


class Finder:
    """Watches every network that an optimizer of this process trains.

    It looks when a module is called for the first time, and finds the optimizers that are there and
    the modules that own their parameters; so the first forward pass is seen. An optimizer that is
    made later is found at its first step, whose forward pass is then not seen. Each network gets a
    watch with all its optimizers and a directory of its own; a network that gets a new optimizer
    begins a new one. Networks that were found are kept alive until `close`.

    Args:
        instruments: templates; each watch gets copies.
        log_dir: the directory above those of the networks; None writes nothing.
        names: where to look for the names of networks: the variables of the script.
    """

    def __init__(
        self, instruments: Sequence[Instrument], log_dir: str | None, names: dict[str, Any]
    ) -> None:
        """Put hooks on, for all modules and for all optimizers."""
        self._templates = list(instruments)
        self._log_dir = log_dir
        self._names = names
        self._watches: list[tuple[str, str, Watch]] = []
        self._refused: dict[str, Found] = {}
        self._taken: set[str] = set()
        self._known: WeakSet[Optimizer] = WeakSet()
        self._asked: WeakSet[nn.Module] = WeakSet()
        self._steps = register_optimizer_step_pre_hook(self._stepping)
        self._looking = True
        self._calls = register_module_forward_pre_hook(self._called)
        self._compiled: list[RemovableHandle] = [
            register_module_module_registration_hook(self._built)
        ]

    def close(self) -> list[Found]:
        """Let go of everything; return what was found, in the order in which it was."""
        self._stop_looking()
        self._steps.remove()
        found = []
        for name, log_dir, watch in self._watches:
            watch.close()
            if watch.step:
                found.append(Found(name, watch.step, log_dir))
            else:
                _remove_if_empty(log_dir)
        self._watches = []
        return found + list(self._refused.values())

    def _stop_looking(self) -> None:
        self._looking = False
        self._calls.remove()
        for handle in self._compiled:
            handle.remove()
        self._compiled.clear()

    # --- hooks: nothing may go from here into the script ----------------------------------------

    def _built(self, module: nn.Module, name: str, part: nn.Module | None) -> None:
        """See `torch.compile` wrap a module: it warns of global hooks, so one of its own is put."""
        try:
            if type(module).__name__ == "OptimizedModule" and name == "_orig_mod":
                self._calls.remove()
                hook = _CompiledCalled(self)
                self._compiled.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        except Exception:
            logger.debug("a compiled module could not be hooked", exc_info=True)

    def _called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """See a module before it runs."""
        if torch.compiler.is_compiling():
            return
        kwargs = _keywords_of_this_call(module)
        if kwargs is not None:
            self.look(module, args, kwargs)

    def look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look for optimizers at a call of a module that is not part of one called before."""
        try:
            if not self._looking or module in self._asked:
                return
            self._asked.update(module.modules())
            optimizers = [o for o in _alive(Optimizer) if _usable(o)]
            if not optimizers:
                return
            self._stop_looking()
            before = len(self._watches)
            self._known.update(optimizers)
            self._watch_all(optimizers)
            for _, _, watch in self._watches[before:]:
                _tell_of_call(watch, module, args, kwargs)
        except Exception:
            logger.debug("looking for a network failed", exc_info=True)

    def _stepping(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """See an optimizer before it steps; all that most steps cost is one look-up."""
        try:
            if optimizer in self._known:
                return
            self._known.add(optimizer)
            self._stop_looking()
            others = [o for o in _alive(Optimizer) if o is not optimizer and _usable(o)]
            self._watch_all([optimizer], others)
        except Exception:
            logger.debug("looking for a network failed", exc_info=True)

    # --- finding ----------------------------------------------------------------------------------

    def _watch_all(self, optimizers: Sequence[Optimizer], others: Sequence[Optimizer] = ()) -> None:
        """Watch the networks of some optimizers, each with all optimizers that train it."""
        modules = list(_alive(nn.Module))
        pairs: list[tuple[nn.Module, list[Optimizer]]] = []
        for optimizer in sorted(optimizers, key=lambda o: -len(_held(o))):
            for model in owners(optimizer, modules):
                ours = {id(p) for p in unwrap(model).parameters()}
                same = [pair for pair in pairs if not ours.isdisjoint(_parameters(pair[0]))]
                if same:
                    same[0][1].append(optimizer)
                else:
                    more = [o for o in others if not ours.isdisjoint(_held(o))]
                    self._known.update(more)
                    pairs.append((model, [optimizer, *more]))
        for model, trained_by in pairs:
            self._watch(model, trained_by)

    def _watch(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        name = self._name_of(model)
        log_dir = "" if self._log_dir is None else os.path.join(self._log_dir, name)
        ours = _parameters(model)
        for _, _, earlier in self._watches:
            if not ours.isdisjoint(_parameters(earlier.model)):
                earlier.close()  # its optimizer was replaced, and with it its clock
        try:
            instruments = [fresh_copy(one) for one in self._templates]
            watch = Watch(model, optimizers, instruments, log_dir=log_dir or None)
        except Exception as error:
            _remove_if_empty(log_dir)
            logger.debug("%s is not watched", name, exc_info=True)
            self._refused[name] = Found(name, 0, log_dir, f"{error}")
        else:
            self._watches.append((name, log_dir, watch))

    def _name_of(self, model: nn.Module) -> str:
        inner = unwrap(model)
        values = [(k, v) for k, v in self._names.items() if isinstance(v, nn.Module)]
        known = [k for k, v in values if v is model or unwrap(v) is inner]
        base = name = known[0] if known else type(inner).__name__.lower()
        number = 1
        while name in self._taken:
            number += 1
            name = f"{base}-{number}"
        self._taken.add(name)
        return name


class _CompiledCalled(Removable):
    __slots__ = ("finder",)

    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self.finder.look(module, args, kwargs)


def owners(optimizer: Optimizer, modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules that an optimizer trains.

    That is the module that has all its parameters and the fewest others that could be trained; of
    several such, the outermost (a wrapper of `torch.compile`, say). Where no module has them all,
    those that have nothing else and are not inside another one.

    Args:
        optimizer: the optimizer.
        modules: those to choose from.
    """
    held = _held(optimizer)
    sizes: dict[int, tuple[nn.Module, set[int], int]] = {}
    for module in modules:
        trainable = {id(p) for p in module.parameters() if p.requires_grad and not is_lazy(p)}
        if not trainable.isdisjoint(held):
            sizes[id(module)] = module, trainable, sum(1 for _ in module.modules())
    whole = [one for one in sizes.values() if held <= one[1]]
    if whole:
        return [min(whole, key=lambda one: (len(one[1]), -one[2]))[0]]
    parts = sorted((one for one in sizes.values() if one[1] <= held), key=lambda one: -one[2])
    chosen: list[nn.Module] = []
    covered: set[int] = set()
    for module, trainable, _ in parts:
        if not trainable <= covered:
            chosen.append(module)
            covered |= trainable
    return chosen


def _held(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}


def _parameters(model: nn.Module) -> set[int]:
    return {id(p) for p in unwrap(model).parameters()}


def _alive(kind: type[T]) -> Iterable[T]:
    """Return all objects of a class; by `type`, because a proxy may do anything when asked."""
    return [one for one in gc.get_objects() if issubclass(type(one), kind)]


def _usable(optimizer: Optimizer) -> bool:
    """Whether it is a real one: a wrapper around another has no hooks of its own."""
    return "_optimizer_step_post_hooks" in vars(optimizer) and hasattr(optimizer, "param_groups")


def _keywords_of_this_call(module: nn.Module) -> dict[str, Any] | None:
    """Return the keyword arguments of the call that a global pre-hook is told of.

    torch does not hand them to global hooks, and a hook that is put on the module itself now is
    only asked from its next call on.
    """
    frame = sys._getframe(2)
    names = frame.f_locals
    if names.get("self") is module and isinstance(names.get("kwargs"), dict):
        return names["kwargs"]
    return None


def _tell_of_call(
    watch: Watch, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Show a watch the call that is under way, which its own hooks have missed."""
    if watch._discovery is None:
        return
    inner = unwrap(module)
    for name, part in watch.model.named_modules():
        if part is inner:
            watch._discovery.called(name, args, kwargs)


def _remove_if_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        pass
