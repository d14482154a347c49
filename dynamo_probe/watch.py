"""The watch: it attaches instruments to a training loop, runs them on time, and lets go again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from dynamo_probe.agenda import Agenda, Timer
from dynamo_probe.anatomy.axes import declared_axes
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.budget import Budget
from dynamo_probe.clocks import Clocks
from dynamo_probe.conductor import Conductor
from dynamo_probe.constraints import Constraints, has_closure
from dynamo_probe.discovery import Discovery, already_ran_compiled, compiled_wrapper, is_compiled
from dynamo_probe.doctor import Report, examine
from dynamo_probe.events import shorten
from dynamo_probe.instrument import Event, Instrument
from dynamo_probe.observation.batch import Batch, as_batch
from dynamo_probe.processes import group_of, writes
from dynamo_probe.requirements import check_instruments, check_model, check_optimizers
from dynamo_probe.resume import FORMAT, check_state, shapes
from dynamo_probe.sinks.courier import Courier
from dynamo_probe.sinks.given import as_sinks
from dynamo_probe.sinks.memory import History
from dynamo_probe.site import Site
from dynamo_probe.warning import DynamoProbeWarning as DynamoProbeWarning
from dynamo_probe.warning import warn

logger = logging.getLogger("dynamo_probe")


class Watch:
    """Instruments attached to a training loop. Made by `dynamo_probe.watch`.

    Use it as a context manager, or call `close`. Between two steps of the (first) optimizer lies
    one update; `step` counts them. Everything a watch does, it does inside hooks of torch: nothing
    inside the loop changes.

    Attributes:
        history: readings in memory: `.tags()`, `.series(tag)`, `.latest(tag)`, `.to_pandas()`,
            `.plot()`.
        events: what was done or noticed, in order.
        most_events: when there are more, the older half goes, and a note says how many went.
    """

    most_events = 10_000

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        instruments: Instrument | Sequence[Instrument],
        *,
        log_dir: str | os.PathLike[str] | None = None,
        sinks: Sequence[Any] = (),
        probe_batch: Any = None,
        process_group: Any = None,
        seed: int = 0,
        on_error: Literal["warn", "raise"] = "warn",
        budget: float | Mapping[str, int] | None = None,
        axes: Mapping[str, str] | None = None,
        clocks: Mapping[str, Callable[[], float]] | None = None,
    ) -> None:
        """Attach; see `dynamo_probe.watch` for the arguments."""
        if on_error not in ("warn", "raise"):
            raise ValueError(f"on_error is {on_error!r}; give 'warn' or 'raise'")
        self.history = History()
        self.events: list[Event] = []
        self._on_error = on_error
        self._closed = False
        self._working = False
        self._started = False
        self._met: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._discovery: Discovery | None = None
        self._clocks = Clocks(clocks, self._clock_trouble)
        self._wrapper = model
        inner = unwrap(model)
        declared = declared_axes(inner, axes)
        check_model(inner, declared)
        optimizers = check_optimizers(inner, optimizer)
        chosen = check_instruments(instruments)
        group = group_of(model, inner, process_group)
        self._site = Site(inner, optimizers, as_batch(probe_batch), group, seed, declared)
        if already_ran_compiled(inner, model):
            self._site.no_riding = (
                "the model has already run under torch.compile, and torch ignores hooks that come "
                "later; attach before its first call to ride on the training's forward passes"
            )
        found = as_sinks(log_dir, sinks) if writes(group) else []
        self._courier = Courier(found, self._sink_trouble) if found else None
        try:
            self._agenda = Agenda([self._made(instrument) for instrument in chosen])
            self._followers = [
                (timer, follower)
                for follower in self._site.followers
                for timer in self._agenda.timers
                if timer.instrument is follower.instrument
            ]
            self._conductor = Conductor(self._site, self._agenda, self._warn)
            self._constraints = Constraints(
                self._site, self._agenda, self._warn, strict=on_error == "raise"
            )
            if self._site.fixed.given is not None:
                self._meet("", self._site.batches()[""])
            if self._site.no_riding is not None:
                self._site.note("note", "torch.compile", reason=self._site.no_riding)
                self._warn(f"{self._site.no_riding}. Until then the probe batch is observed.")
            self._budget = Budget(budget) if isinstance(budget, (int, float)) else None
            self._agenda.pin(budget if isinstance(budget, Mapping) else {})
            self._agenda.arm(0)
            self._hook(optimizers[0])
            self._conductor.strict = on_error == "raise"
        except BaseException:
            self.close()
            raise

    def _made(self, instrument: Instrument) -> Timer:
        site = self._site
        sources, actions = len(site.sources), len(site.before_steps)
        instrument.attach(site)
        before = [(action, early) for _, action, early in site.before_steps[actions:]]
        return Timer(instrument, site.sources[sources:], before)

    def _hook(self, clock: Optimizer) -> None:
        site = self._site
        # Some instruments act, or remember, before anything has been learned.
        begins = any(type(one).start is not Instrument.start for one in self.instruments)
        for optimizer in site.optimizers:
            if site.before_steps or site.constraints or begins:
                self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            if site.constraints:  # before the clock: what is read of an update is constrained
                self._handles.append(self._constraints.hook(optimizer))
        self._handles.append(clock.register_step_post_hook(self._after_step))
        for owner in site.owners - {0}:
            stepped = partial(self._other_step, owner)
            self._handles.append(site.optimizers[owner].register_step_post_hook(stepped))
        model, wrapper = self._site.model, self._wrapper
        compiled = compiled_wrapper(wrapper)  # a hook inside it would be traced and hear nothing
        for tap in (follower.tap for follower in site.followers):
            if tap is not None:
                tap.put_on(model if compiled is None else compiled, lambda: self._working)
        if self._site.layers:
            self._met.add("")
            if not site.constraints:  # whoever begins is told so before the first step
                return
        self._discovery = Discovery(model, wrapper, self._called)
        if compiled is None and is_compiled(model):
            reason = "model.compile() hides the first forward pass: give probe_batch= to dp.watch"
            self._site.note("skipped", "the model", reason=reason)
            self._warn(reason)

    # --- what a user reads and calls ----------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer updates seen; skipped steps (a gradient scaler's) do not count."""
        return self._site.step

    @property
    def model(self) -> nn.Module:
        """The model inside any wrapper."""
        return self._site.model

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """The instruments, in the order in which they fire."""
        return tuple(timer.instrument for timer in self._agenda.timers)

    def doctor(self) -> Report:
        """Report what is tapped and how, what is skipped and why, and what has fired how often."""
        fired = [(t.instrument, t.fired, t.last, t.due, t.off) for t in self._agenda.timers]
        trouble = self._courier.report() if self._courier is not None else []
        return examine(self._site, fired, trouble)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit-identically; put it into the checkpoint.

        It holds tensors, numbers, strings and containers of them, so that
        `torch.load(weights_only=True)` reads it.
        """
        return {
            "format": FORMAT,
            "step": self.step,
            "model": shapes(self._site),
            "instruments": {t.instrument.name: t.state_dict() for t in self._agenda.timers},
            "history": self.history.state_dict(),
            "batches": self._site.fixed.state_dict(),
            "events": [(e.step, e.kind, e.subject, dict(e.detail)) for e in self.events],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; call it before the first update.

        Raises:
            ValueError: when the state is of another model, other instruments or another format;
                nothing is changed then.
        """
        check_state(state, self._site, self.instruments)
        self._site.step = int(state["step"])
        self._site.events, self._site.readings = [], []  # what attaching noted is in the state
        for timer in self._agenda.timers:
            timer.load_state_dict(state["instruments"][timer.instrument.name])
        self._site.fixed.load_state_dict(state["batches"])
        self.history.load_state_dict(state["history"])
        self.events[:] = [Event(*event) for event in state["events"]]
        self._agenda.plan(self.step)
        if self._courier is not None:
            self._courier.resume(self.step, self.history.beginnings())

    def close(self) -> None:
        """Let go of the model: no hook, attribute or thread is left. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._discovery is not None:
            self._discovery.close()
        for handle in self._handles:
            handle.remove()
        for source in self._site.sources:
            source.recorder.close()
        for follower in self._site.followers:
            if follower.tap is not None:
                follower.tap.close()
        for instrument in self.instruments if hasattr(self, "_agenda") else ():
            self._guarded(lambda instrument=instrument: self._finish(instrument))
        self._deliver()
        if self._courier is not None:
            self._courier.close()

    def _finish(self, instrument: Instrument) -> None:
        remark = instrument.finish(self._site)
        if remark is not None:
            self._site.note("alert", instrument.name, reason=remark)
            self._warn(f"{instrument.name}: {remark}")

    def __enter__(self) -> Watch:
        """Return the watch."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, also after an exception, which goes on."""
        self.close()

    def __repr__(self) -> str:
        """Say it in one line."""
        names = ", ".join(instrument.name for instrument in self.instruments)
        return f"Watch(update {self.step}, {names}{', closed' if self._closed else ''})"

    @property
    def closed(self) -> bool:
        """Whether the watch has let go of the model."""
        return self._closed

    def _repr_html_(self) -> str:
        """Show it in a notebook: instruments, layers, the last events, the newest figures."""
        from dynamo_probe.display import html

        return html.of_watch(self)

    def __rich__(self) -> object:
        """Show it in a terminal: `rich.print(watch)`."""
        from dynamo_probe.display import table

        return table.of_watch(self)

    # --- what happens in the loop ---------------------------------------------------------------

    def _called(self, prefix: str, batch: Batch) -> None:
        """See a forward pass before it runs: the first one shows the anatomy."""
        if self._working or self._closed:
            return
        if prefix not in self._met:
            self._met.add(prefix)
            self._site.fixed.see(prefix, batch)
            self._guarded(lambda: self._meet(prefix, batch))
        elif torch.is_grad_enabled() and self._site.fixed.given is None:
            self._site.fixed.see(prefix, batch)
        if not prefix and torch.is_grad_enabled():
            self._start()

    def _start(self) -> None:
        """Let instruments begin, once: they may change the model now."""
        if not self._started:
            self._started = True
            for timer in self._agenda.timers:
                if timer.off is None:
                    self._guarded(lambda timer=timer: self._begin(timer))
            self._deliver()  # it belongs to this update, and not to the next

    def _begin(self, timer: Timer) -> None:
        self._working = True
        try:
            self._conductor.run(timer, timer.instrument.start)
        finally:
            self._working = False

    def _meet(self, prefix: str, batch: Batch) -> None:
        self._working = True
        try:
            self._site.meet(prefix, batch)
            for timer in self._agenda.timers:
                if timer.off is None:
                    self._conductor.run(timer, timer.instrument.begin)
        finally:
            self._working = False

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Let instruments look before a step; on most updates this is one comparison."""
        closure = has_closure(args, kwargs)
        self._start()
        step = self._site.step + 1
        due = list(self._agenda.due_before(step)) if step >= self._agenda.before else []
        if due:
            self._guarded(lambda: self._look(due, optimizer, closure, early=True))
        self._constraints.before(optimizer, closure)
        if due:
            self._guarded(lambda: self._look(due, optimizer, closure, early=False))

    def _look(
        self, due: Sequence[Timer], optimizer: Optimizer, closure: bool, *, early: bool
    ) -> None:
        for timer in due:
            for action, wants_early in timer.before:
                if wants_early is early:
                    self._conductor.run(timer, lambda site, do=action: do(optimizer, closure))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Count an update; this is all that most updates cost."""
        if _called_off(optimizer):
            return
        site = self._site
        site.step += 1
        self._settle(0)
        if self._budget is not None:
            self._budget.update_ends(bool(self._agenda.gathering))
        if self._followers:
            self._guarded(self._follow)
        if site.step >= self._agenda.wake:
            self._guarded(self._work)
        elif self._followers:
            self._deliver()

    def _other_step(self, owner: int, optimizer: Optimizer, *_: Any) -> None:
        """See a step of an optimizer that is not the clock."""
        if self._agenda.gathering and not _called_off(optimizer):
            self._settle(owner)

    def _settle(self, owner: int) -> None:
        """Keep what was gathered of an optimizer's layers: its step has made use of it."""
        for recorder in self._agenda.gathering:
            self._guarded(partial(recorder.settle, owner))

    def _follow(self) -> None:
        """Let instruments see every update; what is disabled sees no more."""
        self._working = True
        try:
            for timer, follower in self._followers:
                if timer.off is None:
                    self._conductor.run(timer, follower.action)
                if timer.off is not None and follower.tap is not None:
                    follower.tap.close()
        finally:
            self._working = False

    def _work(self) -> None:
        site, step = self._site, self._site.step
        self._working = True
        try:
            if site.fixed.seen and self._discovery is not None:
                site.fixed.keep()
                self._discovery.settle()
            fires = bool(self._agenda.due(step))
            self._agenda.gather(step, site.process_group)
            acted = self._conductor.fire_due(step)
            if acted:
                self._constraints.hold()
            self._agenda.arm(step)
            if self._budget is not None:
                self._conductor.keep_budget(self._budget, fires)
        finally:
            self._working = False
        self._deliver()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Keep a failure of the watch itself away from the training."""
        try:
            action()
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._agenda.halt(f"{type(error).__name__}: {error}")
            logger.debug("the watch failed", exc_info=True)
            self._site.note("disabled", "the watch", reason=f"{type(error).__name__}: {error}")
            self._warn(
                f"the watch failed at update {self.step} and is disabled; training goes on: {error}"
            )

    def _deliver(self) -> None:
        """Hand the readings and events of this update to the history and the sinks."""
        site = self._site
        readings, events = site.readings, site.events
        if not readings and not events:
            return
        site.readings, site.events = [], []
        if readings:
            readings += self._clocks.readings(self.step)
        self.history.add(readings)
        self.events += events
        shorten(self.events, self.most_events)
        if self._courier is not None:
            self._courier.send(self.step, readings, events)

    # --- small things -------------------------------------------------------------------------

    def _clock_trouble(self, clock: str, message: str) -> None:
        self.events.append(Event(self.step, "disabled", clock, {"reason": message}))
        self._warn(f"{clock} failed and is not read any more; training goes on. {message}")

    def _sink_trouble(self, sink: str, message: str) -> None:
        self.events.append(Event(self.step, "note", sink, {"reason": message}))
        self._warn(f"{sink}: {message}")

    def _warn(self, message: str) -> None:
        warn(message, stacklevel=4)


def _called_off(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer was told to change nothing in its step."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)
