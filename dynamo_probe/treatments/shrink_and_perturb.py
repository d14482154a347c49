"""Shrink and perturb: pull all weights towards fresh ones, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.mirror import as_networks, check_mirror
from dynamo_probe.functional.fresh import record_distributions
from dynamo_probe.functional.initial import Initial, draw, loaded_initials, saved_initials
from dynamo_probe.functional.moments import Moments
from dynamo_probe.instrument import Treatment
from dynamo_probe.schedule import Schedule
from dynamo_probe.site import Site
from dynamo_probe.treatments.parameters import (
    check_moments,
    check_patterns,
    learned,
    refuse_sharded,
    relative_change,
    replace_values,
)


class ShrinkAndPerturb(Treatment):
    """Shrink every parameter and add noise: theta <- shrink * theta + perturb * noise.

    Ash & Adams 2020 (*On Warm-Starting Neural Network Training*) do this once before new data come,
    with Gaussian noise: `noise="gaussian"`, where `perturb` is its standard deviation. D'Oro et al.
    2023 (*Sample-Efficient Reinforcement Learning by Breaking the Replay Ratio Barrier*) and others
    draw a fresh network and mix it in: `noise="initial"`, with `perturb = 1 - shrink`, which is the
    default here. Fresh values come from each parameter's own distribution as training began.

    Readings: `shrink_and_perturb/change` (|new - old| / |old| of all parameters). Each firing is an
    event.
    """

    name = "shrink_and_perturb"
    observes = "looks at parameters only"

    def __init__(
        self,
        shrink: float = 0.8,
        perturb: float | None = None,
        every: int | Schedule = 1000,
        *,
        noise: Literal["initial", "gaussian"] = "initial",
        layers: Sequence[str] | None = None,
        moments: Literal["keep", "zero", "zero+step"] = "keep",
        mirror: nn.Module | Sequence[nn.Module] = (),
    ) -> None:
        """Set how much, and when.

        Args:
            shrink: factor of the parameters, from 0 to 1.
            perturb: factor of the noise, at least 0; None is 1 - shrink, and needs
                `noise="initial"`.
            every: period in updates, or a schedule.
            noise: `initial` values, or standard `gaussian` ones.
            layers: shell patterns of the layers or parameters to treat; None treats all.
            moments: what becomes of the optimizer's state of what was treated.
            mirror: networks of the same shape, such as target networks, that get the same values.

        Raises:
            ValueError: when an argument is out of range.
        """
        super().__init__(every)
        if not 0 <= shrink <= 1:
            raise ValueError(f"shrink is {shrink}; give a factor from 0 to 1 (0.8 is usual)")
        if noise not in ("initial", "gaussian"):
            raise ValueError(f"noise is {noise!r}; give 'initial' or 'gaussian'")
        if perturb is None and noise == "gaussian":
            raise ValueError("gaussian noise needs its deviation: give perturb (0.01 is usual)")
        if perturb is not None and not perturb >= 0:
            raise ValueError(f"perturb is {perturb}; give 0 or more")
        self.shrink = float(shrink)
        self.perturb = 1 - self.shrink if perturb is None else float(perturb)
        self.noise = noise
        self.layers = None if layers is None else tuple(layers)
        self.moments: Moments = check_moments(moments)
        self.mirror = as_networks(mirror)
        self._initial: dict[str, Initial] = {}
        self._fired = 0

    def attach(self, site: Site) -> None:
        """Look at what is there.

        Raises:
            ValueError: when a mirror or a pattern does not fit, or parameters are sharded.
        """
        check_mirror(site.model, self.mirror)
        check_patterns(site, self.layers)
        refuse_sharded(self.name, learned(site, self.layers))

    def start(self, site: Site) -> None:
        """Record the initial distributions, unless they came with a checkpoint."""
        if not self._initial and self.noise == "initial":
            self._initial = record_distributions(site.model)

    def fire(self, site: Site) -> None:
        """Shrink and perturb."""
        parameters = learned(site, self.layers)
        values = {name: self._moved(site, name, p) for name, p in parameters.items()}
        change = relative_change(parameters.values(), values.values())
        replace_values(site, parameters, values, self.moments, self.mirror)
        self._fired += 1
        site.emit(f"{self.name}/change", change)
        site.note(
            "note", self.name, shrink=self.shrink, perturb=self.perturb, tensors=len(parameters)
        )

    def _moved(self, site: Site, name: str, parameter: nn.Parameter) -> Tensor:
        generator = site.generator(self.name, name)
        noise = self._initial.get(name, Initial("normal", 1.0))
        drawn = draw(
            noise, parameter.shape, generator, dtype=parameter.dtype, device=parameter.device
        )
        return torch.add(parameter.detach() * self.shrink, drawn, alpha=self.perturb)

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded distributions."""
        return {
            "initial": saved_initials(self._initial),
            "fired": self._fired,
            "enabled": self.enabled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._initial = loaded_initials(state["initial"])
        self._fired, self.enabled = int(state["fired"]), bool(state["enabled"])

    def report(self) -> list[str]:
        """Say how often it acted."""
        return [f"acted {self._fired} times: {self.shrink:g} of the weights stay"]
