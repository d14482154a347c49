"""Pruning plasticity: how well a network recovers from losing connections, at this moment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from dynamo_probe.anatomy.shards import is_sharded
from dynamo_probe.anatomy.twin import unwrap
from dynamo_probe.anatomy.weights import find_weights
from dynamo_probe.functional.contraining import Contraining, stepping_scaler
from dynamo_probe.functional.one_shot import SCOPES, Masks, Scope
from dynamo_probe.functional.plasticity_report import PlasticityReport
from dynamo_probe.functional.plasticity_trial import Growth, Regenerate, Trial, label_of
from dynamo_probe.functional.quiet import quiet
from dynamo_probe.functional.snapshot import Snapshot
from dynamo_probe.functional.unmeasurable import Unmeasurable

MaskGradients = Literal["step", "backward"]


def pruning_plasticity(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    train_step: Callable[[], Any],
    evaluate: Callable[[], Any],
    *,
    rates: Sequence[float],
    updates: int,
    scope: Scope = "global",
    regenerate: Regenerate | None | Sequence[Regenerate | None] = None,
    growth: Growth = "gradient",
    turnover: float = 0.3,
    frozen: bool = True,
    curve_every: int | None = None,
    also: Iterable[Any] = (),
    masks: Mapping[str, Tensor] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    outputs: Collection[str] = (),
    mask_grads: MaskGradients = "step",
    keep_hooks: bool = False,
    generator: torch.Generator | None = None,
) -> PlasticityReport:
    """Prune a network in one shot, train it on for some updates, and put everything back.

    plasticity(t) = acc(CONTRAIN^k(W_t * m_t, a_t)) - acc_PRE(t), with the learning rate frozen at
    its value a_t at the moment of pruning (Liu et al. 2021, *Sparse Training via Boosting Pruning
    Plasticity with Neuroregeneration*, section 3). Positive: the pruned network overtakes the one
    it was cut from. While a network has not converged, that is ordinary progress, too: the control
    is the unpruned network, trained on for the same updates at the same learning rate, which the
    paper does not have.

    Every network begins from the same parameters, buffers, optimizer state and random states, and
    all of them are put back to the bit, also after an exception; so are gradients, modes, learning
    rates and what is in `also`. Watches neither see nor count these updates.

    **The data is the caller's.** An iterator that `train_step` advances is advanced for good, and
    networks then see different batches, unless it can be put back: give it in `also`, or draw
    batches with a `torch.Generator` that is in `also`, or with torch's own random numbers. The same
    is true of a learning-rate scheduler, a `GradScaler`, an average of the weights, a target
    network, a counter: whatever `train_step` changes beside the model belongs into `also`.

    Regeneration brings connections back right after pruning, with weight 0 and fresh state, those
    with the largest |gradient| of all that are not there, the ones just pruned among them. What it
    does depends on the variant, and so does whether it helps:

    - `restore`: as many come as were pruned. Of a dense network that is all of them: it is dense
      again, with the pruned weights reset to 0;
    - `zero-cost`: a further share of each layer's connections, `turnover`, is dropped, and as many
      come: the same sparsity as without regeneration.

    The gradient is that of one call of `train_step` on the pruned network, taken back afterwards,
    as its optimizer gets it: after the caller's clipping, of the batch that the recovery begins
    with.

    Args:
        model: the network; wrappers of `torch.compile` and data parallelism are looked through.
        optimizer: what `train_step` steps; of several, the first one's steps are the updates.
        train_step: makes one update: one step of the (first) optimizer, from a batch of its own.
            Steps that a `GradScaler` in `also` skips do not count, and it is called again.
        evaluate: gives the score, a finite number of which more is better (for a loss, return its
            negative). It is called in whatever mode the modules are in, and must not draw from what
            `train_step` draws from. Random states, buffers and modes are put back after it.
        rates: shares of the prunable weights to prune, each in [0, 1).
        updates: k, how many updates each network is trained on.
        scope: `global` prunes the smallest |w| anywhere, `uniform` the same share of each weight.
        regenerate: None, `restore`, `zero-cost`, or several of these, side by side.
        growth: what is regenerated: by `gradient`, or at `random`.
        turnover: share of each layer's connections that `zero-cost` exchanges, in (0, 1].
        frozen: hold the learning rates, also where `train_step` sets them or steps a scheduler
            (momenta that it cycles along are not held). False trains on the caller's schedule; see
            `PlasticityReport.final_gap`.
        curve_every: period of the scores along the recovery; None takes about ten in all.
        also: what else is put back: modules, gradient scalers, random generators (torch, NumPy,
            Python), tensors, dicts, lists, objects with `state_dict` and `load_state_dict`.
        masks: {name of a parameter: BoolTensor of its shape}, connections of a network that is
            sparse already. Where False, weights are 0 and stay so in every network, the control's
            too; only regeneration may bring them back. They count as pruned: a rate below the
            sparsity that there is prunes nothing.
        include: patterns of names (`fnmatch`) of weights, or of layers, to prune; None takes all.
        exclude: patterns of those to leave whole.
        outputs: names of output layers, left whole unless `include` names them. Which layers those
            are is not known here: with none given, they are pruned as in the paper.
        mask_grads: `step` masks gradients before the optimizer's step, so that clipping sees the
            dense gradient's norm; `backward` as soon as they are made.
        keep_hooks: let the caller's own hooks on the optimizers' steps work on. All are silent
            otherwise, because what they change is not put back.
        generator: source of random growth; a CPU generator. None takes seed 0.

    Returns:
        The report; what could not be measured is in `skipped`, with the reason.

    Raises:
        TypeError: when an argument is of another kind.
        ValueError: when one is out of range, or `train_step` does not step as it should. As
            `Unmeasurable`, when there is no figure: a score before pruning or of the control that
            is not finite, or parameters sharded over ranks (`fully_shard`).

    With several processes (`DistributedDataParallel`), all have to call this at the same update,
    and `evaluate` has to give the same figure on all of them. Time: (networks) x `updates` calls of
    `train_step`. Memory: parameters, gradients and optimizer state once more.

    Example:
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), 0.05)
        >>> def loss():
        ...     x = torch.randn(64, 4)
        ...     return (net(x) - x[:, :1]).square().mean()
        >>> def train_step():
        ...     optimizer.zero_grad()
        ...     loss().backward()
        ...     optimizer.step()
        >>> report = pruning_plasticity(
        ...     net, optimizer, train_step, lambda: -loss().item(), rates=[0.5], updates=20
        ... )
        >>> report.at(0.5).sparsity, report.at(0.5).curve.updates[:3]
        (0.5, (0, 2, 4))
    """
    variants = check_plasticity(
        rates, updates, scope, regenerate, growth, turnover, curve_every, mask_grads
    )
    if not (callable(train_step) and callable(evaluate)):
        raise TypeError("train_step and evaluate have to be functions without arguments")
    inner, optimizers = unwrap(model), _optimizers(optimizer)
    named = _parameters(inner)
    found = find_weights(inner, optimizers, include=include, exclude=exclude, outputs=outputs)
    if not found.found:
        reasons = "; ".join(f"{n}: {why}" for n, why in list(found.left.items())[:6])
        raise ValueError(f"there is no weight to prune ({reasons}); see include= and exclude=")
    scaler = stepping_scaler()
    further = (*also, *([] if scaler is None else [scaler]))
    with quiet(model, optimizers, keep_hooks=keep_hooks):
        trial = Trial(
            inner,
            evaluate,
            Snapshot(inner, optimizers, further),
            Contraining(
                optimizers,
                train_step,
                frozen=frozen,
                scalers=[s for s in further if isinstance(s, torch.amp.GradScaler)],
            ),
            optimizers,
            named,
            {name: weight.parameter for name, weight in found.found.items()},
            _checked(masks or {}, named),
            scope,
            growth,
            turnover,
            mask_grads == "backward",
            torch.Generator().manual_seed(0) if generator is None else generator,
        )
        return trial.report(rates, variants, updates, curve_every, alone=not further)


def check_plasticity(
    rates: Sequence[float],
    updates: int,
    scope: str,
    regenerate: Any,
    growth: str,
    turnover: float,
    curve_every: int | None,
    mask_grads: str,
) -> tuple[Regenerate | None, ...]:
    """Refuse what cannot be measured; see `pruning_plasticity`.

    Returns:
        The regenerations, side by side.

    Raises:
        ValueError: the message says what to give.
    """
    if not len(rates) or any(not 0 <= rate < 1 for rate in rates):
        raise ValueError(f"rates is {rates}; give shares to prune, from 0 to below 1")
    if updates < 1:
        raise ValueError(f"updates is {updates}; give 1 or more")
    if curve_every is not None and curve_every < 1:
        raise ValueError(f"curve_every is {curve_every}; give 1 or more")
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; give 'global' or 'uniform'")
    alone = regenerate is None or isinstance(regenerate, str)
    variants: Any = (regenerate,) if alone else regenerate
    if not variants or any(v not in (None, "restore", "zero-cost") for v in variants):
        raise ValueError(f"regenerate is {regenerate!r}; give None, 'restore' or 'zero-cost'")
    if growth not in ("gradient", "random"):
        raise ValueError(f"growth is {growth!r}; give 'gradient' or 'random'")
    if not 0 < turnover <= 1:
        raise ValueError(f"turnover is {turnover}; give a share of the connections, above 0")
    if mask_grads not in ("step", "backward"):
        raise ValueError(f"mask_grads is {mask_grads!r}; give 'step' or 'backward'")
    labels = [label_of(rate, variant, "gradient") for rate in rates for variant in variants]
    if len(set(labels)) < len(labels):
        raise ValueError(f"rates {rates} and regenerate {regenerate!r} ask for the same twice")
    return tuple(variants)


def _optimizers(given: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    listed: Sequence[Any] = given if isinstance(given, (tuple, list)) else [given]
    # Accelerate's wrapper, for one: the hooks of the optimizer inside are those that are called.
    inside = [getattr(one, "optimizer", None) for one in listed]
    found = [i if isinstance(i, Optimizer) else o for i, o in zip(inside, listed, strict=True)]
    for one in found:
        if not isinstance(one, Optimizer):
            raise TypeError(
                f"the optimizer is a {type(one).__name__}; give a torch.optim.Optimizer"
            )
    if not found:
        raise ValueError("no optimizer was given; give the one that train_step steps")
    return tuple(found)


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in named.items():
        if is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet; run the model once")
        if is_sharded(parameter):
            raise Unmeasurable(f"the parameters are sharded over ranks (DTensor), such as {name}")
    return named


def _checked(masks: Mapping[str, Tensor], named: Mapping[str, nn.Parameter]) -> Masks:
    first = {id(parameter): name for name, parameter in reversed([*named.items()])}
    found: Masks = {}
    for name, mask in masks.items():
        if name not in named:
            raise ValueError(f"masks= has {name!r}, which is no parameter of the model")
        parameter = named[name].detach()
        if mask.shape != parameter.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of {name} is {mask.dtype} of shape {tuple(mask.shape)}; give a "
                f"BoolTensor of shape {tuple(parameter.shape)}"
            )
        mask = mask.to(parameter.device)
        if bool((parameter[~mask] != 0).any()):
            raise ValueError(
                f"{name} is not 0 where its mask is False; put the mask on it first, or leave it "
                "out of masks="
            )
        found[first[id(named[name])]] = mask.clone()
    return found
