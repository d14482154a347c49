"""Continued training: some updates more, at a frozen learning rate and with masks that hold."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dynamo_probe.functional.moments import States, fresh_value, per_weight
from dynamo_probe.functional.unmeasurable import Unmeasurable
from dynamo_probe.observation.parameters import held_by

_MOST_SKIPPED = 20
"""So many updates in a row may be called off by a gradient scaler."""


class Held:
    """Keeps connections that are not there at zero, around every step of the optimizers.

    Weights, gradients and every state of the weight's shape are 0 there (states of another kind
    what they are for a fresh weight of 0), so that this is exact for every optimizer.

    Args:
        weights: {name: parameter}.
        masks: {name: BoolTensor of the parameter's shape}; what is not named is left whole.
        optimizers: the optimizers.
        in_backward: mask gradients as soon as they are made, and not before the step.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        optimizers: Sequence[Optimizer],
        *,
        in_backward: bool = False,
    ) -> None:
        """Take the masks; nothing is changed."""
        self.in_backward = in_backward
        # As numbers 0 and 1: a product with them takes a tenth of the time of a masked fill.
        self._masks = [(weights[name], mask.to(torch.int8)) for name, mask in masks.items()]
        self._states = States(optimizers)

    @torch.no_grad()
    def clear(self) -> None:
        """Set weights and states to zero where no connection is."""
        for parameter, factor in self._masks:
            off = factor == 0
            parameter.masked_fill_(off, 0.0)
            for value, fresh in self._states_of(parameter):
                value.masked_fill_(off.to(value.device), fresh)

    @contextmanager
    def hold(self) -> Generator[None, None, None]:
        """Mask gradients as they are made, where that was asked for."""
        with ExitStack() as stack:
            for parameter, factor in self._masks if self.in_backward else ():
                hook = partial(_mask_gradient, factor=factor)
                stack.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
            yield

    @torch.no_grad()
    def before(self, optimizer: Optimizer) -> None:
        """Mask the gradients that a step is about to use."""
        held = held_by(optimizer)
        for parameter, factor in self._masks:
            if id(parameter) in held:
                _mask_gradient(parameter, factor=factor)

    @torch.no_grad()
    def after(self, optimizer: Optimizer) -> None:
        """Mask what a step has written."""
        held = held_by(optimizer)
        for parameter, factor in self._masks:
            if id(parameter) not in held:
                continue
            parameter.mul_(factor)
            for value, fresh in self._states_of(parameter):
                if fresh:
                    value.masked_fill_(factor.to(value.device) == 0, fresh)
                else:
                    value.mul_(factor.to(value.device))

    def _states_of(self, parameter: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield the states of a parameter's shape, and what each is for a fresh weight of 0."""
        for state, group in self._states.of(parameter):
            for key, value in state.items():
                if per_weight(value, parameter):
                    yield value, fresh_value(key, group)


class Contraining:
    """Calls the caller's own training step, and sees to it that it does what it should.

    Attributes:
        learning_rates: those that are frozen, of each group of each optimizer that has one.
        moved: whether a step of the training has set a learning rate itself.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        train_step: Callable[[], Any],
        *,
        frozen: bool,
        scalers: Collection[torch.amp.GradScaler],
    ) -> None:
        """Note the learning rates.

        Args:
            optimizers: all that `train_step` steps; the first one's steps are the updates.
            train_step: makes one update.
            frozen: hold the learning rates.
            scalers: gradient scalers that can be put back.
        """
        self._optimizers = tuple(optimizers)
        self._train_step = train_step
        self._scalers = {id(scaler) for scaler in scalers}
        groups = [g for o in optimizers for g in o.param_groups if g.get("lr") is not None]
        self._rates = [(g, _copied(g["lr"])) for g in groups]
        self.learning_rates = tuple(float(rate) for _, rate in self._rates)
        self.moved = False
        self.frozen = frozen
        self._held: Held | None = None
        self._look: Callable[[Optimizer], None] | None = None
        self._error: Exception | None = None
        self._steps: dict[int, int] = {}
        self._stepped: set[int] = set()

    def run(
        self,
        updates: int,
        held: Held | None = None,
        *,
        done: Callable[[int], None] | None = None,
        look: Callable[[Optimizer], None] | None = None,
    ) -> None:
        """Make updates.

        Args:
            updates: how many.
            held: the masks that hold.
            done: called after each update with the number of updates made.
            look: called before each step of each optimizer, before gradients are masked.

        Raises:
            ValueError: when `train_step` does not step as it should.
            Unmeasurable: when a gradient scaler calls off one update after the other.
        """
        self._held, self._look, self._error = held, look, None
        self._stepped.clear()
        with ExitStack() as stack:
            if held is not None:
                stack.enter_context(held.hold())
            stack.callback(register_optimizer_step_pre_hook(self._foreign).remove)
            for optimizer in self._optimizers:
                stack.callback(optimizer.register_step_pre_hook(self._before).remove)
                stack.callback(optimizer.register_step_post_hook(self._after).remove)
            for update in range(1, updates + 1):
                self._update()
                if done is not None:
                    done(update)

    def idle(self, weights: Collection[Tensor]) -> Optimizer | None:
        """Return an optimizer that holds some of the weights and took no step in the last run."""
        ids = {id(weight) for weight in weights}
        for optimizer in self._optimizers:
            if id(optimizer) not in self._stepped and not ids.isdisjoint(held_by(optimizer)):
                return optimizer
        return None

    def _update(self) -> None:
        clock = self._optimizers[0]
        for _ in range(_MOST_SKIPPED):
            self._steps = {}
            self._freeze()
            torch.clear_autocast_cache()  # it may hold weights of before
            with torch.inference_mode(False), torch.enable_grad():
                self._train_step()
            if self._error is not None:  # the caller's code may have caught it
                raise self._error
            self.moved |= any(float(g["lr"]) != float(rate) for g, rate in self._rates)
            steps = self._steps.get(id(clock), 0)
            if steps == 1:
                return
            if steps > 1:
                raise ValueError(
                    f"train_step stepped {type(clock).__name__} {steps} times; let it make one "
                    "update a call"
                )
            if not self._scalers:
                raise ValueError(
                    f"train_step did not step {type(clock).__name__}; let it call the step() of "
                    "the very optimizer that was given, once a call. Where a GradScaler skips "
                    "steps, give the scaler in also="
                )
        raise Unmeasurable(
            f"train_step was called {_MOST_SKIPPED} times without a step: the gradient scaler "
            "skips them, because gradients are not finite"
        )

    def _freeze(self) -> None:
        for group, rate in self._rates if self.frozen else ():
            if isinstance(group["lr"], Tensor):
                with torch.no_grad():
                    group["lr"].copy_(torch.as_tensor(rate))
            else:
                group["lr"] = rate

    def _foreign(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if all(optimizer is not known for known in self._optimizers):
            self._refuse(
                f"train_step steps another optimizer, {type(optimizer).__name__}: what it changes "
                "could not be put back; give all optimizers, the one that counts updates first"
            )

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        scaler = stepping_scaler()
        if scaler is not None and id(scaler) not in self._scalers:
            scaler._per_optimizer_states.pop(id(optimizer), None)
            self._refuse("train_step uses a GradScaler: give it in also=, so that it is put back")
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None and (self._look or self._held and not self._held.in_backward):
            self._refuse(
                f"train_step gives {type(optimizer).__name__} a closure, in which gradients are "
                "made after the last look at them: give mask_grads='backward', and no "
                "regeneration by gradients"
            )
        # Once more: the step may come after the caller has set a rate.
        self.moved |= any(float(g["lr"]) != float(rate) for g, rate in self._rates)
        self._freeze()
        if self._look is not None:
            self._look(optimizer)
        if self._held is not None:
            self._held.before(optimizer)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        found = getattr(optimizer, "found_inf", None)
        if found is not None and bool(found):
            return  # a fused optimizer that was told to change nothing
        self._steps[id(optimizer)] = self._steps.get(id(optimizer), 0) + 1
        self._stepped.add(id(optimizer))
        if self._held is not None:
            self._held.after(optimizer)

    def _refuse(self, reason: str) -> None:
        self._error = ValueError(reason)
        raise self._error


def stepping_scaler() -> torch.amp.GradScaler | None:
    """Return the gradient scaler whose step the caller is inside of; None where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "step":
            caller = frame.f_locals.get("self")
            if isinstance(caller, torch.amp.GradScaler) and caller.is_enabled():
                return caller
        frame = frame.f_back
    return None


def _mask_gradient(parameter: Tensor, *, factor: Tensor) -> None:
    if parameter.grad is not None:
        with torch.no_grad():
            parameter.grad.mul_(factor)


def _copied(rate: float | Tensor) -> float | Tensor:
    return rate.detach().clone() if isinstance(rate, Tensor) else rate
