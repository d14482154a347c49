"""What an instrument sees of a run: the model, its layers and wiring, a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.axes import Axes
from dynamo_probe.anatomy.layer import Layer, units_of
from dynamo_probe.anatomy.neurons import find_neurons
from dynamo_probe.anatomy.shards import is_sharded
from dynamo_probe.anatomy.wiring import Wiring, wire
from dynamo_probe.connections import Connections
from dynamo_probe.fixed import FixedBatches
from dynamo_probe.instrument import Event, Instrument, Reading
from dynamo_probe.observation.apart import apart
from dynamo_probe.observation.backward import BackwardRecorder
from dynamo_probe.observation.batch import Batch
from dynamo_probe.observation.inputs import InputTap
from dynamo_probe.observation.learner import learned_layers
from dynamo_probe.observation.statistics import MAGNITUDE, Statistic
from dynamo_probe.prefixes import bound, inside, joined, layer_in, wiring_in
from dynamo_probe.source import NotMeasurable, Source, Where

BeforeStep = Callable[[Optimizer, bool], None]
"""Takes an optimizer that is about to step, and whether it was given a closure."""
AfterStep = Callable[[Optimizer, bool], None]
"""Takes an optimizer that has just stepped, and whether it was given a closure."""


def _nothing(*_: object) -> None:
    """Stand for what an instrument does not do."""


@dataclass(frozen=True, slots=True)
class Follower:
    """What an instrument does after every update, whatever its schedule.

    Attributes:
        instrument: whose it is.
        action: takes the site.
        tap: where it sees the tokens that the model is given; None where it does not.
    """

    instrument: Instrument
    action: Callable[[Site], None]
    tap: InputTap | None


@dataclass(slots=True)
class Constraint:
    """What an instrument does around every step of every optimizer.

    Attributes:
        instrument: whose it is.
        before: done before a step.
        after: done after it.
        hold: done after a treatment has acted.
        masks: whether it holds masks.
        off: why it is no longer done; None while it is.
    """

    instrument: Instrument
    before: BeforeStep
    after: AfterStep
    hold: Callable[[], None]
    masks: bool = False
    off: str | None = None


class Site:
    """A run as its instruments see it. `Watch` keeps it up to date.

    Attributes:
        model: the model inside any wrapper.
        optimizers: the optimizers; the first one's steps are the clock.
        step: optimizer updates seen.
        layers: the hidden layers that can be read, by qualified name; empty before a forward pass.
        skipped: why other parametric layers are left out.
        last: layers whose units nothing that is learned was seen to read: output layers.
        unseen: {layer: readings in which it had no sample}.
        fixed: the fixed inputs, given or kept.
        process_group: the ranks that statistics are reduced over; None for this process alone.
        readings: what was emitted at this update so far.
        fresh: those of them that an instrument on the schedule `AfterReadings` has not yet seen.
        connections: the masks of sparse treatments.
        owners: which of the optimizers have the weight of a layer.
        no_riding: None, or why hooks cannot ride on the training's forward passes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        probe_batch: Batch | Callable[[], Batch] | None,
        process_group: Any,
        seed: int,
        axes: Mapping[str, Axes] | None = None,
    ) -> None:
        """Made by `Watch`."""
        self.model = model
        self.optimizers = tuple(optimizers)
        self.process_group = process_group
        self.seed = seed
        self.axes = axes or {}
        self.step = 0
        self.layers: dict[str, Layer] = {}
        self.skipped: dict[str, str] = {}
        self.last: set[str] = set()
        self.unseen: dict[str, int] = {}
        self.entry_of: dict[str, str] = {}
        self.no_riding: str | None = None
        self.sources: list[Source] = []
        self.before_steps: list[tuple[Instrument, BeforeStep, bool]] = []
        self.constraints: list[Constraint] = []
        self.followers: list[Follower] = []
        self.connections: list[Connections] = []
        self.readings: list[Reading] = []
        self.fresh: list[Reading] = []
        self.events: list[Event] = []
        self.fixed = FixedBatches(probe_batch)
        self._wiring: dict[str, Wiring | str] = {}
        self._learned = learned_layers(model, self.optimizers)
        self.owners = {one.owner for one in self._learned.values()}

    # --- what instruments ask for when they attach -------------------------------------------

    def observe(
        self, instrument: Instrument, statistics: Sequence[Statistic], where: Where = "training"
    ) -> Source:
        """Ask for statistics of the units of every hidden layer, ready when the instrument fires.

        Args:
            instrument: who asks; the gate follows its schedule and its `updates` attribute.
            statistics: what is wanted of each unit (`dynamo_probe.observation.statistics`).
            where: `training` for the loop's own forward passes, `probe` for the probe batch, or a
                batch of the instrument's own.
        """
        if where == "training" and self.no_riding is not None:
            where = "probe"
        source = Source(self, instrument, statistics, where)
        self.sources.append(source)
        if where == "probe":
            self.want_batch()
        return source

    def observe_gradients(self, instrument: Instrument) -> tuple[Source, BackwardRecorder]:
        """Ask for sums of |dL/dz| of the units of every hidden layer, z being the layer's output.

        Args:
            instrument: who asks; the gate follows its schedule and its `updates` attribute.

        Returns:
            The source, and its recorder, which can also follow parameters through the same gate.
        """
        recorder = BackwardRecorder((MAGNITUDE,), rides=self.no_riding is None)
        source = Source(self, instrument, (MAGNITUDE,), "training", recorder)
        self.sources.append(source)
        return source, recorder

    def before_step(
        self, instrument: Instrument, action: BeforeStep, *, before_constraints: bool = False
    ) -> None:
        """Ask to be called before each step of each optimizer in an update at which one is due.

        The update has not happened yet: `step` is one less than when the instrument fires, so that
        an action measures and the firing emits. A step may be called off after it (a fused
        optimizer that found infinite gradients) and come again.

        Args:
            instrument: who asks; on updates at which it is not due nothing is called.
            action: takes the optimizer, and whether its step was given a closure: then the forward
                and backward passes of the update are yet to come.
            before_constraints: see the gradients before masks are put on them.
        """
        self.before_steps.append((instrument, action, before_constraints))

    def constrain(
        self,
        instrument: Instrument,
        before: BeforeStep = _nothing,
        after: AfterStep = _nothing,
        hold: Callable[[], None] = _nothing,
        masks: bool = False,
    ) -> None:
        """Ask to be called around every step of every optimizer, whatever the schedule.

        Args:
            instrument: who asks; a treatment.
            before: takes an optimizer that is about to step, and whether it has a closure.
            after: the same after its step, and before the update is counted.
            hold: called after an update at which a treatment has acted, whichever it was.
            masks: it sets what is pruned to 0. Before a step that comes after all that others do to
                gradients, and after a step ahead of all that they do to weights, whatever the order
                of the instruments.
        """
        self.constraints.append(Constraint(instrument, before, after, hold, masks))

    def follow(
        self,
        instrument: Instrument,
        action: Callable[[Site], None],
        tap: InputTap | None = None,
    ) -> None:
        """Ask to be called after every update, and before anything fires at it.

        Args:
            instrument: who asks.
            action: takes this site; a failure in it disables the instrument.
            tap: is put on the model, and taken off with the instrument.
        """
        self.followers.append(Follower(instrument, action, tap))

    def publish(self, connections: Connections) -> None:
        """Let other instruments see which connections a sparse treatment keeps."""
        self.connections.append(connections)

    def want_batch(self) -> None:
        """Ask that a batch is at hand: the probe batch, or else the first training batch."""
        self.fixed.wanted = True

    def check_layers(self, names: Sequence[str]) -> None:
        """Refuse names of layers that the model does not have.

        Raises:
            ValueError: when a name is not that of a Linear or Conv layer; lists those there are.
        """
        known = [n for n, m in self.model.named_modules() if units_of(m) or n in self.axes]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"there is no layer {unknown[0]!r}; this model has {known}")

    # --- what instruments use when they fire --------------------------------------------------

    def batches(self) -> Mapping[str, Batch]:
        """Return the fixed inputs for each module that the loop calls by itself ("" is the model).

        Raises:
            NotMeasurable: when no forward pass has been seen and no probe batch was given.
        """
        found = self.fixed.get()
        if not found:
            raise NotMeasurable(f"there is no probe batch: {self.why_no_layers()}")
        return found

    @contextmanager
    def apart(self) -> Generator[nn.Module, None, None]:
        """Lend the model for forward passes that leave no trace (see `observation.apart`)."""
        with apart(self.model):
            yield self.model

    def inside(self, prefix: str) -> dict[str, Layer]:
        """Return the layers that were found when the module of that name was called by itself."""
        return {n: layer for n, layer in self.layers.items() if self.entry_of[n] == prefix}

    @property
    def ranks(self) -> int:
        """How many processes share the run; 1 in a process alone."""
        return 1 if self.process_group is None else dist.get_world_size(self.process_group)

    @property
    def rank(self) -> int:
        """Which of them this process is; 0 in a process alone."""
        return 0 if self.process_group is None else dist.get_rank(self.process_group)

    def sum_over_ranks(self, figures: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; the tensor itself in a process alone."""
        if self.process_group is not None:
            figures = figures.clone()
            dist.all_reduce(figures, group=self.process_group)
        return figures

    def largest_over_ranks(self, figure: float) -> float:
        """Return the largest of a figure over the ranks; the figure itself in a process alone."""
        if self.process_group is None:
            return figure
        device = next(iter(self.model.parameters())).device
        shared = torch.tensor([figure], dtype=torch.float32, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.process_group)
        return float(shared)

    def wiring(self) -> Mapping[str, Wiring | str]:
        """Return for each hidden layer the weights that enter and leave its units, or why not."""
        missing = [name for name in self.layers if name not in self._wiring]
        for prefix, batch in (self.batches() if missing else {}).items():
            names = [inside(prefix, n) for n in missing if self.entry_of[n] == prefix]
            if names:
                module = self.model.get_submodule(prefix)
                found = wire(module, batch.args, dict(batch.kwargs), names)
                self._wiring.update(
                    {joined(prefix, name): wiring_in(prefix, w) for name, w in found.items()}
                )
        if any(is_sharded(parameter) for parameter in self.model.parameters()):
            # During a forward pass the weights are gathered; what is trained are the shards.
            own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
            return {name: bound(w, own) for name, w in self._wiring.items()}
        return self._wiring

    def known_wiring(self) -> Mapping[str, Wiring | str]:
        """Return the wiring as far as an instrument has asked for it."""
        return self._wiring

    def generator(self, *labels: object) -> torch.Generator:
        """Return a CPU generator for a purpose: the same on every rank and after a resume.

        Args:
            *labels: what it is for, such as the instrument's and the layer's name. The watch's seed
                and the current update go in by themselves.
        """
        text = repr((self.seed, self.step, *labels)).encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        return torch.Generator().manual_seed(seed)

    def emit(self, tag: str, value: float | np.ndarray, samples: int | None = None) -> None:
        """Report a figure of this update.

        Args:
            tag: what it is; the instrument's name and a slash first.
            value: a number, or a NumPy array [units].
            samples: how many samples it was computed from.

        Raises:
            TypeError: when the value is something else, such as a tensor.
        """
        if not isinstance(value, (int, float, np.number, np.ndarray)):
            raise TypeError(
                f"{tag!r} is a {type(value).__name__}; emit a float or a NumPy array "
                "(tensor.item(), tensor.cpu().numpy())"
            )
        self.readings.append(Reading(self.step, tag, value, samples))

    def note(self, kind: str, subject: str, **detail: Any) -> None:
        """Report that something was done or noticed at this update."""
        self.events.append(Event(self.step, kind, subject, detail))

    # --- what the watch tells it ---------------------------------------------------------------

    def meet(self, prefix: str, batch: Batch) -> dict[str, Layer]:
        """Find the hidden layers of a module from real inputs, and put the riding hooks on them.

        Args:
            prefix: qualified name of the module that was called by itself; "" is the model.
            batch: its inputs.

        Returns:
            The layers that are new.
        """
        module = self.model.get_submodule(prefix)
        anatomy = find_neurons(
            module,
            batch.args,
            batch.kwargs,
            whole=not prefix,
            axes={inside(prefix, n): axes for n, axes in self.axes.items() if n.startswith(prefix)},
        )
        found = {joined(prefix, n): layer_in(prefix, la) for n, la in anatomy.layers.items()}
        new = {name: layer for name, layer in found.items() if name not in self.layers}
        self.layers.update(new)
        self.last |= {joined(prefix, name) for name in anatomy.last}
        self.entry_of.update(dict.fromkeys(new, prefix))
        for name, reason in anatomy.skipped.items():
            if prefix and not name:
                reason = "called by itself outside a forward pass: what follows it is not visible"
            self.skipped.setdefault(joined(prefix, name), reason)
        for name in new:
            self.skipped.pop(name, None)
        for source in self.sources:
            if source.where == "training":
                source.recorder.prepare(self.model, new)
                source.recorder.ride(self.model, new, self._learned)
        return new

    def why_no_layers(self) -> str:
        """Say why there is nothing to read."""
        if self.skipped:
            first = next(iter(self.skipped.items()))
            return f"no hidden layer can be read (such as {first[0] or 'the model'}: {first[1]})"
        return (
            "no forward pass of the model has been seen; watch the module that the loop calls, or, "
            "where it is called inside compiled code, pass probe_batch= to dp.watch"
        )

    def miss(self, layer: str) -> None:
        """Take note that a layer's tap did not fire when it should have; say so once."""
        if layer not in self.unseen:
            reason = "its tap did not fire: no forward pass of it was reached by a backward pass"
            self.note("alert", layer, reason=reason)
        self.unseen[layer] = self.unseen.get(layer, 0) + 1

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return the model's named parameters."""
        return self.model.named_parameters()
