"""Reset whole layers: the remedy against the primacy bias (Nikishin et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from dynamo_probe.anatomy.mirror import as_networks, check_mirror
from dynamo_probe.functional.fresh import record_distributions
from dynamo_probe.functional.initial import Initial, draw, loaded_initials, saved_initials
from dynamo_probe.functional.moments import Moments
from dynamo_probe.instrument import Treatment
from dynamo_probe.schedule import Schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable
from dynamo_probe.treatments.parameters import (
    check_moments,
    check_patterns,
    learned,
    refuse_sharded,
    replace_values,
)


class LayerReset(Treatment):
    """Draw whole layers anew every so often (Nikishin et al. 2022, *The Primacy Bias in Deep RL*).

    Weights and biases come from their own distributions as training began, and the optimizer
    forgets them. The replay buffer is what carries the knowledge over: without one, what a layer
    knew is lost.

    Each firing is an event with the layers; `layer_reset/total` counts the firings.
    """

    name = "layer_reset"
    observes = "looks at parameters only"

    def __init__(
        self,
        layers: int | Sequence[str] = 1,
        every: int | Schedule = 10_000,
        *,
        moments: Literal["zero+step", "zero", "keep"] = "zero+step",
        mirror: nn.Module | Sequence[nn.Module] = (),
    ) -> None:
        """Set which layers, and when.

        Args:
            layers: how many from the end, or shell patterns of names. From the end means: the
                output layers, then the hidden layers in the order in which they ran, the last one
                first. The paper resets the last one to three layers.
            every: period in updates, or a schedule.
            moments: what becomes of the optimizer's state of the layers; as nothing in a reset
                tensor stays, restarting its step count is exact.
            mirror: networks of the same shape, such as target networks, that get the same values.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(every)
        if isinstance(layers, int) and layers < 1:
            raise ValueError(f"layers is {layers}; give 1 or more, or names")
        self.layers = layers if isinstance(layers, int) else tuple(layers)
        self.moments: Moments = check_moments(moments)
        self.mirror = as_networks(mirror)
        self._initial: dict[str, Initial] = {}
        self._total = 0

    def attach(self, site: Site) -> None:
        """Look at what is there.

        Raises:
            ValueError: when a mirror or a name does not fit, or parameters are sharded.
        """
        check_mirror(site.model, self.mirror)
        if isinstance(self.layers, int):
            # Which layers are last is told from a forward pass.
            site.want_batch()
        else:
            check_patterns(site, self.layers)
        refuse_sharded(self.name, learned(site))

    def start(self, site: Site) -> None:
        """Record the initial distributions, unless they came with a checkpoint."""
        if not self._initial:
            self._initial = record_distributions(site.model)

    def fire(self, site: Site) -> None:
        """Reset the layers."""
        names = self._chosen(site)
        parameters = learned(site, names)
        if not parameters:
            raise NotMeasurable(f"no parameter of {', '.join(names)} is learned")
        missing = [name for name in parameters if name not in self._initial]
        if missing:
            raise NotMeasurable(f"`{missing[0]}` was not there when training began")
        values = {
            name: draw(
                self._initial[name],
                parameter.shape,
                site.generator(self.name, name),
                dtype=parameter.dtype,
                device=parameter.device,
            )
            for name, parameter in parameters.items()
        }
        replace_values(site, parameters, values, self.moments, self.mirror)
        self._total += 1
        site.emit(f"{self.name}/total", float(self._total))
        site.note("recycled", self.name, parameters=sorted(parameters))

    def _chosen(self, site: Site) -> list[str]:
        if not isinstance(self.layers, int):
            return list(self.layers)
        if not site.last:
            raise NotMeasurable("no output layer was found; give the layers by name")
        hidden = list(reversed(site.layers))[: self.layers - 1]
        return sorted(site.last) + hidden

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded distributions."""
        return {
            "initial": saved_initials(self._initial),
            "total": self._total,
            "enabled": self.enabled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._initial = loaded_initials(state["initial"])
        self._total, self.enabled = int(state["total"]), bool(state["enabled"])

    def report(self) -> list[str]:
        """Say how often it acted."""
        return [f"reset {self._total} times"]
