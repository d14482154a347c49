"""A network with masks on it: what is there, what is known of it, and how it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import is_sharded, whole
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.anatomy.weights import Weight
from dynamo_probe.functional.ledger import Ledger
from dynamo_probe.functional.moments import States
from dynamo_probe.observation.packing import pack, unpack
from dynamo_probe.site import Site
from dynamo_probe.treatments.sparse.beginning import first_masks
from dynamo_probe.treatments.sparse.gathering import Gatherer
from dynamo_probe.treatments.sparse.masks import Enforcer, Masks, clear
from dynamo_probe.treatments.sparse.plan import Masks as Flags
from dynamo_probe.treatments.sparse.plan import Plan, Planner
from dynamo_probe.treatments.sparse.rules import Rules
from dynamo_probe.treatments.sparse.scores import Evidence, Score


class SparseNetwork:
    """Some weights of a network, with masks once they are made.

    Args:
        site: the run.
        weights: {name: weight} that are masked.
        rules: the settings.
        mirror: networks that follow.
        owner: name of the treatment; it goes into the random numbers.
        dense_now: whether gradients are to stay dense during the current update's backward pass.

    Attributes:
        masks: the masks; None before the first ones are made.
        gatherer: gradients for scores.
    """

    def __init__(
        self,
        site: Site,
        weights: Mapping[str, Weight],
        rules: Rules,
        mirror: Sequence[nn.Module],
        owner: str,
        dense_now: Callable[[], bool],
    ) -> None:
        """Take the parts."""
        self.site, self.weights, self.rules, self.owner = site, weights, rules, owner
        self.masks: Masks | None = None
        self.gatherer = Gatherer(weights, momentum=any(s.needs_momentum for s in rules.scores))
        self.states = States(site.optimizers)
        self._planner = Planner(
            weights, rules.granularity, rules.everywhere, rules.grow_scope, rules.floor
        )
        self._mirrors = [dict(unwrap(network).named_parameters()) for network in mirror]
        self._dense_now = dense_now
        self._enforcer: Enforcer | None = None
        self._ever: dict[str, Tensor] = {}

    @property
    def size(self) -> int:
        """How many connections there could be."""
        return self._planner.size

    def begin(self) -> None:
        """Make the first masks and put them on.

        Raises:
            ValueError: when they cannot be made; nothing has changed then.
        """
        gradients = {name: whole(g) for name, g in self.gatherer.gradients.items()}
        flags = first_masks(self.site.model, self.weights, self.rules, self._evidence, gradients)
        self.gatherer.reset()
        with Ledger() as ledger:
            self._clear(ledger, {name: ~mask for name, mask in flags.items()})
        self._install(Masks(self.weights, flags))
        self._remember(flags)

    def trouble(self, score: Score) -> str | None:
        """Return why a score cannot be computed now; None where it can."""
        for needed, gradients in ((score.needs_gradient, True), (score.needs_momentum, False)):
            reason = self.gatherer.trouble(self.weights, gradients=gradients) if needed else None
            if reason is not None:
                return reason
        return None

    def plan(self, counts: Mapping[str, int] | int, share: float) -> tuple[Flags, Plan]:
        """Return the connections that are there, and what an update of them comes to."""
        assert self.masks is not None
        flags = {name: self.masks.of(name) for name in self.weights}
        grow = self.rules.grow
        return flags, self._planner.plan(
            flags,
            counts,
            share,
            lambda: self._scores("prune", self.rules.prune),
            # What grows where nothing was said, such as after a sparse phase, is all alike.
            lambda: (
                self._scores("grow", grow)
                if grow is not None
                else {name: torch.zeros(w.shape) for name, w in self.weights.items()}
            ),
        )

    def carry_out(self, flags: Flags, plan: Plan) -> None:
        """Change weights, states and masks as planned; all of it, or nothing.

        Args:
            flags: the connections that are there.
            plan: those that are to be there.
        """
        assert self.masks is not None
        stay = plan.stayed if self.rules.reinit_when_same else plan.masks
        with Ledger() as ledger:
            self._clear(ledger, {n: flags[n] & ~stay[n] for n in flags if flags[n] is not stay[n]})
        for name, mask in plan.masks.items():
            if mask is not flags[name]:
                self.masks.put(name, mask)
        self._remember(plan.masks)

    # --- around every step ----------------------------------------------------------------------

    def before(self, optimizer: Optimizer) -> None:
        """Mask the gradients that a step is about to use."""
        if self._enforcer is not None:
            self._enforcer.before(optimizer)

    def after(self, optimizer: Optimizer, *, states: bool) -> None:
        """Mask the weights that a step has written."""
        if self._enforcer is not None:
            self._enforcer.after(optimizer, states=states)

    def close(self) -> None:
        """Take hooks off."""
        if self._enforcer is not None:
            self._enforcer.close()

    # --- resume ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return masks and what was gathered."""
        return {
            "masks": None if self.masks is None else self.masks.state_dict(),
            "ever": {name: bits.clone() for name, bits in self._ever.items()},
            "gathered": self.gatherer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back; weights and states that are not there are set to 0."""
        self.gatherer.load_state_dict(state["gathered"])
        self._ever = {name: bits.cpu().clone() for name, bits in state["ever"].items()}
        if state["masks"] is not None:
            self._install(Masks.from_state(self.weights, state["masks"]))
            for optimizer in self.site.optimizers:
                self.after(optimizer, states=True)

    # --- inside ---------------------------------------------------------------------------------

    def _install(self, masks: Masks) -> None:
        self.masks = masks
        self._enforcer = Enforcer(
            masks,
            self.site.optimizers,
            self.states,
            dense_now=self._dense_now if self.rules.mask_grads == "backward" else None,
        )

    @torch.no_grad()
    def _clear(self, ledger: Ledger, gone: Flags) -> None:
        own = dict(self.site.model.named_parameters(remove_duplicate=False))
        for name, places in gone.items():
            weight = self.weights[name]
            # During a forward pass of a sharded model the gathered weight is used, and not ours.
            gathered = own.get(name)
            more = [mirror[name] for mirror in self._mirrors]
            if gathered is not None and gathered is not weight.parameter:
                more += [] if is_sharded(gathered) else [gathered]
            clear(ledger, self.states, weight, places, more)

    def _remember(self, flags: Flags) -> None:
        """Add to the connections that have ever been there."""
        if self.rules.grow is None or not self.rules.grow.needs_ever:
            return
        for name, mask in flags.items():
            bits = pack(mask)
            self._ever[name] = bits | self._ever[name] if name in self._ever else bits

    def _scores(self, purpose: str, score: Score) -> dict[str, Tensor]:
        return {
            name: score(self._evidence(purpose, weight, self._gradient(name, score)))
            for name, weight in self.weights.items()
        }

    def _gradient(self, name: str, score: Score) -> Tensor | None:
        return whole(self.gatherer.gradients[name]) if score.needs_gradient else None

    def _evidence(self, purpose: str, weight: Weight, gradient: Tensor | None) -> Evidence:
        name, device = weight.name, weight.parameter.device
        momentum, ever = self.gatherer.momenta.get(name), self._ever.get(name)
        values = whole(weight.parameter.detach())
        return Evidence(
            where=weight,
            weight=values,
            active=values != 0 if self.masks is None else self.masks.of(name),
            generator=self.site.generator(self.owner, purpose, name),
            gradient=gradient,
            momentum=None if momentum is None else whole(momentum),
            ever=None if ever is None else unpack(ever, weight.shape).to(device),
        )
