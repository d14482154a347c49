"""L2 Init: a pull towards the initial weights (Kumar et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import stored
from dynamo_probe.functional.moments import States
from dynamo_probe.instrument import Treatment
from dynamo_probe.observation.backward import unscaling
from dynamo_probe.schedule import Schedule
from dynamo_probe.site import Site
from dynamo_probe.treatments.parameters import learned


class L2Init(Treatment):
    """Add strength * |theta - theta_0|^2 to the loss, theta_0 being the initial parameters.

    Kumar et al. 2023, *Maintaining Plasticity in Continual Learning via Regenerative
    Regularization*. The gradient 2 * strength * (theta - theta_0) is added just before every step
    of an optimizer, so that it goes through Adam as that of a loss term does; after any clipping
    that the loop does. Parameters that got no gradient in an update are left alone.

    Reading: `l2_init/distance`, |theta - theta_0| over all parameters. Memory: one copy of them.
    """

    name = "l2_init"
    observes = "looks at parameters only"

    def __init__(self, strength: float = 1e-2, every: int | Schedule = 1000) -> None:
        """Set how strong the pull is.

        Args:
            strength: factor of the squared distance, at least 0; the paper tries 1e-2 to 1e-5.
            every: updates between two readings of the distance; the pull is there at every update.

        Raises:
            ValueError: when the strength is negative.
        """
        super().__init__(every)
        if not strength >= 0:
            raise ValueError(f"strength is {strength}; give 0 or more (1e-2 is usual)")
        self.strength = float(strength)
        self._initial: dict[str, Tensor] = {}
        self._pairs: dict[int, list[tuple[nn.Parameter, Tensor]]] = {}

    def attach(self, site: Site) -> None:
        """Ask to be called around steps."""
        self._site = site
        site.constrain(self, before=self._before)

    def _remember(self, site: Site) -> None:
        """Keep the initial parameters, unless they came with a checkpoint.

        At the first step and not in the forward pass before it: there `fully_shard` has put whole
        parameters in the place of those that the optimizer holds.
        """
        parameters = learned(site)
        if not self._initial:
            self._initial = {n: stored(p.detach()).clone() for n, p in parameters.items()}
        for optimizer in site.optimizers:
            states = States([optimizer])
            self._pairs[id(optimizer)] = [
                (p, self._initial[n].to(stored(p).device))
                for n, p in parameters.items()
                if states.holds(p)
            ]

    def _before(self, optimizer: Optimizer, closure: bool) -> None:
        if not self._pairs:
            self._remember(self._site)
        if not self.enabled or self.strength == 0:
            return
        if closure:
            raise ValueError(
                "the step was given a closure, which makes its gradients inside; put "
                "strength * sum((p - p0).square().sum()) into its loss"
            )
        pairs = [(p, p0) for p, p0 in self._pairs[id(optimizer)] if p.grad is not None]
        pairs = [(p, p0) for p, p0 in pairs if p.grad.layout == torch.strided]  # type: ignore[union-attr]
        if not pairs:
            return
        with torch.no_grad():
            # A fused optimizer divides its gradients by the scale in its step.
            factor = 2 * self.strength * float(unscaling(optimizer))
            gradients = [stored(p.grad) for p, _ in pairs]  # type: ignore[arg-type]
            pulls = torch._foreach_sub(  # pyright: ignore[reportPrivateImportUsage]
                [stored(p.detach()) for p, _ in pairs], [p0 for _, p0 in pairs]
            )
            torch._foreach_add_(  # pyright: ignore[reportPrivateImportUsage]
                gradients, pulls, alpha=factor
            )

    def fire(self, site: Site) -> None:
        """Read the distance."""
        squares = torch.zeros(1, dtype=torch.float64)
        for name, parameter in learned(site).items():
            if name in self._initial:
                now = stored(parameter.detach())
                squares += (now.double() - self._initial[name].to(now.device)).square().sum().cpu()
        if any(stored(p) is not p for _, p in site.parameters()):
            squares = site.sum_over_ranks(squares.to(next(site.model.parameters()).device)).cpu()
        site.emit(f"{self.name}/distance", squares.sqrt().item())

    def state_dict(self) -> dict[str, Any]:
        """Return the initial parameters."""
        return {"initial": dict(self._initial), "enabled": self.enabled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._initial = {name: value.clone() for name, value in state["initial"].items()}
        self.enabled = bool(state["enabled"])
