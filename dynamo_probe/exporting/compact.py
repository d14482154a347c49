"""A smaller dense network that computes the same: dead units taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dynamo_probe.anatomy import kinds
from dynamo_probe.exporting.copying import Different, bare, compare, outputs_of
from dynamo_probe.exporting.dead import Dead, silence_dead
from dynamo_probe.exporting.layers import weighted
from dynamo_probe.exporting.measure import weights_of
from dynamo_probe.exporting.removal import remove_units
from dynamo_probe.exporting.report import LayerReport
from dynamo_probe.exporting.units import Units, find_units
from dynamo_probe.observation.batch import Batch

NOTE = (
    "compact is for inference: the outputs are equal in evaluation mode; in training a unit that "
    "was taken out could have come back, and BatchNorm would have counted it"
)


def compacted(model: nn.Module, batch: Batch) -> tuple[nn.Module, tuple[LayerReport, ...]]:
    """Return a copy of a model without its dead units, and what was done.

    Units are only taken out where the smaller model runs and gives the same outputs on the inputs;
    a layer with which it does not stays as it was.

    Args:
        model: the model; it stays as it is.
        batch: inputs of two or more different samples.

    Raises:
        ValueError: when the model's output holds no tensor, so that nothing can be compared.
        RuntimeError: when layers can be made smaller one by one and not together.
    """
    reference = outputs_of(model, batch)
    if not reference:
        raise ValueError(
            "the model's output holds no tensor, so nothing shows that a compact model gives the "
            "same; export a module that returns tensors"
        )
    looked_at, _ = _prepared(model)
    groups, refused = find_units(looked_at, batch)
    try:
        exported, found = _attempt(model, batch, groups, reference)
    except Exception:
        groups, failed = _alone(model, batch, groups, reference)
        refused |= failed
        try:
            exported, found = _attempt(model, batch, groups, reference)
        except Exception as error:
            raise RuntimeError(
                "the layers can be made smaller one by one, but not together "
                f"({type(error).__name__}: {error}); export as 'dense'"
            ) from error
    return exported, _reports(model, groups, found, refused)


def _attempt(
    model: nn.Module, batch: Batch, groups: Sequence[Units], reference: Sequence[Tensor]
) -> tuple[nn.Module, list[Dead]]:
    """Take the dead units of some layers out of a copy, and check that it computes the same."""
    smaller, flags = _prepared(model)
    found = silence_dead(smaller, batch, groups)
    for dead in found:
        if bool(dead.mask.all()):
            dead.mask[0] = False  # its weights are zero now, but a layer is never empty
    remove_units(smaller, batch, groups, [dead.mask for dead in found])
    for name, parameter in smaller.named_parameters():
        owner = name.rpartition(".")[0]
        # A bias that was made here is trained if the weight beside it is.
        parameter.requires_grad_(flags.get(name, flags.get(f"{owner}.weight".lstrip("."), True)))
    for copied, module in zip(smaller.modules(), model.modules(), strict=True):
        copied.training = module.training
    compare(reference, outputs_of(smaller, batch))
    return smaller, found


def _alone(
    model: nn.Module, batch: Batch, groups: Sequence[Units], reference: Sequence[Tensor]
) -> tuple[list[Units], dict[str, str]]:
    """Try each layer by itself; return those that can be made smaller, and why others cannot."""
    good: list[Units] = []
    failed: dict[str, str] = {}
    for units in groups:
        try:
            _attempt(model, batch, [units], reference)
            good.append(units)
        except Different as error:
            failed |= dict.fromkeys(units.makers, f"without its dead units {error}")
        except Exception as error:
            reason = f"the model does not run without its dead units ({_short(error)})"
            failed |= dict.fromkeys(units.makers, reason)
    return good, failed


def _prepared(model: nn.Module) -> tuple[nn.Module, dict[str, bool]]:
    """Return a copy in evaluation mode that can be traced, and what required gradients."""
    copied = bare(model).eval()
    flags = {name: parameter.requires_grad for name, parameter in copied.named_parameters()}
    for parameter in copied.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)  # the wiring is traced with autograd
    return copied, flags


def _reports(
    model: nn.Module,
    groups: Sequence[Units],
    found: Sequence[Dead],
    refused: Mapping[str, str],
) -> tuple[LayerReport, ...]:
    known = {
        name: (units, dead)
        for units, dead in zip(groups, found, strict=True)
        for name in units.makers
    }
    reports = []
    for name, module in weighted(model):
        changed = False
        if name in known:
            changed = known[name][1].unread + known[name][1].constant > 0
            what = _in_words(*known[name])
        elif isinstance(module, kinds.WEIGHTED):
            what = f"all units stay: {refused[name]}"
        else:
            what = "all units stay: only those of linear and convolutional layers are looked at"
        kind = type(module).__name__
        reports.append(LayerReport(name, kind, changed, what, *weights_of(module)))
    return tuple(reports)


def _in_words(units: Units, dead: Dead) -> str:
    gone, silent = int(dead.mask.sum()), dead.unread + dead.constant
    if not silent and not dead.kept:
        return f"all {units.count} units stay: none is dead"
    parts = [f"{gone} of {units.count} units taken out"]
    if silent:
        parts.append(f"{dead.unread} that nothing reads, {dead.constant} constant")
    if dead.biased:
        parts.append(f"constants added to the bias of {', '.join(sorted(dead.biased))}")
    if gone < silent:
        parts.append("one dead unit stays, so that the layer is not empty")
    parts += [f"{count} with zero weights stay: {why}" for why, count in dead.kept.items()]
    return "; ".join(parts)


def _short(error: Any) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
