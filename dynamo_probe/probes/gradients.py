"""Gradients over training: norms by layer, zeros, and which units still get a gradient."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer, Rprop

from dynamo_probe.anatomy import kinds
from dynamo_probe.anatomy.shards import whole
from dynamo_probe.functional.dormancy import check_tau, dormant_counts, normalised_scores
from dynamo_probe.functional.gradients import count_zeros, mean_by_unit, norms, total_norm
from dynamo_probe.instrument import Probe
from dynamo_probe.observation.backward import loss_scale, unscaling
from dynamo_probe.observation.parameters import layer_of, moved_by, to_host
from dynamo_probe.schedule import Schedule, as_schedule
from dynamo_probe.site import Site
from dynamo_probe.source import NotMeasurable


@dataclass(frozen=True, slots=True)
class _Measured:
    """Figures of one parameter."""

    norm: float
    weight: float
    zeros: float
    entries: int
    before: float | None


class Gradients(Probe):
    """Measure the gradients that the optimizer is given, and which units get one.

    Readings for all parameters of the watched optimizers, and for one layer under
    `gradients/layer/NAME/`:

    - `gradients/norm`: L2 norm as the optimizer gets it, after clipping;
    - `gradients/norm_before_clipping`: as the last backward pass of the update left it;
    - `gradients/zero_fraction`: the share of entries that are exactly 0;
    - `gradients/to_weight`: norm of the gradient / norm of the weights;
    - `gradients/grama_activation`: the share of hidden units with s <= tau, where s is
      E|dL/dz| relative to its layer (Liu et al. 2025). z is the output of the unit's layer, before
      norm and activation; several backward passes through one forward pass count one by one;
    - `gradients/grama_weight`: the share with s <= tau, where s is the mean |dL/dW| over the
      unit's incoming weights, of the gradient of the whole batch, relative to its layer. This is
      what public code computes under the same name; samples of opposite sign cancel.

    The scores are `gradients/scores/activation/NAME` and `gradients/scores/weight/NAME`, [units].

    Gradients are read just before the optimizer steps, because some optimizers write into them
    (SGD with Nesterov momentum), and after its closure where it has one; the weights that belong to
    a closure are then those after the step. A torch `GradScaler` is seen and its scale divided out;
    a loss scaled by hand is not. Units with gradients that are not finite take no part in the
    shares. Of an optimizer that is not the first, its last step since the last update counts.
    """

    name = "gradients"

    def __init__(
        self,
        every: int | Schedule = 100,
        *,
        tau: float = 0.01,
        updates: int = 1,
        before_clipping: bool = True,
    ) -> None:
        """Set threshold and times.

        Args:
            every: period in updates, or a schedule.
            tau: threshold of both GraMa scores; 0.01 is the authors'.
            updates: over how many updates before a reading the gradients at units are gathered.
                Everything else is of the update itself.
            before_clipping: also take each gradient's norm at the end of a backward pass, which
                costs a hook on each parameter.

        Raises:
            ValueError: when tau is negative or `updates < 1`.
        """
        super().__init__(as_schedule(every, first=True))
        check_tau(tau)
        if updates < 1:
            raise ValueError(f"updates is {updates}; give 1 or more")
        self.tau = float(tau)
        self.updates = updates
        self.before_clipping = before_clipping
        self._seen: dict[str, _Measured] = {}
        self._rows: dict[str, Tensor] = {}
        self._after_closure = False
        self._told: set[str] = set()

    def attach(self, site: Site) -> None:
        """Ask for the gradients at units, and to be called before steps."""
        self.source, self.recorder = site.observe_gradients(self)
        site.before_step(self, partial(self._before_step, site))
        if not self.before_clipping:
            return
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.before_clipping = False
            self._skip(
                site,
                "norm_before_clipping",
                "with several ranks gradients are averaged after the backward pass has left them",
            )
        else:
            followed = {n: p for o in site.optimizers for n, p in moved_by(o, site.model).items()}
            self.recorder.follow(followed, lambda: site.step)

    def _before_step(self, site: Site, optimizer: Optimizer, closure: bool) -> None:
        if not closure:
            self._measure(site, optimizer, site.step)
        elif optimizer is site.optimizers[0]:
            self._after_closure = True
        else:
            reason = "its gradients are made inside its step, and it is not the watch's clock"
            self._skip(site, type(optimizer).__name__, reason)

    def _measure(self, site: Site, optimizer: Optimizer, made_at: int) -> None:
        moved = moved_by(optimizer, site.model)
        held = {name: p for name, p in moved.items() if p.grad is not None}
        rows = self._rows_of(site, {id(parameter) for parameter in held.values()})
        # Of sharded parameters each rank holds a part; the figures are of the whole.
        gradients = [whole(p.grad) for p in held.values() if p.grad is not None]
        weights = [whole(parameter.detach()) for parameter in held.values()]
        device: dict[tuple[str, str], Tensor] = {("rows", name): row for name, row in rows.items()}
        for name, gradient, norm, weight in zip(
            held, gradients, norms(gradients), norms(weights), strict=True
        ):
            device["norm", name] = norm / unscaling(optimizer)
            device["weight", name] = weight
            device["zeros", name] = count_zeros(gradient)
            at, before = self.recorder.norms.get(name, (None, None))
            if before is not None and at == made_at:
                device["before", name] = before
        host = to_host(device)
        scale = loss_scale() if self.before_clipping else 1.0
        for name, parameter in held.items():
            before = host.get(("before", name))
            self._seen[name] = _Measured(
                float(host["norm", name]),
                float(host["weight", name]),
                float(host["zeros", name]),
                parameter.numel(),
                None if before is None else float(before) / scale,
            )
        self._rows |= {name: host["rows", name] for name in rows}

    def _rows_of(self, site: Site, ours: Container[int]) -> dict[str, Tensor]:
        """Return the mean |dL/dW| of each unit, for the hidden layers with these weights."""
        rows: dict[str, Tensor] = {}
        for name in site.layers:
            module = site.model.get_submodule(name)
            try:
                dim = kinds.own_unit_dim(module)
            except kinds.NoSlice as reason:
                self._skip(site, f"grama_weight of {name}", f"the layer {reason}")
                continue
            weight = module.get_parameter("weight")
            if id(weight) in ours and weight.grad is not None:
                rows[name] = mean_by_unit(whole(weight.grad), dim)
        return rows

    def fire(self, site: Site) -> None:
        """Give the readings of this update."""
        if self._after_closure:
            self._after_closure = False
            self._check_untouched(site.optimizers[0])
            self._measure(site, site.optimizers[0], site.step - 1)
        seen, rows, self._seen, self._rows = self._seen, self._rows, {}, {}
        if seen:
            self._report_norms(site, seen)
        if rows:
            self._report_scores(site, "weight", {n: normalised_scores(r) for n, r in rows.items()})
        try:
            if site.no_riding is not None:
                raise NotMeasurable(site.no_riding)
            sums = self.source.read()
        except NotMeasurable as reason:
            self._skip(site, "grama_activation", str(reason))
            sums = {}
        scores = {name: normalised_scores(one.mean_magnitude()) for name, one in sums.items()}
        samples = {name: one.samples for name, one in sums.items()}
        self._report_scores(site, "activation", scores, samples)
        if not seen and not sums:
            raise NotMeasurable("no parameter of a watched optimizer had a gradient at its step")

    def _check_untouched(self, optimizer: Optimizer) -> None:
        nesterov = any(group.get("nesterov") for group in optimizer.param_groups)
        if nesterov or isinstance(optimizer, Rprop):
            raise NotMeasurable(
                f"{type(optimizer).__name__} writes into its gradients, and with a closure they "
                "can only be read after the step"
            )

    def _report_norms(self, site: Site, seen: Mapping[str, _Measured]) -> None:
        layers: dict[str, list[_Measured]] = {}
        for name, one in seen.items():
            layers.setdefault(f"{self.name}/layer/{layer_of(name)}", []).append(one)
        for prefix, parts in ((self.name, list(seen.values())), *layers.items()):
            norm = total_norm(one.norm for one in parts)
            weight = total_norm(one.weight for one in parts)
            entries = sum(one.entries for one in parts)
            before = [one.before for one in parts if one.before is not None]
            site.emit(f"{prefix}/norm", norm)
            if len(before) == len(parts):
                site.emit(f"{prefix}/norm_before_clipping", total_norm(before))
            elif self.before_clipping:
                reason = "no backward pass of this update was seen that made all its gradients"
                self._skip(site, "norm_before_clipping", reason)
            if entries:
                site.emit(f"{prefix}/zero_fraction", sum(one.zeros for one in parts) / entries)
            if weight > 0:
                site.emit(f"{prefix}/to_weight", norm / weight)

    def _report_scores(
        self,
        site: Site,
        kind: str,
        scores: Mapping[str, Tensor],
        samples: Mapping[str, int] | None = None,
    ) -> None:
        given = samples or {}
        counts = {name: dormant_counts(layer, (self.tau,)) for name, layer in scores.items()}
        finite = sum(of for _, of in counts.values())
        for name, ((below,), of) in counts.items():
            site.emit(f"{self.name}/scores/{kind}/{name}", scores[name].numpy(), given.get(name))
            if of:
                site.emit(f"{self.name}/layer/{name}/grama_{kind}", below / of, given.get(name))
        if finite:
            share = sum(below for (below,), _ in counts.values()) / finite
            site.emit(f"{self.name}/grama_{kind}", share, min(given.values(), default=None))
        elif scores:
            self._skip(site, f"grama_{kind}", "no unit's gradient is finite")

    def _skip(self, site: Site, what: str, reason: str) -> None:
        if what not in self._told:
            self._told.add(what)
            site.note("skipped", f"{self.name}: {what}", reason=reason)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured for the next reading, and what was told."""
        seen = {name: list(astuple(one)) for name, one in self._seen.items()}
        return {"seen": seen, "rows": dict(self._rows), "told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._seen = {name: _Measured(*figures) for name, figures in state["seen"].items()}
        self._rows = dict(state["rows"])
        self._told = set(state["told"])
