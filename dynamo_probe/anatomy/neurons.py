"""The hidden layers of a model, and where their units are read after the activation function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.axes import Axes
from dynamo_probe.anatomy.dataflow import record
from dynamo_probe.anatomy.frozen_copy import in_frozen_copies
from dynamo_probe.anatomy.layer import Anatomy, Layer
from dynamo_probe.anatomy.search import Search
from dynamo_probe.anatomy.taps import Observer, install
from dynamo_probe.anatomy.twin import twin, untouched_randomness


def find_neurons(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    whole: bool = True,
    axes: Mapping[str, Axes] | None = None,
) -> Anatomy:
    """Find the hidden layers of a model from one forward pass of a twin.

    The model itself is not run and nothing of it changes. Every tap is checked: the pass is run a
    second time, and a tap that does not give the recorded activation is refused.

    Args:
        model: the model, in the mode (training or evaluation) it is going to run in.
        args: positional arguments of a real forward pass.
        kwargs: its keyword arguments.
        whole: the model's output is the output of the network. Where it is not (an encoder that is
            called by itself), a last layer with an activation function counts as hidden.
        axes: of the outputs of modules whose axes the user has named.

    Returns:
        The layers in the order in which they ran, and the reason for each one left out.

    Raises:
        RuntimeError: when the model cannot be copied.
    """
    kwargs = kwargs or {}
    copied = twin(model)
    with untouched_randomness(model):
        flow = record(copied, args, kwargs)
    live = flow.live()
    search = Search(copied, live, whole, axes or {})
    layers, skipped = search.run()
    for name in in_frozen_copies(model, [*layers, *skipped]):
        layers.pop(name, None)
        skipped[name] = "it is a frozen copy of a layer"
    copied = twin(model)
    with untouched_randomness(model):
        wrong = _unfaithful(copied, args, kwargs, layers)
    for name, reason in wrong.items():
        skipped[name] = reason
        del layers[name]
    return Anatomy(layers, skipped, frozenset(search.last))


def _unfaithful(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], layers: Mapping[str, Layer]
) -> dict[str, str]:
    """Run the pass again with every tap in place; name the layers that read something else."""
    recorded: dict[str, Tensor] = {}
    tapped: dict[str, Tensor] = {}
    values = {layer.value: name for name, layer in layers.items()}

    def on_value(number: int, tensor: Tensor) -> None:
        if number in values:
            recorded[values[number]] = tensor.detach().abs().double().sum()

    def observer(layer: Layer) -> Observer:
        def observe(read: Tensor) -> None:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                function = layer.tap.function
                h = read if function is None else function(read.detach())
                tapped[layer.name] = h.detach().abs().double().sum()

        return observe

    handles = [install(model, layer.tap, observer(layer)) for layer in layers.values()]
    try:
        record(model, args, kwargs, on_value)
    finally:
        for handle in handles:
            handle.remove()
    wrong: dict[str, str] = {}
    for name in layers:
        if name not in recorded or name not in tapped:
            wrong[name] = "its activation did not come again when the forward pass was repeated"
        elif not torch.allclose(tapped[name], recorded[name], rtol=1e-4, equal_nan=True):
            wrong[name] = "its tap read something else than its activation when it was checked"
    return wrong
