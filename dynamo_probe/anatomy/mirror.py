"""Networks that follow the model: target networks, averages, whatever has the same parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dynamo_probe.anatomy.twin import unwrap


def as_networks(mirror: nn.Module | Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """Return one network or several as a tuple."""
    return (mirror,) if isinstance(mirror, nn.Module) else tuple(mirror)


def check_mirror(model: nn.Module, mirror: Sequence[nn.Module]) -> None:
    """Refuse networks that are not copies of the model.

    Raises:
        ValueError: when one has other parameters.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for network in mirror:
        if {n: p.shape for n, p in unwrap(network).named_parameters()} != shapes:
            raise ValueError(
                f"the mirror ({type(network).__name__}) has other parameters than the model; "
                "give networks of the same architecture, such as target networks"
            )
