"""Which weights lead into a unit, and which lead out of it.

*Who* reads a layer's units comes from torch-pruning's dependency graph (`readers.py`); *where* each
unit arrives is measured (`arrivals.py`), because a graph has to guess it after a flatten, a
permutation or a concatenation. A layer on which the two do not agree is left out with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy import kinds
from dynamo_probe.anatomy.arrivals import Places, arrivals, meets_others
from dynamo_probe.anatomy.readers import Descent, Lineage, Unwirable
from dynamo_probe.anatomy.rehearsal import Rehearsal, unnoticed


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of one tensor that belong to each unit of a layer.

    Attributes:
        name: qualified name of the parameter or buffer, such as `fc1.weight`.
        tensor: the parameter or buffer itself.
        dim: the dimension along which the entries lie.
        index: int64 [units, k], on the CPU: the k slices along `dim` that belong to each unit.
    """

    name: str
    tensor: Tensor
    dim: int
    index: Tensor


@dataclass(frozen=True, slots=True)
class Wiring:
    """Everything that belongs to the units of one layer and to nothing else.

    Attributes:
        layer: qualified name of the layer that makes the units.
        units: how many units it has.
        incoming: weights that make a unit; two where the layer is gated (gate and up).
        bias: biases of the incoming weights.
        outgoing: weights that read a unit: columns of the layers that follow, all heads included.
        norm_scale, norm_shift: weight and bias entries of norms between the two.
        running_mean, running_var: running statistics of those norms.
    """

    layer: str
    units: int
    incoming: tuple[Entries, ...]
    bias: tuple[Entries, ...]
    outgoing: tuple[Entries, ...]
    norm_scale: tuple[Entries, ...]
    norm_shift: tuple[Entries, ...]
    running_mean: tuple[Entries, ...]
    running_var: tuple[Entries, ...]


_NORM_PARTS = {
    "weight": "norm_scale",
    "bias": "norm_shift",
    "running_mean": "running_mean",
    "running_var": "running_var",
}


def wire(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], layers: Iterable[str]
) -> dict[str, Wiring | str]:
    """Find the weights that lead into and out of the units of some layers.

    The model is only looked at: a copy of it, on the same weights, runs in evaluation mode on
    copies of the inputs, and random states are put back. It runs about 2 log2(units) + 2 layers
    times, on at most 8 samples where it is plain that the first axis of the inputs counts samples.
    Give two or more different ones: only these show inputs that are added to units.

    Args:
        model: the model. Its parameters are those the result refers to.
        args: positional arguments of one forward pass.
        kwargs: keyword arguments of the same pass.
        layers: qualified names of the layers to look at.

    Returns:
        For each layer its wiring, or, in words, the reason why its units cannot be recycled.
    """
    layers = list(dict.fromkeys(layers))
    try:
        with unnoticed(model):
            return _Wirer(model, Rehearsal(model, args, kwargs)).wire(layers)
    except Exception as error:
        reason = f"the wiring cannot be traced ({type(error).__name__}: {error})"
        return dict.fromkeys(layers, reason)


class _Wirer:
    def __init__(self, model: nn.Module, rehearsal: Rehearsal) -> None:
        self.modules = dict(model.named_modules())
        self.rehearsal = rehearsal
        self.lineage = Lineage(rehearsal.model, rehearsal.run)
        self.names: dict[Tensor, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.names.setdefault(parameter, []).append(name)
        copies = dict(rehearsal.model.named_parameters())
        self.uses = {name: self.lineage.uses[parameter] for name, parameter in copies.items()}
        self.private: set[frozenset[str]] = set()

    def wire(self, layers: list[str]) -> dict[str, Wiring | str]:
        found: dict[str, Wiring | str] = {}
        descents: dict[str, Descent] = {}
        for layer in layers:
            try:
                descents[layer] = self._descend(layer)
            except Unwirable as reason:
                found[layer] = str(reason)
        places = self._places(descents)
        for layer, descent in descents.items():
            try:
                found[layer] = self._wiring(layer, descent, places)
            except Unwirable as reason:
                found[layer] = str(reason)
        return {layer: found[layer] for layer in layers}

    def _descend(self, layer: str) -> Descent:
        if layer not in self.modules:
            raise Unwirable("the model has no module of this name")
        module = self.modules[layer]
        if not isinstance(module, kinds.WEIGHTED):
            raise Unwirable(
                f"it is a {type(module).__name__}; only the units of linear and convolutional "
                "layers can be recycled"
            )
        self._check(layer, "it")
        try:
            kinds.unit_dim(module)
        except kinds.NoSlice as error:
            raise Unwirable(f"it {error}") from error
        descent = self.lineage.descend(layer)
        if descent.partner is not None:
            self._check(descent.partner, f"`{descent.partner}`, which gates it,")
        return descent

    def _check(self, name: str, subject: str) -> None:
        """Refuse a module whose weights are not simply its own, used once, and trained."""
        module = self.modules[name]
        unlike = kinds.unlike_its_kind(module)
        if unlike is not None:
            raise Unwirable(f"{subject} {unlike}")
        calls = self.lineage.calls[name]
        if calls > 1:
            raise Unwirable(f"{subject} is called {calls} times in one forward pass")
        for own, parameter in module.named_parameters(recurse=False):
            names = self.names[parameter]
            if len(names) > 1:
                raise Unwirable(f"{subject} shares its {own}: `{'` is `'.join(names)}`")
            if not parameter.requires_grad:
                raise Unwirable(f"{subject} is frozen: `{names[0]}` does not require gradients")
            if self.uses[names[0]] > 1:
                raise Unwirable(f"{subject} has a {own} that the forward pass uses elsewhere too")

    def _places(self, descents: Mapping[str, Descent]) -> dict[str, Places | str]:
        pairs = {tuple(sorted((n, d.partner))) for n, d in descents.items() if d.partner}
        gated = {layer for pair in pairs for layer in pair}
        # Gate and up arrive in the same places: asked at once, their marks would run together.
        first = [layer for layer in descents if layer not in gated] + [a for a, _ in pairs]
        second = [b for _, b in pairs]
        model, run = self.rehearsal.model, self.rehearsal.run
        return arrivals(model, run, first) | arrivals(model, run, second)

    def _wiring(self, layer: str, descent: Descent, found: Mapping[str, Places | str]) -> Wiring:
        makers = [layer] if descent.partner is None else [layer, descent.partner]
        places: dict[str, Tensor] = {}
        for maker in makers:
            own = found[maker]
            if isinstance(own, str):
                raise Unwirable(own)
            if set(self._readers(own)) != set(self._readers(places or own)):
                raise Unwirable(
                    f"the units of {' and '.join(makers)} are not read by the same layers"
                )
            if any(not torch.equal(places.get(name, index), index) for name, index in own.items()):
                raise Unwirable(f"the units of {' and '.join(makers)} arrive in different places")
            places |= own
        readers = self._readers(places)
        if not readers:
            raise Unwirable("no weights read its units")
        if not descent.readers <= readers.keys():
            unseen = ", ".join(sorted(descent.readers.difference(readers)))
            raise Unwirable(f"its units should reach {unseen}, but were not seen there")
        for name in places:
            self._check(name, f"`{name}`, which reads its units,")
        self._check_privacy(makers, places)
        parts: dict[str, list[Entries]] = {field.name: [] for field in fields(Wiring)[2:]}
        for maker in makers:
            self._add_incoming(parts, maker)
        for name, index in places.items():
            self._add_reader(parts, name, index)
        units = len(next(iter(places.values())))
        return Wiring(layer, units, **{part: tuple(entries) for part, entries in parts.items()})

    def _readers(self, places: Places) -> dict[str, Tensor]:
        return {n: i for n, i in places.items() if isinstance(self.modules[n], kinds.WEIGHTED)}

    def _check_privacy(self, makers: list[str], places: Places) -> None:
        """Refuse units that share their places; gate and up are one question."""
        if frozenset(makers) in self.private:
            return
        model, run = self.rehearsal.model, self.rehearsal.run
        try:
            reader = meets_others(model, run, self.rehearsal.run_flipped, makers, places)
        except Exception:
            # Inputs that cannot be put in another order, such as sorted lengths.
            reader = meets_others(model, run, run, makers, places)
        if reader is not None:
            raise Unwirable(
                f"`{reader}` reads something else in the same places: a sum, such as a residual "
                "stream, or a product with something that is not a unit"
            )
        self.private.add(frozenset(makers))

    def _add_incoming(self, parts: dict[str, list[Entries]], name: str) -> None:
        module = self.modules[name]
        dim = kinds.unit_dim(module)
        own = torch.arange(module.get_parameter("weight").shape[dim]).unsqueeze(1)
        self._add(parts["incoming"], name, "weight", dim, own)
        self._add(parts["bias"], name, "bias", 0, own)

    def _add_reader(self, parts: dict[str, list[Entries]], name: str, index: Tensor) -> None:
        module = self.modules[name]
        if isinstance(module, kinds.NORMS):
            for own, part in _NORM_PARTS.items():
                self._add(parts[part], name, own, 0, index)
            return
        try:
            dim, entries = kinds.reading_entries(module, index)
        except kinds.NoSlice as error:
            raise Unwirable(f"`{name}`, which reads its units, {error}") from error
        self._add(parts["outgoing"], name, "weight", dim, entries)

    def _add(self, entries: list[Entries], name: str, own: str, dim: int, index: Tensor) -> None:
        tensor = getattr(self.modules[name], own, None)
        if isinstance(tensor, Tensor):
            entries.append(Entries(f"{name}.{own}".lstrip("."), tensor, dim, index))
