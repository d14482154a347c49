"""Put layers that store only non-zero weights in the place of linear ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy import kinds
from dynamo_probe.anatomy.layer import CONVOLUTIONS
from dynamo_probe.exporting.csr import CSRLinear, unmultipliable
from dynamo_probe.exporting.measure import is_conv1d, weights_of
from dynamo_probe.exporting.report import LayerReport
from dynamo_probe.exporting.two_four import PackedLinear, accelerated, broken_groups
from dynamo_probe.functional.connectivity import csr_bytes

Change = nn.Module | nn.Parameter
"""A module for the place of a layer, or a parameter for the place of its weight."""
Convert = Callable[[Tensor, nn.Parameter | None], tuple[Change | None, str]]
"""Takes weight [units, inputs] and bias; returns what comes in their place, and what to report."""


def kept_dense(model: nn.Module) -> tuple[LayerReport, ...]:
    """Report the layers of a model that stays as it is."""
    return tuple(
        LayerReport(name, type(module).__name__, False, "copied, zeros stored", *weights_of(module))
        for name, module in weighted(model)
    )


def weighted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that have weights of two or more dimensions."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if not isinstance(module, kinds.NORMS)
        and any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
    ]


def replace_linear(model: nn.Module, convert: Convert) -> tuple[nn.Module, tuple[LayerReport, ...]]:
    """Convert the linear layers of a model in place.

    Args:
        model: the model.
        convert: gives what comes in the place of one layer.

    Returns:
        The model (another module where it was a single linear layer), and what was done.
    """
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    done = []
    for name, module in weighted(model):
        counts = weights_of(module)
        change, what = None, _unconvertible(model, name, module)
        if what is None:
            weight, bias = _linear(module)
            change, what = convert(weight, bias)
        if isinstance(change, nn.Parameter):
            module.register_parameter("weight", change)
        elif change is not None:
            change.train(module.training)
            for place in places[module]:
                model = _placed(model, place, change)
        done.append(LayerReport(name, type(module).__name__, change is not None, what, *counts))
    return model, tuple(done)


def as_csr(max_density: float | None) -> Convert:
    """Return the conversion to CSR.

    Args:
        max_density: largest density that is converted; None for where CSR takes fewer bytes.
    """

    def convert(weight: Tensor, bias: nn.Parameter | None) -> tuple[Change | None, str]:
        nonzeros, item = int(torch.count_nonzero(weight)), weight.element_size()
        taken = csr_bytes(weight.shape[0], weight.shape[1], nonzeros, item)
        dense = weight.numel() * item
        density = nonzeros / max(1, weight.numel())
        if max_density is None and taken >= dense:
            return None, f"stays dense: CSR would take {taken:,} bytes in place of {dense:,}"
        if max_density is not None and density > max_density:
            return None, f"stays dense: its density is above max_density={max_density:g}"
        layer = CSRLinear.from_dense(weight, bias)
        reason = unmultipliable(layer)
        if reason is not None:
            return None, f"stays dense: {reason}"
        return layer, f"stored as CSR: {taken:,} bytes in place of {dense:,}"

    return convert


def as_two_four(pack: bool) -> Convert:
    """Return the conversion to 2:4.

    Args:
        pack: store 2:4 weights packed where the machine cannot compute with them.
    """

    def convert(weight: Tensor, bias: nn.Parameter | None) -> tuple[Change | None, str]:
        inputs = weight.shape[1]
        if inputs % 4:
            return None, f"stays dense: its {inputs} inputs are not whole groups of four"
        groups, broken = weight.numel() // 4, broken_groups(weight)
        if broken:
            return None, f"stays dense: not 2:4, {broken:,} of {groups:,} groups have more than two"
        converted = accelerated(weight)
        if isinstance(converted, nn.Parameter):
            return converted, f"2:4 in all {groups:,} groups, in torch's semi-structured form"
        if pack:
            return PackedLinear.from_dense(weight, bias), (
                f"2:4 in all {groups:,} groups, packed: smaller, never faster: {converted}"
            )
        return None, f"2:4 in all {groups:,} groups, but stays dense: {converted}"

    return convert


def _linear(module: nn.Module) -> tuple[Tensor, nn.Parameter | None]:
    weight = module.get_parameter("weight").detach()
    bias = getattr(module, "bias", None)
    return weight.t() if is_conv1d(module) else weight, bias


def _unconvertible(model: nn.Module, name: str, module: nn.Module) -> str | None:
    """Return why a layer stays dense whatever its weights; None if it may be replaced."""
    reason = _unlike_linear(module)
    if reason is None:
        others = [
            f"`{other}.{own}`".replace("`.", "`")
            for other, owner in model.named_modules()
            for own, parameter in owner.named_parameters(recurse=False)
            if owner is not module and any(parameter is p for p in module.parameters())
        ]
        reason = f"its weight or bias is also {', '.join(others)}" if others else None
    if reason is None:
        for holder, parent in model.named_modules():
            own = any(child is module for child in parent.children())
            if own and isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
                kind = type(parent).__name__
                reason = f"{kind} `{holder}` reads its weight past its forward"
    return None if reason is None else f"stays dense: {reason}"


def _unlike_linear(module: nn.Module) -> str | None:
    if isinstance(module, CONVOLUTIONS):
        return "torch has no sparse kernels for convolutions, only for linear layers"
    if is_conv1d(module):
        return None
    if not isinstance(module, nn.Linear):
        return "it is not a linear layer"
    unlike = kinds.unlike_its_kind(module)
    if unlike is not None:
        return (
            f"it {unlike}; make the weight a plain parameter first "
            "(remove_parametrizations, prune.remove)"
        )
    return None


def _placed(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
    return model
