"""Sparse training: connections that go and come while a network learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.mirror import as_networks, check_mirror
from dynamo_probe.anatomy.weights import Weights
from dynamo_probe.connections import Change, Connections
from dynamo_probe.instrument import Treatment
from dynamo_probe.schedule import Constant, Schedule, Value
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable
from dynamo_probe.treatments.sparse.beginning import waits_for_gradient
from dynamo_probe.treatments.sparse.distribution import Distribution, layer_counts
from dynamo_probe.treatments.sparse.granularity import Granularity
from dynamo_probe.treatments.sparse.network import SparseNetwork
from dynamo_probe.treatments.sparse.plan import GrowScope
from dynamo_probe.treatments.sparse.reporting import (
    describe,
    emit_density,
    note_numbers,
    tell_of_zeros,
    unfinished,
)
from dynamo_probe.treatments.sparse.rules import (
    MaskGradients,
    Scope,
    make_rules,
    mask_times,
)
from dynamo_probe.treatments.sparse.scores import Score
from dynamo_probe.treatments.sparse.targets import (
    Filters,
    as_patterns,
    check_fit,
    check_floors,
    find_targets,
    without_outputs,
)
from dynamo_probe.treatments.sparse.timing import MaskUpdates


class SparseTraining(Treatment):
    """Train a network with a share of its connections, which may go and come.

    One engine for the methods of the field: initial distribution x prune score x grow score x
    schedule of the density x schedule of the turnover x granularity. The presets (`GraNet`,
    `GradualMagnitudePruning`, `RigL`, `SET`, `SNFS`, `StaticSparse`, `ACDC`) set these.

    The first masks are made when the loop first runs the whole model with gradients, so that a
    checkpoint can be loaded before. From then on gradients are masked before every step of an
    optimizer, and weights after it: a connection that is not there is 0 in weight and state, to the
    bit. No module is changed and no `state_dict` key. At an update of the masks the connections
    with the lowest prune scores go until the density is what the schedule says; then a share of
    each layer's connections, the turnover, is exchanged: the lowest go, and as many come, those
    with the highest grow scores among all that are not there, the ones that have just gone among
    them. What comes is 0; what goes and comes back at one update keeps its value.

    A mask update that has no gradient, or one that is not finite, takes place at the next update
    instead. After `Watch.close` nothing holds the masks any more; weights stay as they are.

    Readings: `sparsity/density` (share of the masked weights that is there), `sparsity/target`,
    `sparsity/pruned` and `sparsity/regrown` (connections that went and came at this update).
    Events: `pruned` and `regrown`, with the number for each weight.
    """

    name = "sparsity"

    def __init__(
        self,
        density: float | Value,
        *,
        every: int | Schedule = 100,
        stop: int | None = None,
        distribution: Distribution = "erk",
        initial: str | Score = "random",
        initial_scope: Scope = "layer",
        prune: str | Score = "magnitude",
        scope: Scope | None = None,
        grow: str | Score | None = None,
        grow_scope: GrowScope = "layer",
        turnover: float | Value = 0.0,
        accumulate: int = 1,
        granularity: str | Granularity = "unstructured",
        reinit_when_same: bool = False,
        floor: float = 0.0,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        types: tuple[type[nn.Module], ...] | None = None,
        mirror: nn.Module | Sequence[nn.Module] = (),
        mask_grads: MaskGradients = "step",
        loss: Callable[[], Tensor] | None = None,
    ) -> None:
        """Set the method.

        Args:
            density: share of the connections that are there, in (0, 1]: a number, or a value over
                updates such as `Cubic`. Of the weights that are masked, to the weight.
            every: period of the mask updates in optimizer updates, or a schedule.
            stop: no connection is exchanged after this update; None for no end.
            distribution: how connections are spread over layers at first, and with scope `layer`
                always: `uniform`, `erk`, or {pattern of names: density}, which then is the density.
            initial: the first masks: by a score (`random`, `magnitude`, `saliency` is SNIP), by
                `grasp`, or `zeros`: what is exactly 0 is not there; a density without a schedule is
                then not looked at.
            initial_scope: `layer` follows the distribution; `global` takes the best anywhere.
            prune: the score by which connections stay: `magnitude`, `saliency`, `random` or a
                `Score`.
            scope: prune `global`ly or `layer` by layer; None takes `global` where the granularity
                allows it.
            grow: the score by which they come: `gradient`, `momentum`, `random`, `random-unfired`
                or a `Score`; None lets none come.
            grow_scope: in the `layer` that lost them, `global`, or by mean `momentum` of layers.
            turnover: share of each layer's connections that is exchanged at a mask update.
            accumulate: over how many updates before a mask update gradients are summed up.
            granularity: `unstructured`, `N:M` such as `2:4`, `fan-in` (the same number of inputs
                for every unit) or `channels` (whole units).
            reinit_when_same: what goes and comes back at one update begins at 0 as well.
            floor: least density of a layer; at least one connection stays in any case.
            include: patterns of names of weights or layers that are masked; None takes all but
                output layers.
            exclude: patterns of names that stay whole.
            types: classes of layers; None takes all that hold connections.
            mirror: networks of the same shape, such as target networks, that lose the same
                connections.
            mask_grads: `step` masks gradients before the optimizer's step; `backward` as soon as
                they are made, so that a norm for clipping does not see what is masked. The updates
                that gather gradients for growing are then still seen dense.
            loss: computes the loss of a batch; for first masks that need gradients.

        Raises:
            TypeError: when an argument is of the wrong kind.
            ValueError: when one is out of range, or two do not go together.
        """
        self.rules = make_rules(
            density,
            distribution=distribution,
            initial=initial,
            initial_scope=initial_scope,
            prune=prune,
            scope=scope,
            grow=grow,
            grow_scope=grow_scope,
            turnover=turnover,
            accumulate=accumulate,
            granularity=granularity,
            reinit_when_same=reinit_when_same,
            floor=floor,
            mask_grads=mask_grads,
            loss=loss,
        )
        inner, also = mask_times(every, self.rules)
        self._times = MaskUpdates(inner, also)
        self.stop = stop
        super().__init__(self._times)
        self._filters = Filters(
            None if include is None else as_patterns(include),
            as_patterns(exclude),
            types,
            self.rules.granularity,
        )
        self.mirror = as_networks(mirror)
        self.pruned = 0
        self.regrown = 0
        self.connections = Connections(self.name)
        self._network: SparseNetwork | None = None
        self._waiting = False

    # --- beginning ------------------------------------------------------------------------------

    def attach(self, site: Site) -> None:
        """Look for weights, and ask to be called around every step.

        Raises:
            ValueError: when nothing can be masked, a weight that was named cannot be, or a mirror
                is not a network of the same shape.
        """
        check_mirror(site.model, self.mirror)
        self._site = site
        self._possible = find_targets(site, self._filters)
        check_floors(self._possible, self.rules)
        self._due = self._times.after(site.step)
        self.connections.owner = self.name
        for score in (*self.rules.scores, self.rules.initial):
            if isinstance(score, Score):
                score.attach(site, self)
        site.constrain(self, self._before, self._after, self._hold, masks=True)
        site.publish(self.connections)

    def start(self, site: Site) -> None:
        """Make the first masks, unless they were loaded or wait for the first gradient."""
        self._due = self._times.after(site.step)
        if self._network is not None or not self.enabled:
            return
        targets = without_outputs(site, self._filters, self._possible)
        check_floors(targets, self.rules)
        self._network = self._made(targets)
        self._waiting = waits_for_gradient(self.rules)
        if not self._waiting:
            self._begin(self._network)

    def _made(self, targets: Weights) -> SparseNetwork:
        self.connections.weights, self.connections.left = targets.found, targets.left
        return SparseNetwork(
            self._site, targets.found, self.rules, self.mirror, self.name, self._gathers
        )

    def _begin(self, network: SparseNetwork) -> None:
        tell_of_zeros(self.name, network)
        network.begin()
        self._waiting = False
        self._publish(network)
        there = emit_density(self._site, network, self.connections)
        gone = {n: w.parameter.numel() - there[n] for n, w in network.weights.items()}
        note_numbers(self._site, self.name, "pruned", gone)

    def _publish(self, network: SparseNetwork) -> None:
        assert network.masks is not None
        self.connections.mask_of = network.masks.of
        target = None if self._as_found else self.rules.density.at(self._site.step)
        self.connections.target = target

    # --- around every step ----------------------------------------------------------------------

    def _gathers(self) -> bool:
        """Whether the update that is being made is one of those whose gradients are summed up."""
        update, due = self._site.step + 1, self._due
        if self._waiting or due is None or not due - self.rules.accumulate < update <= due:
            return self._waiting
        exchanges = self._share(due) > 0 and any(s.needs_gradient for s in self.rules.scores)
        return exchanges or self.rules.prune.needs_gradient

    def _share(self, update: int) -> float:
        """Return the share of each layer's connections that is exchanged at an update."""
        over = self.stop is not None and update > self.stop
        return 0.0 if over or self.rules.grow is None else self.rules.turnover.at(update)

    def _before(self, optimizer: Optimizer, closure: bool) -> None:
        network = self._network
        if network is None or not self.enabled:
            return
        if not closure:
            network.gatherer.take(optimizer, sums=self._gathers())
            if self._waiting:
                self._begin_from_gradient(network)
        network.before(optimizer)

    def _begin_from_gradient(self, network: SparseNetwork) -> None:
        reason = network.gatherer.trouble(network.weights, gradients=True)
        if reason is None:
            self._begin(network)
        elif "not finite" in reason:
            network.gatherer.reset()

    def _after(self, optimizer: Optimizer, closure: bool) -> None:
        network = self._network
        if network is None or not self.enabled:
            return
        if closure:  # its gradients were made inside the step, and nobody has masked them
            network.gatherer.take(optimizer, sums=self._gathers())
            if self._waiting:
                self._begin_from_gradient(network)
        network.after(optimizer, states=closure)

    def _hold(self) -> None:
        """Take back what another treatment has put where nothing is."""
        if self._network is not None and self.enabled:
            for optimizer in self._site.optimizers:
                self._network.after(optimizer, states=True)

    # --- updates of the masks -------------------------------------------------------------------

    def fire(self, site: Site) -> None:
        """Bring the density to the schedule's, and exchange connections."""
        network = self._network
        if network is None or network.masks is None:
            self._put_off("no masks have been made yet: no gradient was seen")
            return
        share = self._share(site.step)
        before = network.masks.counts()
        counts = self._counts(network, site.step)
        wanted = counts if isinstance(counts, int) else sum(counts.values())
        self._check_scores(network, shrinks=wanted < sum(before.values()), share=share)
        flags, plan = network.plan(counts, share)
        gone = {n: flags[n] & ~plan.masks[n] for n in flags if plan.masks[n] is not flags[n]}
        came = {n: plan.masks[n] & ~flags[n] for n in gone}
        listeners = self.connections.listeners
        old = {name: flag.clone() for name, flag in flags.items()} if listeners else {}
        went, grown = _numbers(gone), _numbers(came)
        network.carry_out(flags, plan)
        network.gatherer.reset()
        self._times.put_off = False
        self._due = self._times.after(site.step)
        self.pruned += sum(went.values())
        self.regrown += sum(grown.values())
        self._publish(network)
        emit_density(site, network, self.connections)
        site.emit(f"{self.name}/pruned", float(sum(went.values())))
        site.emit(f"{self.name}/regrown", float(sum(grown.values())))
        note_numbers(site, self.name, "pruned", went)
        note_numbers(site, self.name, "regrown", grown)
        for listener in listeners:
            listener(Change(site.step, old, plan.masks))

    @property
    def _as_found(self) -> bool:
        """Whether the density is that of the zeros that were there at first."""
        return self.rules.initial == "zeros" and isinstance(self.rules.density, Constant)

    def _counts(self, network: SparseNetwork, update: int) -> Mapping[str, int] | int:
        density = self.rules.density.at(update)
        if self._as_found:
            assert network.masks is not None
            return network.masks.counts()
        if self.rules.everywhere:
            return round(density * network.size)
        return layer_counts(
            network.weights,
            self.rules.distribution,
            density,
            self.rules.floor,
            self.rules.granularity,
        )

    def _check_scores(self, network: SparseNetwork, *, shrinks: bool, share: float) -> None:
        """Put the update off where a score that it needs cannot be computed."""
        needed = [self.rules.prune] if shrinks or share > 0 else []
        needed += [self.rules.grow] if share > 0 and self.rules.grow is not None else []
        for score in needed:
            reason = network.trouble(score)
            if reason is None:
                try:
                    score.prepare(self._site)
                except NotMeasurable as trouble:
                    reason = str(trouble)
            if reason is not None:
                network.gatherer.reset()
                self._put_off(reason)

    def _put_off(self, reason: str) -> None:
        """Do it at the next update; nothing is lost but time.

        Raises:
            NotMeasurable: always.
        """
        self._times.put_off = True
        self._due = self._site.step + 1
        raise NotMeasurable(f"the update of the masks is put off to the next update: {reason}")

    def report(self) -> list[str]:
        """Say what is masked, how densely, and what is not, and why."""
        changed = (self.pruned, self.regrown)
        return describe(self.connections, self._network, self.rules, changed)

    def finish(self, site: Site) -> str | None:
        """Take hooks off; say so where the training ended before the schedule."""
        if self._network is not None:
            self._network.close()
        return unfinished(self.rules, site.step) if self.enabled else None

    # --- resume ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return masks as bits, what was gathered, and the counts."""
        return {
            "network": None if self._network is None else self._network.state_dict(),
            "weights": list(self.connections.weights),
            "left": dict(self.connections.left),
            "put_off": self._times.put_off,
            "waiting": self._waiting,
            "enabled": self.enabled,
            "pruned": self.pruned,
            "regrown": self.regrown,
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse masks that do not fit.

        Raises:
            ValueError: when there are none, or they are of another model.
        """
        if "network" not in state:
            raise ValueError(
                f"the state of {self.name} has no masks: it was saved by something else. Without "
                "them the pruned connections would come back"
            )
        if state["network"] is not None:
            saved = dict.fromkeys(state["weights"]) | dict(state["network"]["masks"] or {})
            missing = [name for name in saved if name not in self._possible.found]
            if missing or state["network"]["masks"] is not None:
                check_fit(self._possible.found, {n: saved[n] or {} for n in (missing or saved)})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.enabled, self._waiting = bool(state["enabled"]), bool(state["waiting"])
        self.pruned, self.regrown = int(state["pruned"]), int(state["regrown"])
        self._times.put_off = bool(state["put_off"])
        if state["network"] is not None:
            found = {name: self._possible.found[name] for name in state["weights"]}
            network = self._made(Weights(found, state["left"]))
            network.load_state_dict(state["network"])
            self._network = network
            if network.masks is not None:
                self._publish(network)
        self._due = self._times.after(self._site.step)


def _numbers(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Return {name: how many connections a mask has}."""
    if not masks:
        return {}
    found = torch.stack([torch.count_nonzero(mask).cpu() for mask in masks.values()]).tolist()
    return dict(zip(masks, found, strict=True))
