"""The first masks: drawn, scored before training, or the zeros that are already there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.shards import is_sharded, whole
from dynamo_probe.anatomy.twin import untouched_randomness
from dynamo_probe.anatomy.weights import Weight
from dynamo_probe.functional.densities import least_counts
from dynamo_probe.functional.importance import grasp_scores
from dynamo_probe.functional.selection import select_globally
from dynamo_probe.treatments.sparse.distribution import layer_counts
from dynamo_probe.treatments.sparse.plan import Masks, Scores
from dynamo_probe.treatments.sparse.rules import Rules
from dynamo_probe.treatments.sparse.scores import Evidence, Score

MakeEvidence = Callable[[str, Weight, Tensor | None], Evidence]
"""Takes what for, a weight and its gradient."""


def waits_for_gradient(rules: Rules) -> bool:
    """Whether the first masks are made from the gradient of the first update."""
    if rules.loss is not None or rules.density.at(0) == 1:
        return False
    return isinstance(rules.initial, Score) and rules.initial.needs_gradient


def first_masks(
    model: nn.Module,
    weights: Mapping[str, Weight],
    rules: Rules,
    evidence: MakeEvidence,
    gradients: Mapping[str, Tensor],
) -> Masks:
    """Make the masks that training begins with.

    Args:
        model: the model.
        weights: {name: weight}.
        rules: the settings.
        evidence: makes what a score looks at.
        gradients: {name: dL/dw}, where they were waited for.

    Raises:
        ValueError: when the density cannot be met.
    """
    device = {name: weight.parameter.device for name, weight in weights.items()}
    density = rules.density.at(0)
    if rules.initial == "zeros":
        return {name: whole(weight.parameter.detach()) != 0 for name, weight in weights.items()}
    if density == 1 and isinstance(rules.distribution, str):
        return {
            name: torch.ones(weight.shape, dtype=torch.bool, device=device[name])
            for name, weight in weights.items()
        }
    scores = _scores(model, weights, rules, evidence, gradients)
    if rules.initial_scope == "global":
        total = round(density * sum(score.numel() for score in scores.values()))
        floors = least_counts({n: weight.shape for n, weight in weights.items()}, rules.floor)
        return select_globally(scores, total, floors=floors)
    counts = layer_counts(weights, rules.distribution, density, rules.floor, rules.granularity)
    return {
        name: rules.granularity.best(weight, scores[name], counts[name], None)
        for name, weight in weights.items()
    }


def _scores(
    model: nn.Module,
    weights: Mapping[str, Weight],
    rules: Rules,
    evidence: MakeEvidence,
    gradients: Mapping[str, Tensor],
) -> Scores:
    if rules.loss is not None and any(is_sharded(w.parameter) for w in weights.values()):
        raise ValueError("loss= needs whole weights: not under fully_shard; leave it out")
    parameters = {name: weight.parameter for name, weight in weights.items()}
    if rules.initial == "grasp":
        assert rules.loss is not None
        with _untouched(model):
            return grasp_scores(parameters, rules.loss)
    assert isinstance(rules.initial, Score)
    if rules.loss is not None:
        with _untouched(model), torch.enable_grad():
            tensors = list(parameters.values())
            found = torch.autograd.grad(rules.loss(), tensors, allow_unused=True)
        gradients = {n: g for n, g in zip(parameters, found, strict=True) if g is not None}
        if missing := [name for name in parameters if name not in gradients]:
            raise ValueError(f"the loss does not depend on {missing[0]}; leave it out by exclude=")
    return {
        name: rules.initial(evidence("initial", weight, gradients.get(name)))
        for name, weight in weights.items()
    }


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put back buffers, such as running statistics, and random states."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with untouched_randomness(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, copy in kept:
                    buffer.copy_(copy)
