"""`export`: a sparse network as a model that others can run, and what that brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from dynamo_probe.anatomy.twin import devices_of, twin, unwrap
from dynamo_probe.exporting.compact import NOTE, compacted
from dynamo_probe.exporting.copying import (
    Different,
    as_inputs,
    bare,
    compare,
    hooks_of,
    outputs_of,
)
from dynamo_probe.exporting.layers import as_csr, as_two_four, kept_dense, replace_linear
from dynamo_probe.exporting.measure import size_of, work_of
from dynamo_probe.exporting.report import ExportReport, LayerReport
from dynamo_probe.exporting.timing import Timing, time_forwards
from dynamo_probe.observation.batch import Batch

Format = Literal["dense", "csr", "2:4", "compact"]


@dataclass(frozen=True, slots=True)
class Export:
    """An exported model.

    Attributes:
        model: the new model, a plain `nn.Module` without hooks, in the modes of the given one.
        report: what was done, and what it brought.
    """

    model: nn.Module
    report: ExportReport


def export(
    model: nn.Module,
    format: Format = "dense",
    *,
    inputs: Any = None,
    max_density: float | None = None,
    pack: bool = False,
    measure: bool = True,
    rounds: int = 30,
) -> Export:
    """Export a sparse network: a new model with the same outputs, and an honest report.

    Formats:

    - `dense`: a plain copy. Zeros are stored and multiplied like other weights: neither smaller nor
      faster.
    - `csr`: the weights of linear layers in compressed sparse rows (`CSRLinear`), for inference.
      Outputs are equal up to rounding. Smaller below a density of about half (float32); faster
      only at low densities, which the report measures. Convolutions stay dense.
    - `2:4`: linear weights of which every group of four neighbouring inputs has at most two that
      are not 0, in torch's semi-structured form, on CUDA GPUs of compute capability 8.0 and later
      with float16 or bfloat16 weights. Elsewhere they stay dense, or are stored packed (`pack`),
      which is smaller and slower.
    - `compact`: hidden units that are dead are taken out, which makes a smaller dense network.
      Dead are units that nothing reads (all outgoing weights 0), and units that are a constant
      (all incoming weights 0) which the layers behind them can take into their biases exactly.
      Taking units out can make others dead, so this is repeated. For inference: outputs are equal
      in evaluation mode. A layer always keeps a unit.

    The given model stays as it is and does not run, and random states stay too. With inputs, a copy
    of it and the exported model run in evaluation mode, and an export that gives other outputs is
    never returned. Forward hooks belong to the given model: copies have none, and the report says
    so.

    Args:
        model: any module; wrappers of `torch.compile` and data parallelism are looked through.
        format: one of the above.
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments: what the
            outputs are compared, multiply-adds counted and times measured on; the first axis
            counts samples. `compact` needs them, of two or more different samples.
        max_density: for `csr`, the largest density that is converted; None takes every layer for
            which CSR takes fewer bytes.
        pack: for `2:4`, store layers packed where this machine cannot compute with 2:4 weights.
        measure: time forward passes of both models on the inputs: 3 x `rounds` samples of at least
            2 ms or one pass.
        rounds: how many, at least 10.

    Returns:
        The model and the report; `print(report)` shows it as tables.

    Raises:
        TypeError: for a model or inputs of another kind.
        ValueError: for an unknown format, an argument out of range or that another format needs,
            and a model whose weights are sharded, lazy or on the meta device.
        RuntimeError: when the model cannot be copied, or the exported one gives other outputs.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[:, 6:].zero_()
        >>> report = export(net, "csr").report
        >>> report.smaller, [layer.changed for layer in report.layers]
        (True, [True, False])
    """
    batch = _checked(model, format, inputs, max_density, pack, rounds)
    given = unwrap(model)
    dropped = hooks_of(given)
    original = bare(given)
    layers: tuple[LayerReport, ...]
    if format == "compact":
        assert batch is not None
        exported, layers = compacted(original, batch)
    elif format == "dense":
        exported, layers = bare(original), kept_dense(original)
    else:
        convert = as_csr(max_density) if format == "csr" else as_two_four(pack)
        exported, layers = replace_linear(bare(original), convert)
    difference, notes = None, _notes(format, layers, dropped)
    if batch is not None:
        difference = _difference(original, exported, batch)
    before = after = None if batch is None else work_of(original, batch)
    if batch is not None and format == "compact":
        after = work_of(exported, batch)  # the others multiply with the same weights
    timing, untimed = None, "no inputs were given" if batch is None else "measure=False"
    if batch is not None and measure:
        copies = [bare(original).eval(), bare(original).eval(), twin(exported).eval()]
        timing = Timing(*(tuple(times) for times in time_forwards(copies, batch, rounds)))
    report = ExportReport(
        format=format,
        layers=layers,
        before=size_of(original),
        after=size_of(exported),
        work_before=before,
        work_after=after,
        difference=difference,
        timing=timing,
        untimed=untimed if timing is None else "",
        torch_version=torch.__version__,
        device=_device(original),
        threads=torch.get_num_threads(),
        notes=notes,
    )
    return Export(exported, report)


def _checked(
    model: Any, format: str, inputs: Any, max_density: float | None, pack: bool, rounds: int
) -> Batch | None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    if format not in get_args(Format):
        raise ValueError(f"format is {format!r}; give one of {', '.join(get_args(Format))}")
    if max_density is not None and format != "csr":
        raise ValueError(f"max_density belongs to format='csr', not to {format!r}: leave it out")
    if max_density is not None and not 0 < max_density <= 1:
        raise ValueError(f"max_density is {max_density}; give a share of the weights in (0, 1]")
    if pack and format != "2:4":
        raise ValueError(f"pack belongs to format='2:4', not to {format!r}: leave it out")
    if rounds < 10:
        raise ValueError(f"rounds is {rounds}; give 10 or more: fewer do not show the noise")
    batch = as_inputs(inputs)
    if format == "compact" and batch is None:
        raise ValueError(
            "format='compact' needs inputs= to see which weights lead into and out of a unit; give "
            "a batch of two or more different samples"
        )
    return batch


def _difference(original: nn.Module, exported: nn.Module, batch: Batch) -> float | None:
    reference = outputs_of(original, batch)
    try:
        return compare(reference, outputs_of(exported, batch)) if reference else None
    except Different as error:
        raise RuntimeError(
            f"the exported model gives other outputs than the model: {error}; the model may not "
            "give the same twice, or keep state between passes"
        ) from error


def _notes(
    format: str, layers: tuple[LayerReport, ...], dropped: tuple[str, ...]
) -> tuple[str, ...]:
    notes = []
    if dropped:
        notes.append(
            f"forward hooks are left out (on {', '.join(dropped)}): where one changes what a layer "
            "gives, put that into a module"
        )
    if format == "compact":
        notes.append(NOTE)
    if any(layer.changed for layer in layers):
        if format == "csr":
            notes.append("CSR layers are for inference; torch calls its CSR tensors a beta feature")
        if format == "2:4":
            notes.append("2:4 layers are for inference; torch calls the 2:4 form a prototype")
    return tuple(notes)


def _device(model: nn.Module) -> str:
    devices = devices_of(model)
    if not devices:
        return "cpu"
    names = [
        torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        for device in devices
    ]
    return ", ".join(names)
