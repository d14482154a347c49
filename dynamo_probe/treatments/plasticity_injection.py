"""Plasticity injection (Nikishin et al. 2023): a fresh head beside the frozen old one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.frozen_copy import FrozenCopy
from dynamo_probe.anatomy.mirror import as_networks, check_mirror
from dynamo_probe.anatomy.shards import is_sharded
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.functional.fresh import record_distributions
from dynamo_probe.functional.initial import Initial, draw, loaded_initials, saved_initials
from dynamo_probe.functional.ledger import Ledger
from dynamo_probe.functional.moments import States
from dynamo_probe.instrument import Treatment
from dynamo_probe.schedule import Every
from dynamo_probe.site import Site
from dynamo_probe.treatments.output_change import output_change
from dynamo_probe.treatments.parameters import clear_state, overwrite

_NOISY = (
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
)


class Injectable(nn.Module):
    """A module into which plasticity can be injected: `model.head = dp.Injectable(model.head)`.

    It computes head(x), and once it was injected into head(x) + old(x) - anchor(x), where `old` and
    `anchor` are frozen. Make it before the optimizer and before target networks are copied. All
    weights are there from the beginning, in the same `state_dict`, which also says whether it was
    injected into: a checkpoint loads at any time, and the optimizer never has to learn of new
    parameters. The price is the memory of two more heads, and after the injection their passes.

    Attributes:
        injected: whether the frozen copies count.
    """

    def __init__(self, head: nn.Module) -> None:
        """Put it around a head that returns one tensor.

        Args:
            head: the module; its parameters stay the ones that are trained.

        Raises:
            ValueError: when it has no parameters, has buffers, which frozen copies would not
                follow, or draws random numbers.
        """
        super().__init__()
        if not any(True for _ in head.parameters()):
            raise ValueError(f"a {type(head).__name__} has no parameters to inject plasticity into")
        if any(True for _ in head.buffers()):
            raise ValueError(
                f"the {type(head).__name__} has buffers, such as running statistics, which differ "
                "between the copies; give a head without"
            )
        noisy = [m for m in head.modules() if isinstance(m, _NOISY)]
        if noisy:
            raise ValueError(
                f"the head has a {type(noisy[0]).__name__}, whose noise would differ between the "
                "copies, so that they would not cancel; give a head without"
            )
        self.head = head
        self.old = FrozenCopy(copy.deepcopy(head))
        self.anchor = FrozenCopy(copy.deepcopy(head))
        self.injected = False

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        """Return head, or head + old - anchor."""
        output = self.head(*inputs, **keywords)
        if not self.injected:
            return output
        return output + (self.old(*inputs, **keywords) - self.anchor(*inputs, **keywords))

    def get_extra_state(self) -> Tensor:
        """Put `injected` into the state_dict, as a tensor like everything else there."""
        return torch.tensor(float(self.injected))

    def set_extra_state(self, state: Tensor) -> None:
        """Take it from there."""
        self.injected = bool(state > 0.5)


class PlasticityInjection(Treatment):
    """Go on with a fresh head whose output is 0 at first (Nikishin et al. 2023).

    *Deep Reinforcement Learning with Plasticity Injection*: from update `at` on the network
    computes h_theta(x) + h_theta1(x) - h_theta2(x), where theta is frozen, theta1 is fresh and
    trained, and theta2 is a frozen copy of theta1. The output does not change at that moment (but
    for rounding), and the number of trained parameters does not either.

    theta1 takes the place of theta in the same parameters, whose optimizer state is forgotten.
    Every `Injectable` in the model is injected into. A second injection adds what was learned since
    to what is frozen, which is exact for a head of one linear layer only, so that there is one.

    Target networks (`mirror`) keep their own function: each freezes its own old head. A copy of the
    network's `state_dict` brings it up to date, and an average over all parameters does.

    Reading: `plasticity_injection/output_change`, the largest change of an output, where the watch
    has a probe batch. The injection is an event.
    """

    name = "plasticity_injection"
    observes = "looks at parameters only"

    def __init__(self, at: int, *, mirror: nn.Module | Sequence[nn.Module] = ()) -> None:
        """Set when.

        Args:
            at: the update after which the fresh head takes over, 1 or more.
            mirror: networks of the same shape, such as target networks.

        Raises:
            ValueError: when `at` is below 1.
        """
        if at < 1:
            raise ValueError(f"at is {at}; give an update from 1 on")
        super().__init__(Every(at, start=at, end=at))
        self.at = at
        self.mirror = as_networks(mirror)
        self._initial: dict[str, Initial] = {}
        self._injected = False

    def attach(self, site: Site) -> None:
        """Find the heads.

        Raises:
            ValueError: when there is none, a mirror does not fit, or parameters are sharded.
        """
        check_mirror(site.model, self.mirror)
        heads = injectables(site.model)
        if not heads:
            raise ValueError(
                "the model has no dp.Injectable; before the optimizer is made, write "
                "model.head = dp.Injectable(model.head)"
            )
        states = States(site.optimizers)
        for name, module in heads.items():
            for own, parameter in module.head.named_parameters():
                if is_sharded(parameter):
                    raise ValueError(f"{self.name} does not work on sharded parameters: `{own}`")
                if not states.holds(parameter):
                    raise ValueError(f"no optimizer of the watch holds `{name}.head.{own}`")

    def start(self, site: Site) -> None:
        """Record the initial distributions, unless they came with a checkpoint."""
        if not self._initial:
            self._initial = {
                f"{name}.{own}": initial
                for name, module in injectables(site.model).items()
                for own, initial in record_distributions(module.head).items()
            }

    def fire(self, site: Site) -> None:
        """Inject."""
        if self._injected:
            return
        with output_change(site) as change:
            states = States(site.optimizers)
            with torch.no_grad(), Ledger() as ledger:
                for network in (site.model, *map(unwrap, self.mirror)):
                    for name, module in injectables(network).items():
                        self._inject(site, name, module, ledger, states)
        self._injected = True
        if "largest" in change:
            site.emit(f"{self.name}/output_change", change["largest"])
        site.note("recycled", self.name, heads=sorted(injectables(site.model)))

    def _inject(
        self, site: Site, name: str, module: Injectable, ledger: Ledger, states: States
    ) -> None:
        ledger.put(module.__dict__, "injected", True)
        own = dict(module.head.named_parameters())
        for part, old in module.old.inner.named_parameters():
            overwrite(ledger, old, own[part].detach().clone())
        anchors = dict(module.anchor.inner.named_parameters())
        for part, parameter in own.items():
            generator = site.generator(self.name, name, part)
            initial = self._initial[f"{name}.{part}"]
            fresh = draw(initial, parameter.shape, generator, parameter.dtype)
            overwrite(ledger, anchors[part], fresh)
            overwrite(ledger, parameter, fresh)
            clear_state(ledger, states, [parameter], restarts=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded distributions, and whether it was done."""
        return {
            "initial": saved_initials(self._initial),
            "injected": self._injected,
            "enabled": self.enabled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._initial = loaded_initials(state["initial"])
        self._injected, self.enabled = bool(state["injected"]), bool(state["enabled"])

    def report(self) -> list[str]:
        """Say whether it was done."""
        return ["injected" if self._injected else f"will inject at update {self.at}"]


def injectables(model: nn.Module) -> dict[str, Injectable]:
    """Return the injectable modules of a model by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Injectable)}
