"""Trainability: how well a network still fits targets that it has never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynamo_probe.anatomy.dataflow import tensors_in
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.functional.fresh import fresh_copy, own_copy, seeded
from dynamo_probe.functional.initial import Initial
from dynamo_probe.observation.batch import Batch, as_batch

Targets = Literal["regression", "labels"]


@dataclass(frozen=True, slots=True)
class TrainabilityReport:
    """The losses of a network and of a freshly initialised one on the same targets.

    Attributes:
        losses: of the network, float64 [updates + 1]; entry i is after i updates.
        fresh_losses: of the fresh network, the same.
        drawn: parameters of the fresh network that were drawn from recorded distributions.
        samples: how many samples were fitted.
    """

    losses: Tensor
    fresh_losses: Tensor
    drawn: tuple[str, ...]
    samples: int

    @property
    def ratio(self) -> float:
        """Final loss / final loss of the fresh network: above 1 is lost plasticity."""
        fresh = float(self.fresh_losses[-1])
        return float(self.losses[-1]) / fresh if fresh else float("nan")


def trainability(
    model: nn.Module,
    inputs: Any,
    *,
    updates: int = 100,
    learning_rate: float = 1e-3,
    targets: Targets = "regression",
    centred: bool = True,
    recorded: Mapping[str, Initial] | None = None,
    reset: bool = True,
    generator: torch.Generator | None = None,
) -> TrainabilityReport:
    """Fit a copy of a network, and a freshly initialised one, to random targets.

    How low the loss gets in a fixed number of updates is the definition of plasticity in Lyle et
    al. 2023, *Understanding plasticity in neural networks*; everything else (dormant units, rank,
    norms) is a sign of it. Both networks get the same targets, the same random numbers and an Adam
    of their own without any state. The model, its gradients and all random states stay as they are.

    The copies run in the modes (training or evaluation) of the model's modules. Memory: the model
    four times over.

    Args:
        model: any module; wrappers of `torch.compile` and data parallelism are looked through.
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        updates: how many updates both get, at least 1.
        learning_rate: of Adam (0.9, 0.999).
        targets: `regression` to independent N(0, 1) numbers in the shape of every output, by mean
            squared error; `labels` to uniformly random classes on the last axis of the first
            output, by cross entropy.
        centred: regression targets lie around each network's own mean prediction. Without it a
            value network that predicts 100 is found untrainable for its offset alone.
        recorded: initial distributions by parameter, for what `reset_parameters` does not
            initialise; see `functional.fresh.fresh_copy`.
        reset: whether the fresh network is initialised by `reset_parameters` at all.
        generator: source of the random numbers; a CPU generator. None takes seed 0.

    Raises:
        TypeError: when the inputs are of another kind.
        ValueError: when the model has no floating-point output or no parameter to train, something
            cannot be initialised, or a number is out of range.
    """
    check_fit(updates, learning_rate, targets)
    batch = as_batch(inputs)
    if not isinstance(batch, Batch):
        raise TypeError("give the inputs as a tensor, a tuple of arguments or a dict of them")
    inner = unwrap(model)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    seed = int(torch.randint(2**62, (), generator=source))
    fresh = fresh_copy(inner, recorded, reset=reset, seed=seed)
    if fresh.kept:
        raise ValueError(
            f"nothing initialises {', '.join(fresh.kept[:3])}: the module has no reset_parameters; "
            "give recorded= from record_distributions(model) of the fresh model"
        )
    with seeded(inner, seed):
        with torch.no_grad():
            shapes = _outputs(own_copy(inner), batch)
        if not shapes:
            raise ValueError("the model returns no floating-point tensor to fit targets to")
        wanted = _targets(shapes, targets, source)
    curves: list[Tensor] = []
    for network in (own_copy(inner), fresh.model):
        with seeded(inner, seed):
            curves.append(_fit(network, batch, wanted, updates, learning_rate, centred))
    samples = len(shapes[0]) if shapes[0].dim() else 1
    return TrainabilityReport(curves[0], curves[1], fresh.drawn, samples)


def area(losses: Tensor) -> float:
    """Return the area under a loss curve, per update: the trapezoidal mean of [updates + 1].

    Example:
        >>> area(torch.tensor([4.0, 2.0, 0.0]))
        2.0
    """
    return float(torch.trapezoid(losses.double()) / (len(losses) - 1))


def check_fit(updates: int, learning_rate: float, targets: str) -> None:
    """Refuse what cannot be fitted.

    Raises:
        ValueError: the message says what to give.
    """
    if updates < 1:
        raise ValueError(f"updates is {updates}; give 1 or more")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; give a number above 0")
    if targets not in ("regression", "labels"):
        raise ValueError(f"targets is {targets!r}; give 'regression' or 'labels'")


def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    # A clone: the model may write into its inputs, and gets them at every update.
    return [t for t in tensors_in(batch.clone().run(model)) if t.is_floating_point()]


def _targets(outputs: Sequence[Tensor], kind: Targets, source: torch.Generator) -> list[Tensor]:
    if kind == "labels":
        first = outputs[0]
        labels = torch.randint(first.shape[-1], first.shape[:-1], generator=source)
        return [labels.to(first.device)]
    return [torch.randn(o.shape, generator=source).to(o.device) for o in outputs]


def _loss(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    if not targets[0].is_floating_point():
        scores = outputs[0].float().flatten(0, -2)
        return nn.functional.cross_entropy(scores, targets[0].flatten())
    pairs = zip(outputs, targets, strict=True)
    errors = sum((o.float() - t).square().sum().to(targets[0].device) for o, t in pairs)
    return torch.as_tensor(errors) / sum(target.numel() for target in targets)


def _fit(
    model: nn.Module,
    batch: Batch,
    targets: list[Tensor],
    updates: int,
    learning_rate: float,
    centred: bool,
) -> Tensor:
    """Fit a model in place, and return its losses: float64 [updates + 1]."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("every parameter of the model is frozen: there is nothing to train")
    adam = _Adam(trained, learning_rate)
    losses: list[Tensor] = []
    for _ in range(updates):
        outputs = _outputs(model, batch)
        if centred and not losses and targets[0].is_floating_point():
            pairs = zip(outputs, targets, strict=True)
            targets = [target + output.detach().float().mean() for output, target in pairs]
        loss = _loss(outputs, targets)
        losses.append(loss.detach())
        adam.step(torch.autograd.grad(loss, trained, allow_unused=True))
    with torch.no_grad():
        losses.append(_loss(_outputs(model, batch), targets))
    return torch.stack(losses).to("cpu", torch.float64)


class _Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) without the hooks that a torch optimizer calls.

    Whoever listens to all optimizers' steps is not to hear of these.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
        self.parameters = list(parameters)
        self.rate = learning_rate
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]
        self.updates = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], beta1: float = 0.9, beta2: float = 0.999):
        self.updates += 1
        unbiased1, unbiased2 = 1 - beta1**self.updates, 1 - beta2**self.updates
        for parameter, gradient, first, second in zip(
            self.parameters, gradients, self.first, self.second, strict=True
        ):
            if gradient is None:
                continue
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            spread = (second / unbiased2).sqrt_().add_(1e-8)
            parameter.addcdiv_(first, spread, value=-self.rate / unbiased1)
