"""Sparse topology over training: which connections are there, how they change, what they save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import whole
from dynamo_probe.anatomy.wiring import Wiring
from dynamo_probe.connections import Change, Connections
from dynamo_probe.functional.connected import Connected, Masked, connect
from dynamo_probe.functional.connectivity import bitmask_bytes, units_key
from dynamo_probe.functional.dormancy import check_tau, dormant_units, normalised_scores
from dynamo_probe.functional.gradients import norms, total_norm
from dynamo_probe.functional.overlap import overlap_coefficient
from dynamo_probe.functional.sparsity import bytes_of
from dynamo_probe.instrument import Probe
from dynamo_probe.mask_source import MaskSource, ProductSource
from dynamo_probe.observation.backward import unscaling
from dynamo_probe.observation.parameters import held_by, to_host
from dynamo_probe.observation.rewiring import Rewiring
from dynamo_probe.observation.statistics import MAGNITUDE
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable, Source


class Topology(Probe):
    """Measure which connections of a sparse network are there, and how they change.

    The connections are those that a sparse treatment of the same watch keeps; without one, the
    entries that are not exactly 0 of every weight that could be pruned (a model pruned elsewhere).
    A reading comes before the treatment's own update of the masks. All shares are of the weights
    that are masked, unless something else is said:

    - `topology/density`, and `topology/target`, what the treatment's schedule asks for;
    - `topology/outside`: entries that are not 0 where there is no connection. Above 0 the masks do
      not hold, and an event says so once;
    - `topology/dropped`, `topology/grown`: connections since the last reading, counted at every
      update of the masks. What goes and comes back at one update is neither;
    - `topology/turnover`: grown since the last reading / connections that are there;
    - `topology/survival`: of the connections grown at an update of the masks, the share that is
      still there after the next one; over the updates of the masks since the last reading;
    - `topology/regrown_alive`: of all connections that were ever grown, the share that is there;
    - `topology/overparameterisation`: R_s, the share of all weights that have ever been there since
      the watch began (Liu et al. 2021, *Do We Actually Need Dense Over-Parameterization?*);
    - `topology/units_without_input`: the share of units that no connection leads into, and
      `topology/units_without_output`: of hidden units, that no connection reads; layers whose
      readers are not known are left out. Their number of samples is that of the units;
    - `topology/flops`: multiply-adds of the whole model / those of the dense one, and
      `topology/bytes`: bytes of all parameters, weights as a bitmask and the values that are there
      / as they are. What is left whole counts in full;
    - `topology/gradient_on`, `topology/gradient_off`: L2 norm of the gradients of connections that
      are there, and of those that are not, as the optimizer would get them without the masks: after
      clipping, a gradient scaler's scale divided out. Not with a closure;
    - `topology/dead_and_dormant`: overlap coefficient of the hidden units without input or output
      and the dormant ones (Sokar et al. 2023), where there are some of both.

    For each weight: `topology/layer/NAME/density`, `.../units_without_input` and, where it is
    known, `.../units_without_output`; and `topology/fan_in/NAME`, the connections that lead into
    each unit, [units]. Without a treatment there is no target, and nothing is said of changes.
    """

    name = "topology"

    def __init__(
        self,
        every: int | Schedule = 100,
        *,
        layers: bool = True,
        gradients: bool = True,
        tau: float | None = 0.1,
        updates: int = 1,
    ) -> None:
        """Set what is read, and when.

        Args:
            every: period in updates, or a schedule. Update 1 is read too.
            layers: also read each weight by itself.
            gradients: also read the gradients on and off the masks.
            tau: a unit with a dormancy score of at most tau is dormant; None leaves dormancy out,
                and with it the hooks on the layers.
            updates: over how many updates before a reading the dormancy scores are gathered.

        Raises:
            ValueError: when tau is negative or `updates < 1`.
        """
        super().__init__(as_schedule(every, first=True))
        if tau is not None:
            check_tau(tau)
        if updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        self.layers = layers
        self.gradients = gradients
        self.tau = tau
        self.updates = updates
        self.source: Source | None = None
        self._rewiring = Rewiring()
        self._seen: dict[str, list[float]] = {}
        self._in_closure = False
        self._told: set[str] = set()
        self._masks = MaskSource()
        self._products = ProductSource()
        self._listening: list[tuple[Connections, Any]] = []
        self._owners: list[str] = []
        self._failure: Exception | None = None

    def attach(self, site: Site) -> None:
        """Ask for inputs, dormancy scores, and to be called before steps."""
        site.want_batch()
        if self.tau is not None:
            self.source = site.observe(self, (MAGNITUDE,))
        if self.gradients:
            site.before_step(self, partial(self._before_step, site), before_constraints=True)

    def start(self, site: Site) -> None:
        """Listen for updates of the masks: every treatment has published by now."""
        for connections in site.connections:
            listener = partial(self._take, connections)
            connections.listeners.append(listener)
            self._listening.append((connections, listener))
            self._owners.append(connections.owner)

    def _take(self, connections: Connections, change: Change) -> None:
        try:
            self._rewiring.take(change.step, change.before, change.after, connections.weights)
        except Exception as error:  # it must not become a failure of the treatment
            self._failure = self._failure or error

    @torch.no_grad()
    def _before_step(self, site: Site, optimizer: Optimizer, closure: bool) -> None:
        """Take the norms of gradients before masks are put on them."""
        if closure:
            self._in_closure = True
            return
        try:
            masked = self._masks.read(site)
        except NotMeasurable:
            return  # the reading says so
        held = held_by(optimizer)
        figures: dict[tuple[str, int], Tensor] = {}
        for name, (weight, mask) in masked.items():
            if weight.parameter.grad is not None and id(weight.parameter) in held:
                gradient = whole(weight.parameter.grad)
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                parts = torch.where(mask, gradient, 0), torch.where(mask, 0, gradient)
                on, off = (norm / unscaling(optimizer) for norm in norms(parts))
                figures |= {(name, 0): on, (name, 1): off, (name, 2): torch.count_nonzero(mask)}
        host = to_host(figures)
        for name in dict.fromkeys(name for name, _ in figures):
            self._seen[name] = [float(host[name, column]) for column in range(3)]

    # --- a reading ------------------------------------------------------------------------------

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        if self._failure is not None:
            raise self._failure
        seen, closure, self._seen, self._in_closure = self._seen, self._in_closure, {}, False
        masked = self._masks.read(site)
        found = connect(site.model, masked, self._wirings(site), outside=bool(site.connections))
        size = sum(mask.numel() for _, mask in masked.values())
        site.emit(f"{self.name}/density", found.total / size)
        if site.connections:
            self._report_masks(site, masked, found, size)
        self._report_units(site, found)
        if self.layers:
            self._report_layers(site, masked, found)
        self._report_savings(site, masked, found)
        if self.gradients:
            self._report_gradients(site, {} if closure else seen, masked)
        if self.source is not None:
            self._report_dormancy(site, self.source, found)

    def _wirings(self, site: Site) -> Mapping[str, Wiring | str]:
        try:
            wirings = site.wiring()
        except NotMeasurable as reason:
            self._skip(site, "units_without_output", str(reason))
            return {}
        for name, reason in wirings.items():
            if isinstance(reason, str):
                self._skip(site, f"units_without_output of {name}", reason)
        return wirings

    def _report_masks(self, site: Site, masked: Masked, found: Connected, size: int) -> None:
        targets = [
            (c.target, sum(masked[name][1].numel() for name in c.weights if name in masked))
            for c in site.connections
        ]
        known = [(target, of) for target, of in targets if target is not None]
        if known and len(known) == len(targets):
            site.emit(f"{self.name}/target", sum(target * of for target, of in known) / size)
        outside = {name: count for name, count in found.outside.items() if count}
        site.emit(f"{self.name}/outside", float(sum(outside.values())))
        if outside and "outside" not in self._told:
            self._told.add("outside")
            reason = "weights are not 0 where there is no connection: the masks do not hold"
            site.note("alert", self.name, reason=reason, entries=outside)
        changes = self._rewiring
        changes.meet({name: mask for name, (_, mask) in masked.items()})
        site.emit(f"{self.name}/dropped", float(changes.dropped))
        site.emit(f"{self.name}/grown", float(changes.grown))
        if found.total:
            site.emit(f"{self.name}/turnover", changes.grown / found.total)
        if changes.awaited:
            site.emit(f"{self.name}/survival", changes.survived / changes.awaited)
        regrown, alive = changes.regrown(masked)
        if regrown:
            site.emit(f"{self.name}/regrown_alive", alive / regrown)
        site.emit(f"{self.name}/overparameterisation", changes.ever(masked) / size)
        changes.restart()

    def _report_units(self, site: Site, found: Connected) -> None:
        for what, by_layer in (
            ("units_without_input", found.without_input),
            ("units_without_output", found.hidden_without_output),
        ):
            if by_layer:
                units = torch.cat(list(by_layer.values()))
                site.emit(f"{self.name}/{what}", int(units.sum()) / len(units), len(units))

    def _report_layers(self, site: Site, masked: Masked, found: Connected) -> None:
        for name, (_, mask) in masked.items():
            label, lacking = name.removesuffix(".weight"), found.without_input[units_key(name)]
            prefix, units = f"{self.name}/layer/{label}", len(lacking)
            site.emit(f"{prefix}/density", found.connections(name) / mask.numel())
            site.emit(f"{prefix}/units_without_input", int(lacking.sum()) / units, units)
            site.emit(f"{self.name}/fan_in/{label}", found.fan_in[name].double().numpy())
        for name, unread in found.hidden_without_output.items():
            share = int(unread.sum()) / len(unread)
            site.emit(f"{self.name}/layer/{name}/units_without_output", share, len(unread))

    def _report_savings(self, site: Site, masked: Masked, found: Connected) -> None:
        whole_bytes = {name: bytes_of(parameter) for name, parameter in site.parameters()}
        sparse_bytes = {
            name: bitmask_bytes(
                mask.numel(), found.connections(name), weight.parameter.element_size()
            )
            for name, (weight, mask) in masked.items()
        }
        total = sum((whole_bytes | sparse_bytes).values())
        site.emit(f"{self.name}/bytes", total / sum(whole_bytes.values()))
        try:
            parts = [uses.total(found.slices) for uses in self._products.read(site)]
        except NotMeasurable as reason:
            self._skip(site, "flops", str(reason))
            return
        sparse = sum(part for part, _ in parts if part is not None)
        dense = sum(part for _, part in parts if part is not None)
        if dense:
            site.emit(f"{self.name}/flops", sparse / dense)

    def _report_gradients(
        self, site: Site, seen: Mapping[str, Sequence[float]], masked: Masked
    ) -> None:
        if not seen:
            reason = "before the step no masked weight had a gradient (a closure makes them in it)"
            self._skip(site, "gradient_on, gradient_off", reason)
            return
        ons, offs, counts = zip(*seen.values(), strict=True)
        on, off, there = total_norm(ons), total_norm(offs), sum(counts)
        absent = sum(masked[name][1].numel() for name in seen) - there
        if there:
            site.emit(f"{self.name}/gradient_on", on)
        if absent and not off and on:
            reason = "all are exactly 0: they seem to be masked in the backward pass already"
            self._skip(site, "gradient_off", reason)
        elif absent:
            site.emit(f"{self.name}/gradient_off", off)

    def _report_dormancy(self, site: Site, source: Source, found: Connected) -> None:
        try:
            sums = source.read()
        except NotMeasurable as reason:
            self._skip(site, "dead_and_dormant", str(reason))
            return
        names = [name for name in sums if name in found.hidden_without_output]
        if not names or self.tau is None:
            return
        scores = [normalised_scores(sums[name].mean_magnitude()) for name in names]
        dormant = dormant_units(torch.cat(scores), self.tau)
        dead = torch.cat(
            [found.hidden_without_input[n] | found.hidden_without_output[n] for n in names]
        )
        if dead.any() and dormant.any():
            samples = min(sums[name].samples for name in names)
            overlap = overlap_coefficient(dead, dormant)
            site.emit(f"{self.name}/dead_and_dormant", overlap, samples)

    def _skip(self, site: Site, what: str, reason: str) -> None:
        if what not in self._told:
            self._told.add(what)
            site.note("skipped", f"{self.name}: {what}", reason=reason)

    # --- resume and the end ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the masks have been, what was measured for the next reading, and told."""
        return {
            "rewiring": self._rewiring.state_dict(),
            "seen": {name: list(row) for name, row in self._seen.items()},
            "in_closure": self._in_closure,
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._rewiring.load_state_dict(state["rewiring"])
        self._seen = {name: list(row) for name, row in state["seen"].items()}
        self._in_closure = bool(state["in_closure"])
        self._told = set(state["told"])

    def finish(self, site: Site) -> None:
        """Stop listening."""
        for connections, listener in self._listening:
            connections.listeners.remove(listener)
        self._listening.clear()

    def report(self) -> list[str]:
        """Say whose connections are read."""
        return [f"reads the masks of {', '.join(self._owners)}"] if self._owners else []
