"""How sparse a model is: connections, units that are cut off, multiply-adds and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dynamo_probe.anatomy import kinds
from dynamo_probe.anatomy.multiply_adds import Uses, find_uses
from dynamo_probe.anatomy.twin import twin, unwrap
from dynamo_probe.anatomy.weights import Weight, find_weights
from dynamo_probe.anatomy.wiring import Wiring, wire
from dynamo_probe.functional.connected import Connected, connect, groups_of
from dynamo_probe.functional.connectivity import bitmask_bytes, csr_bytes, inputs_unread, units_key
from dynamo_probe.functional.connectivity import fan_in as fan_in
from dynamo_probe.functional.connectivity import fan_out as fan_out
from dynamo_probe.functional.connectivity import overparameterisation as overparameterisation
from dynamo_probe.functional.connectivity import survival as survival
from dynamo_probe.functional.connectivity import turnover as turnover
from dynamo_probe.functional.connectivity import units_without_input as units_without_input
from dynamo_probe.functional.sparsity_table import SparsityReport, WeightSparsity
from dynamo_probe.observation.batch import Batch, as_batch


def sparsity_report(
    model: nn.Module,
    inputs: Any = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> SparsityReport:
    """Report which connections of a model are there, and what that saves.

    Weights are those of linear, convolutional, recurrent and attention layers, output layers and
    frozen ones included. The model is not run: with inputs a twin of it is, in evaluation mode, and
    random states stay as they are. Of a model under `fully_shard` every rank has to ask.

    Args:
        model: any module; wrappers of `torch.compile` and data parallelism are looked through.
        inputs: of one forward pass: a tensor, a tuple of positional arguments or a dict of keyword
            arguments. With them multiply-adds are counted, and units are followed to what reads
            them. A sample is an entry along the first axis of the first tensor.
        masks: {name of the weight: its mask}, 0 where no connection is; what is not named is left
            whole. None: a connection is there where the weight is not exactly 0, so that a layer
            that is initialised with 0 is an empty one.
        include: patterns of names (`fnmatch`) of the weights to report; None takes all.
        exclude: patterns of those to leave whole.

    Raises:
        TypeError: when the inputs are of another kind.
        ValueError: when a pattern matches nothing, or a mask is of no weight or of another shape.
        RuntimeError: when the model cannot be copied.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
        >>> with torch.no_grad():
        ...     net[0].weight[1:] = 0.0
        >>> report = sparsity_report(net, torch.randn(8, 4))
        >>> round(report.density, 3), report.units_without_input
        (0.556, 2)
        >>> report.multiply_adds, report.dense_multiply_adds
        (10.0, 18.0)
    """
    batch = _batch(inputs)
    # In the twin nothing is frozen: a frozen weight is as sparse as a trained one.
    copied = twin(unwrap(model), requires_grad=True)
    possible = find_weights(copied, include=include, exclude=exclude)
    weights, left = dict(possible.found), dict(possible.left)
    if masks is not None:
        _check_masks(masks, weights, left)
        left |= {name: "masks= has no mask of it" for name in weights if name not in masks}
        weights = {name: weight for name, weight in weights.items() if name in masks}
    masked = {
        name: (w, (w.parameter if masks is None else masks[name].to(w.parameter.device)) != 0)
        for name, w in weights.items()
    }
    wirings, uses = {}, None
    if batch is not None:
        layers = [name for name, part in copied.named_modules() if isinstance(part, kinds.WEIGHTED)]
        wirings = wire(copied, batch.args, batch.kwargs, layers)
        uses = find_uses(copied, batch.args, batch.kwargs)
    found = connect(copied, masked, wirings, outside=True)
    reported = {
        name: _report(weight, mask, found, uses, groups_of(copied, weight))
        for name, (weight, mask) in masked.items()
    }
    # The two layers of gated units have the same ones.
    silent = {
        frozenset(one.name for one in wiring.incoming): found.hidden_without_output[name]
        for name, wiring in wirings.items()
        if isinstance(wiring, Wiring)
    }
    sparse, dense = (None, None) if uses is None else uses.total(found.slices)
    parameters = dict(copied.named_parameters())
    return SparsityReport(
        weights=reported,
        left=left,
        left_bytes=sum(bytes_of(parameters[name]) for name in left),
        units=sum(map(len, found.without_input.values())),
        units_without_input=sum(int(units.sum()) for units in found.without_input.values()),
        hidden_units=sum(map(len, silent.values())),
        units_without_output=(
            None if batch is None else sum(int(units.sum()) for units in silent.values())
        ),
        unwired={name: reason for name, reason in wirings.items() if isinstance(reason, str)},
        multiply_adds=sparse,
        dense_multiply_adds=dense,
        uncounted={} if uses is None else uses.uncounted,
    )


def bytes_of(parameter: Tensor) -> int:
    """Return what the values of a whole parameter take; 0 of one that has no shape yet."""
    return 0 if is_lazy(parameter) else parameter.numel() * parameter.element_size()


def _report(
    weight: Weight, mask: Tensor, found: Connected, uses: Uses | None, groups: int
) -> WeightSparsity:
    name, item = weight.name, weight.parameter.element_size()
    count, size, rows = found.connections(name), mask.numel(), weight.shape[0]
    own = name == f"{weight.layer}.weight".lstrip(".")
    return WeightSparsity(
        shape=weight.shape,
        connections=count,
        outside=found.outside[name],
        fan_in=found.fan_in[name],
        without_input=found.without_input[units_key(name)],
        without_output=found.hidden_without_output.get(weight.layer) if own else None,
        unread=inputs_unread(mask, weight.input_dim, groups=groups).cpu(),
        multiply_adds=None if uses is None else uses.sparse(name, found.slices[name]),
        dense_multiply_adds=None if uses is None else uses.dense(name),
        bytes=size * item,
        bitmask_bytes=bitmask_bytes(size, count, item),
        csr_bytes=csr_bytes(rows, size // rows, count, item),
    )


def _batch(inputs: Any) -> Batch | None:
    found = None if callable(inputs) else as_batch(inputs)
    if callable(found) or (found is None and inputs is not None):
        raise TypeError("give the inputs as a tensor, a tuple of arguments or a dict of them")
    return found


def _check_masks(
    masks: Mapping[str, Tensor], weights: Mapping[str, Weight], left: Mapping[str, str]
) -> None:
    for name, mask in masks.items():
        if name not in weights:
            reason = left.get(name, f"the weights are {', '.join(weights) or 'none'}")
            raise ValueError(f"masks= has {name!r}, which is no weight of the report: {reason}")
        if tuple(mask.shape) != weights[name].shape:
            raise ValueError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}; give one of the weight's, "
                f"{weights[name].shape}"
            )
