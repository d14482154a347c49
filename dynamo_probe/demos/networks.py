"""The network that two of the demos train."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn


def mlp(widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Return layers with ReLU between them, in He's initialisation.

    Args:
        widths: features of the input, units of each hidden layer, outputs.
        generator: what draws the weights.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    last = len(widths) - 2
    for number, (inward, outward) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        linear = nn.Linear(inward, outward)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(linear.bias)
        parts["output" if number == last else f"hidden{number + 1}"] = linear
        if number != last:
            parts[f"relu{number + 1}"] = nn.ReLU()
    return nn.Sequential(parts)
