"""Dormant units: how much of its layer's activity a unit has (Sokar et al. 2023, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.neurons import find_neurons
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.observation.batch import Batch
from dynamo_probe.observation.recorder import measure
from dynamo_probe.observation.statistics import MAGNITUDE, near_bounds


def normalised_scores(mean_magnitude: Tensor) -> Tensor:
    """Divide each unit's mean absolute activation by the mean over its layer.

    This is s_i = E|h_i| / ((1/H) sum_k E|h_k|) of Sokar et al. 2023, eq. 1. The reference adds 1e-9
    to the denominator; here a silent layer is told apart instead, so that the scores do not depend
    on the scale of the activations.

    Args:
        mean_magnitude: E|h| of one layer's units, Tensor[units], not negative. Entries that are
            not finite take no part in the layer's mean.

    Returns:
        Tensor[units] of the same type: mean 1 over the finite units, 0 everywhere in a silent
        layer, NaN for a unit that is not finite.
    """
    finite = mean_magnitude.isfinite()
    level = mean_magnitude[finite].mean() if finite.any() else mean_magnitude.new_tensor(1.0)
    scores = mean_magnitude / level if level > 0 else torch.zeros_like(mean_magnitude)
    return torch.where(finite, scores, float("nan"))


def normalised_by_replica(mean_magnitude: Tensor, replicas: int) -> Tensor:
    """Divide each unit's mean absolute activation by the mean over its layer of its own replica.

    Args:
        mean_magnitude: E|h|, Tensor[replicas * units], the units of the first replica first.
        replicas: independent networks that are stacked in the layer.

    Returns:
        Tensor[replicas * units]; see `normalised_scores`.
    """
    if replicas == 1:
        return normalised_scores(mean_magnitude)
    rows = mean_magnitude.view(replicas, -1)
    return torch.cat([normalised_scores(row) for row in rows])


def dormancy_scores(model: nn.Module, *inputs: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Score every hidden unit by its mean absolute activation, relative to its layer.

    The definition is Sokar et al. 2023, eq. 1. A unit of a convolution is a feature map: the mean
    is over samples and positions. The activation is read after the activation function, however
    that is written. The model is run in evaluation mode without gradients; its modes, buffers and
    the random states are put back.

    Args:
        model: any module; `DataParallel` and `torch.compile` wrappers are looked through.
        *inputs: positional arguments of its forward pass.
        **kwargs: keyword arguments of its forward pass.

    Returns:
        {qualified name of the producing layer: Tensor[units]}, in the order of the forward pass;
        not negative, mean 1 over a layer's units, 0 everywhere where a layer is silent, NaN for
        a unit with activations that are not finite. Output layers are left out.

    Raises:
        ValueError: when no hidden layer can be read, with the reason for each layer, or the
            batch is empty.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        >>> dormancy_scores(net, torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        {'0': tensor([1.5000, 1.5000, 0.0000], dtype=torch.float64)}
    """
    batch = Batch(inputs, kwargs)
    inner = unwrap(model)
    sums = measure(inner, batch, find_hidden(inner, batch), (MAGNITUDE,))
    empty = [name for name, layer in sums.items() if layer.samples == 0]
    if empty:
        raise ValueError(
            f"the batch is empty: layer {empty[0]} saw no sample; give at least one row"
        )
    return {name: normalised_scores(layer.mean_magnitude()) for name, layer in sums.items()}


def dormant_units(scores: Tensor, tau: float) -> Tensor:
    """Say which units are dormant: score at most tau (inclusive, so that tau = 0 finds dead units).

    Args:
        scores: Tensor[units]; NaN is neither dormant nor alive and gives False.
        tau: threshold, at least 0.

    Returns:
        BoolTensor[units].

    Raises:
        ValueError: when tau is negative or NaN.
    """
    check_tau(tau)
    return scores <= tau


def dormant_fraction(scores: Mapping[str, Tensor] | Iterable[Tensor] | Tensor, tau: float) -> float:
    """Return the share of dormant units, pooled over the units of all layers.

    Args:
        scores: what `dormancy_scores` returns, or the scores of one layer.
        tau: a unit with a score of at most tau is dormant (Sokar et al. 2023, definition 3.1).

    Returns:
        Dormant units / units with a finite score; NaN when there is none.

    Raises:
        ValueError: when tau is negative, or there are no scores.

    Example:
        >>> import torch
        >>> dormant_fraction({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([0.05, 1.95])}, 0.1)
        0.5
    """
    if isinstance(scores, Tensor):
        layers = [scores]
    else:
        layers = list(scores.values() if isinstance(scores, Mapping) else scores)
    if not layers:
        raise ValueError("there are no scores; give what dormancy_scores returned")
    counts = [dormant_counts(layer, (tau,)) for layer in layers]
    finite = sum(count[1] for count in counts)
    return sum(count[0][0] for count in counts) / finite if finite else float("nan")


def dormant_counts(scores: Tensor, taus: Sequence[float]) -> tuple[list[int], int]:
    """Count the dormant units of one layer at several thresholds, in one pass.

    Args:
        scores: Tensor[units].
        taus: thresholds, each at least 0.

    Returns:
        The number of units with a score of at most each threshold, and the number of units with a
        finite score.

    Raises:
        ValueError: when a threshold is negative or NaN.
    """
    for tau in taus:
        check_tau(tau)
    thresholds = torch.tensor(list(taus), dtype=torch.float64, device=scores.device)
    dormant = scores <= thresholds.to(torch.promote_types(scores.dtype, torch.float32))[:, None]
    return dormant.sum(1).tolist(), int(scores.isfinite().sum())


def dead_units(activations: Tensor) -> Tensor:
    """Say which units never fired: exactly 0 on every sample.

    Args:
        activations: [samples, units].

    Returns:
        BoolTensor[units]; False for a unit with an activation that is not finite.
    """
    return (activations == 0).all(0)


def constant_units(activations: Tensor) -> Tensor:
    """Say which units have no variance: the same value on every sample. Dead units are constant.

    A constant unit that is not 0 has a high dormancy score and yet carries nothing.

    Args:
        activations: [samples, units].

    Returns:
        BoolTensor[units]; False for a unit with an activation that is not finite.
    """
    return (activations == activations[:1]).all(0)


def saturated_units(
    activations: Tensor,
    bounds: tuple[float, float] = (-1.0, 1.0),
    *,
    margin: float = 0.01,
    share: float = 0.99,
) -> Tensor:
    """Say which units sit at a bound of their activation function on almost every sample.

    Args:
        activations: [samples, units].
        bounds: lowest and highest value of the function: (-1, 1) for tanh, (0, 1) for sigmoid.
        margin: share of the range that counts as being at the bound.
        share: share of the samples at a bound above which a unit is saturated.

    Returns:
        BoolTensor[units]; all False where a bound is infinite: ReLU has no range to saturate in.
    """
    return near_bounds(activations, bounds, margin).double().mean(0) > share


def check_tau(tau: float) -> None:
    """Refuse a threshold that no score can be compared with.

    Raises:
        ValueError: when tau is negative or NaN.
    """
    if not tau >= 0:
        raise ValueError(f"tau is {tau}; scores are not negative, so give 0 or more (0.1 is usual)")


def find_hidden(model: nn.Module, batch: Batch) -> Mapping[str, Any]:
    """Return the readable hidden layers of a model.

    Raises:
        ValueError: when there is none, with the reason for each layer.
    """
    anatomy = find_neurons(model, batch.args, batch.kwargs)
    if not anatomy.layers:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in anatomy.skipped.items())
        raise ValueError(
            "no hidden layer with an activation function can be read in this model"
            + (f":{reasons}" if reasons else "; it has no Linear or Conv layer")
        )
    return anatomy.layers
