"""Normalize and project: keep the norm of weights whose scale means nothing (Lyle et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynamo_probe.anatomy.dataflow import tensors_in
from dynamo_probe.functional.fresh import own_copy, seeded
from dynamo_probe.functional.moments import States
from dynamo_probe.instrument import Treatment
from dynamo_probe.observation.batch import Batch
from dynamo_probe.schedule import Schedule
from dynamo_probe.site import Site
from dynamo_probe.treatments.parameters import learned, refuse_sharded


class NormalizeAndProject(Treatment):
    """Scale each layer's weights back to their initial norm after every step.

    Lyle et al. 2024, *Normalization and effective learning rates in reinforcement learning*: where
    a normalisation layer follows, the scale of the weights does not change what the network
    computes, but a growing norm makes every step relatively smaller. Projecting W to the norm that
    it had at the beginning keeps the effective learning rate.

    *Normalize* is the network's part: put a LayerNorm or RMSNorm before each activation function.
    This treatment does the *project*, and only where it changes nothing: the weights and bias of
    each layer are multiplied by 4 in a copy of the model, and if its output stays the same, the
    layer is projected, its bias by the same factor. Layers whose scale means something, such as
    output layers, are left alone and named in an event. The paper's further options for the gains
    and shifts of the normalisation layers are not part of this.

    Reading: `normalize_and_project/factor`, the geometric mean of all factors since the last one.
    """

    name = "normalize_and_project"
    observes = "runs a copy of the model once"

    def __init__(self, every: int = 1, read_every: int | Schedule = 1000) -> None:
        """Set how often.

        Args:
            every: optimizer steps between two projections.
            read_every: updates between two readings.

        Raises:
            ValueError: when `every` is below 1.
        """
        super().__init__(read_every)
        if every < 1:
            raise ValueError(f"every is {every}; give 1 or more")
        self.every = every
        self._norms: dict[str, float] = {}
        self._verdicts: dict[str, str] = {}
        self._free: dict[int, list[tuple[str, nn.Module]]] = {}
        self._steps: dict[int, int] = {}
        self._logarithm = 0.0
        self._factors = 0

    def attach(self, site: Site) -> None:
        """Ask to be called after steps.

        Raises:
            ValueError: when parameters are sharded.
        """
        refuse_sharded(self.name, learned(site))
        self._site = site
        site.want_batch()
        site.constrain(self, after=self._after)

    def start(self, site: Site) -> None:
        """Keep the initial norms, unless they came with a checkpoint."""
        if not self._norms:
            self._norms = {
                name: _norm(parameter)
                for name, parameter in learned(site).items()
                if parameter.dim() >= 2
            }

    def begin(self, site: Site) -> None:
        """Find the layers whose scale is free, from a copy of the model."""
        parameters = learned(site)
        for prefix, batch in site.batches().items():
            module = site.model.get_submodule(prefix)
            names = {
                f"{prefix}.{name}".lstrip("."): name
                for name, part in module.named_modules()
                if isinstance(getattr(part, "weight", None), nn.Parameter)
            }
            for name, refused in free_layers(module, batch, names.values()).items():
                full = f"{prefix}.{name}".lstrip(".")
                layer = site.model.get_submodule(full)
                if f"{full}.weight" not in parameters or layer.get_parameter("weight").dim() < 2:
                    continue
                # What a run found out at its beginning holds after a resume.
                known = full in self._verdicts
                refused = self._verdicts.setdefault(full, refused or "")
                if not refused:
                    self._add(site, full, layer)
                elif not known:
                    site.note("skipped", f"{self.name}: {full}", reason=refused)

    def _add(self, site: Site, name: str, layer: nn.Module) -> None:
        for optimizer in site.optimizers:
            if States([optimizer]).holds(layer.get_parameter("weight")):
                layers = self._free.setdefault(id(optimizer), [])
                if all(known != name for known, _ in layers):
                    layers.append((name, layer))

    def _after(self, optimizer: Optimizer, closure: bool) -> None:
        if not self.enabled:
            return
        if self._verdicts and not any(self._free.values()):
            raise ValueError(
                "no layer's scale is free, so that there is nothing to project; put a LayerNorm or "
                "RMSNorm before each activation function"
            )
        layers = self._free.get(id(optimizer), [])
        if not layers:
            return
        key = list(map(id, self._site.optimizers)).index(id(optimizer))
        self._steps[key] = self._steps.get(key, 0) + 1
        if self._steps[key] % self.every:
            return
        with torch.no_grad():
            weights = [layer.get_parameter("weight").detach() for _, layer in layers]
            sizes = torch.stack([torch.linalg.vector_norm(w.double()) for w in weights]).cpu()
            for (name, layer), size in zip(layers, sizes.tolist(), strict=True):
                if not 0 < size < float("inf"):
                    continue
                factor = self._norms[f"{name}.weight"] / size
                self._logarithm += math.log(factor)  # before anything is written: it may fail
                self._factors += 1
                for part in (layer.get_parameter("weight"), getattr(layer, "bias", None)):
                    if isinstance(part, Tensor):
                        part.detach().mul_(factor)

    def fire(self, site: Site) -> None:
        """Read how much was taken back."""
        if self._factors:
            site.emit(f"{self.name}/factor", math.exp(self._logarithm / self._factors))
        self._logarithm, self._factors = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the initial norms and the counts."""
        return {
            "norms": dict(self._norms),
            "steps": dict(self._steps),
            "verdicts": dict(self._verdicts),
            "logarithm": self._logarithm,
            "factors": self._factors,
            "enabled": self.enabled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._norms, self._steps = dict(state["norms"]), dict(state["steps"])
        self._verdicts = dict(state["verdicts"])
        self._logarithm, self._factors = float(state["logarithm"]), int(state["factors"])
        self.enabled = bool(state["enabled"])

    def report(self) -> list[str]:
        """Say which layers are projected, and which are not."""
        projected = [name for layers in self._free.values() for name, _ in layers]
        return [
            f"projects {', '.join(projected) or 'nothing'}",
            *(
                f"leaves {name} alone: {reason}"
                for name, reason in self._verdicts.items()
                if reason
            ),
        ]


def free_layers(model: nn.Module, batch: Batch, names: Iterable[str]) -> Mapping[str, str | None]:
    """Return for each layer None where its scale is free, or else the reason.

    A layer's scale is free when the output of the model stays the same, up to rounding and the
    small epsilon of norms, with its weight and bias multiplied by 4, and yet depends on the layer:
    it changes when they are multiplied by -1. Changes are held against how far the output varies
    over the batch, so that a large constant hides nothing. The model runs in its own mode, so that
    BatchNorm normalises in training.

    Args:
        model: the model; nothing of it changes.
        batch: its inputs.
        names: of layers with a weight.
    """
    found: dict[str, str | None] = {}
    copied = own_copy(model)

    def outputs() -> list[Tensor]:
        with seeded(model, 0), torch.no_grad():
            return [t.detach().double() for t in tensors_in(batch.run(copied))]

    before = outputs()
    for name in names:
        layer = copied.get_submodule(name)
        parts = [p for p in (layer.weight, getattr(layer, "bias", None)) if isinstance(p, Tensor)]
        kept = [part.detach().clone() for part in parts]
        scaled = []
        for factor in (4.0, -1.0):
            with torch.no_grad():
                for part in parts:
                    part.mul_(factor)
            scaled.append(outputs())
            with torch.no_grad():
                for part, old in zip(parts, kept, strict=True):
                    part.copy_(old)
        if not _same(before, scaled[0]):
            found[name] = "its scale changes the output"
        elif _same(before, scaled[1]):
            found[name] = "nothing of it was seen in the output"
        else:
            found[name] = None
    return found


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    for old, new in zip(before, after, strict=True):
        if not old.numel():
            continue
        varies = float((old - old.mean(0)).abs().max()) if old.dim() else float(old.abs())
        if float((new - old).abs().max()) > 1e-2 * varies:
            return False
    return True


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach().double()))
