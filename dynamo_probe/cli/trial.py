"""Which probes give readings on a network: each is tried on one update that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import dynamo_probe as dp
from dynamo_probe.observation.batch import Batch

_SMALL: dict[str, dict[str, Any]] = {"trainability": {"updates": 2}}
"""Settings that keep the trial short."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network that a script trains.

    Attributes:
        name: the variable that holds it, or its class.
        model: the network inside any wrapper.
        optimizers: those that train it.
        inputs: {qualified name of a module that the script calls: the inputs of its last call}.
    """

    name: str
    model: nn.Module
    optimizers: Sequence[Optimizer]
    inputs: Mapping[str, Batch]


def try_probes(network: Network, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can be tapped in a network, and which probes give readings, as JSON takes it.

    Each probe rides on one forward and backward pass of the script's own inputs and a step at a
    learning rate of 0. Statistics that forward passes keep (batch norm) do move.

    Args:
        network: what was found.
        kinds: {name: probe that takes `every`}.
    """
    model = network.model
    report: dict[str, Any] = {
        "name": network.name,
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimizers": [type(one).__name__ for one in network.optimizers],
        "layers": [], "skipped": [], "probes": [], "warnings": [], "trouble": "",
    }  # fmt: skip
    if not network.inputs:
        report["trouble"] = "it was not called before the first optimizer step"
        return report
    model.train()
    first = _Trial(network, dp.ReDo(every=10, tau=0.0))
    if first.refused:
        report["trouble"] = first.refused
        return report
    report["layers"] = [
        {"name": one.name, "units": one.units, "read": one.measured, "not_recyclable": one.reason}
        for one in first.report.layers
        if one.units
    ]
    report["skipped"] = [
        {"name": one.name, "reason": one.measured.removeprefix("not measured: ")}
        for one in first.report.layers
        if not one.units
    ]
    if first.failed:
        report["warnings"].append(
            f"the network could not be run once more, so that no probe was tried: {first.failed}"
        )
        return report
    for name, kind in kinds.items():
        trial = _Trial(network, kind(every=1, **_SMALL.get(name, {})))
        works = None if trial.failed else bool(trial.tags)
        reason = "" if works else trial.failed or trial.refused or trial.why
        report["probes"].append({"name": name, "works": works, "reason": reason})
    return report


class _Trial:
    """One update of a network under a watch with one instrument."""

    def __init__(self, network: Network, instrument: dp.Instrument) -> None:
        self.refused, self.failed, self.why = "", "", ""
        self.tags: list[str] = []
        # No learning: it is a step to ride on, and the script's own optimizer is left alone.
        parameters = [p for p in network.model.parameters() if p.requires_grad]
        clock = torch.optim.SGD(parameters, lr=0.0)
        try:
            watch = dp.watch(network.model, clock, instrument)
        except Exception as error:
            self.refused = f"{error}"
            return
        with watch:
            try:
                for prefix, batch in network.inputs.items():
                    _backward(batch.clone().run(network.model.get_submodule(prefix)))
                clock.step()
            except Exception as error:
                self.failed = f"{type(error).__name__}: {error}".splitlines()[0]
            finally:
                clock.zero_grad()
            own = [tag for tag in watch.history.tags() if not tag.endswith("/samples")]
            self.tags = own if watch.step else []
            self.report = watch.doctor()
            events = [one for one in watch.events if one.kind in ("skipped", "disabled")]
            reasons = [f"{one.detail.get('reason', '')}" for one in events]
            self.why = "; ".join(dict.fromkeys(reasons)) or "nothing was there to read"


def _backward(output: Any) -> None:
    """Let a gradient reach everything that the output depends on."""
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        parts = [one.float().square().mean() for one in _tensors(output) if one.requires_grad]
        if not parts:
            raise ValueError("its output does not depend on anything that is trained")
        loss = torch.stack(parts).sum()
    loss.backward()


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for one in tree.values():
            yield from _tensors(one)
    elif isinstance(tree, (list, tuple)):
        for one in tree:
            yield from _tensors(one)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from _tensors(getattr(tree, field.name))
    elif isinstance(tree, torch.distributions.Distribution):
        yield from _tensors([v for v in vars(tree).values() if isinstance(v, Tensor)])
