"""What a connection is worth: scores for pruning. The larger, the longer it stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def magnitude_scores(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score weights by |w| (Han et al. 2015).

    Args:
        weights: {name: weight of any shape}.

    Returns:
        {name: Tensor of the same shape}, non-negative, in float32 or better.

    Example:
        >>> magnitude_scores({"fc": torch.tensor([[-2.0, 0.5]])})
        {'fc': tensor([[2.0000, 0.5000]])}
    """
    return {name: magnitude(weight) for name, weight in weights.items()}


def magnitude(weight: Tensor) -> Tensor:
    """Return |w| in float32 or better."""
    return _wide(weight.detach()).abs()


def saliency(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return |w dL/dw|, the first-order change of the loss when the weight goes (SNIP, eq. 5).

    Lee et al. 2019, *SNIP*, where it is divided by its sum over all weights: that does not change
    the order. Molchanov et al. 2017 use the same.
    """
    return (_wide(weight.detach()) * _wide(gradient.detach())).abs()


def grasp_scores(
    weights: Mapping[str, nn.Parameter], loss: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """Score weights by how much the gradient flow depends on them (GraSP).

    S(-w) = -w (H g) with g = dL/dw and H the Hessian (Wang et al. 2020, *Picking Winning Tickets
    Before Training*, eq. 8). Weights with the largest S are removed first: it is returned with the
    other sign, so that the larger stays.

    Args:
        weights: {name: parameter}, what is scored and what H g is taken over.
        loss: computes the loss from the weights; it is called once.

    Returns:
        {name: w (H g)}, of the weights' shapes.

    Raises:
        ValueError: when the loss does not depend on one of the weights.
    """
    names, parameters = list(weights), list(weights.values())
    with torch.enable_grad():
        first = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
        flow = torch.zeros(())
        for name, gradient in zip(names, first, strict=True):
            if gradient is None:
                raise ValueError(f"the loss does not depend on {name}: it cannot be scored")
            flow = flow + (gradient * gradient.detach()).sum().to(flow)
        # d(g . stop(g))/dw = H g, which is 0 where no gradient depends on the weights.
        second = (
            torch.autograd.grad(flow, parameters, allow_unused=True)
            if flow.requires_grad
            else [None] * len(parameters)
        )
    return {
        name: _wide(p.detach()) * (torch.zeros_like(p) if hg is None else _wide(hg))
        for name, p, hg in zip(names, parameters, second, strict=True)
    }


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
