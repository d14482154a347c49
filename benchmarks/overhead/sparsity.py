"""What sparse training costs: at every step, at an update of the masks, and as networks grow.

`python -m benchmarks.overhead.sparsity [--rounds N] [--largest N]` prints Markdown tables. Variants
of a table run interleaved, each on its own copy of the model, with one thread, in CPU time.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import dynamo_probe as dp
from benchmarks.overhead.interleaved import ratios, seconds
from benchmarks.overhead.workloads import ConvNet4, Workload, from_model
from tests.models import mlp

NEVER = 10**9
Attach = Callable[[Workload], object]


def mlp_5x512(batch: int = 64, momentum: float = 0.0) -> Workload:
    """Five linear layers of 512 units and an output layer, SGD."""
    torch.manual_seed(0)
    x, y = torch.randn(batch, 512), torch.randint(10, (batch,))
    model = mlp(*[512] * 6, 10)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=momentum)
    return from_model(model, x, lambda out: F.cross_entropy(out, y), optimizer)


def conv_net() -> Workload:
    """Four convolutions, batch 64, SGD."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    model = ConvNet4()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return from_model(model, x, lambda out: F.cross_entropy(out, y), optimizer)


# --- at every step --------------------------------------------------------------------------------


def nothing(work: Workload) -> object:
    return None


def ours(work: Workload) -> object:
    sparse = dp.StaticSparse(0.1, every=NEVER)
    return dp.watch(work.model, work.optimizer, sparse, on_error="raise")


def torch_prune(work: Workload) -> object:
    """torch.nn.utils.prune: a forward pre-hook multiplies `weight_orig` by a mask."""
    torch.manual_seed(1)
    for module in work.model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.shape[0] > 10:
            prune.random_unstructured(module, "weight", amount=0.9)
    # It puts new parameters into the modules, which the optimizer has to be told of.
    group = work.optimizer.param_groups[0]
    group["params"] = list(work.model.parameters())
    return None


def torch_ao_pruning(work: Workload) -> object:
    """torch.ao.pruning: a parametrization multiplies the weight by a mask."""
    from torch.ao.pruning import WeightNormSparsifier

    sparsifier = WeightNormSparsifier(0.9, sparse_block_shape=(1, 1), zeros_per_block=1)
    config = [
        {"tensor_fqn": f"{name}.weight"}
        for name, module in work.model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features > 10
    ]
    sparsifier.prepare(work.model, config)
    sparsifier.step()
    work.optimizer.param_groups[0]["params"] = list(work.model.parameters())
    return sparsifier


def by_hand(work: Workload) -> object:
    """What is usually written: `p.data = p.data * mask` after each step, as in GraNet's code."""
    masks = {
        p: (torch.rand_like(p) < 0.1).float()
        for n, p in work.model.named_parameters()
        if p.dim() > 1 and p.shape[0] > 10
    }

    def after(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        for p, mask in masks.items():
            p.data = p.data * mask

    return work.optimizer.register_step_post_hook(after)


STEP: Mapping[str, Attach] = {
    "bare": nothing,
    "A/A": nothing,
    "dynamo_probe": ours,
    "w = w * mask": by_hand,
    "torch.nn.utils.prune": torch_prune,
    "torch.ao.pruning": torch_ao_pruning,
}


def step_costs(make: Callable[[], Workload], rounds: int) -> dict[str, float]:
    """Return for each variant the time of an update over that of the bare one."""
    actions: dict[str, Callable[[], object]] = {}
    kept = []
    for name, attach in STEP.items():
        work = make()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kept.append(attach(work))
                work.update()
        except Exception as error:
            print(f"{name} does not run here: {type(error).__name__}: {error}")
            continue
        actions[name] = work.update
    found = ratios(seconds(actions, rounds), "bare")
    for one in kept:
        if isinstance(one, dp.Watch):
            one.close()
    return found


# --- an update of the masks -----------------------------------------------------------------------


def layers(weights: int) -> list[nn.Parameter]:
    """Return square weights that come to about so many in all, in up to 12 layers."""
    count = 12 if weights >= 3_000_000 else 4
    side = round(math.sqrt(weights / count))
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(side, side)) for _ in range(count)]


class Bare(nn.Module):
    """Weights and nothing else: what an update of the masks costs does not depend on a forward."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for parameter in parameters:
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = parameter
            self.layers.append(layer)


def mask_update(weights: int, density: float) -> Callable[[], None]:
    """Return an update of GraNet's masks: global pruning, then half of each layer exchanged."""
    model = Bare(layers(weights))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    treatment = dp.GraNet(density / 2, density, end=NEVER, turnover=0.5, every=NEVER, include=["*"])
    watch = dp.watch(model, optimizer, treatment, on_error="raise")
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    network = treatment._network
    assert network is not None and network.masks is not None
    gradients = {n: w.parameter.grad for n, w in network.weights.items()}
    network.gatherer.gradients.update({n: g.clone() for n, g in gradients.items() if g is not None})
    drop = iter(range(10**6))

    def update() -> None:
        flags = {name: network.masks.of(name) for name in network.weights}
        there = sum(int(torch.count_nonzero(flag)) for flag in flags.values())
        _, plan = network.plan(there - 1 - next(drop) % 2, 0.5)
        network.carry_out(flags, plan)

    update.watch = watch  # type: ignore[attr-defined]
    return update


def sorted_update(weights: int, density: float) -> Callable[[], None]:
    """Return the same by sorting: all weights once, then each layer twice, as is usual."""
    parameters = [p.detach() for p in layers(weights)]
    masks = [(torch.rand_like(p) < density).float() for p in parameters]
    gradients = [torch.randn_like(p) for p in parameters]

    def update() -> None:
        pairs = zip(parameters, masks, strict=True)
        everything = torch.cat([(p * mask).abs().flatten() for p, mask in pairs])
        threshold = everything.sort(descending=True).values[int(density * len(everything))]
        for index, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            mask = ((p * masks[index]).abs() > threshold).float()
            count = int(mask.sum())
            order = (p * mask).abs().flatten().sort().indices
            mask.view(-1)[order[: p.numel() - count + count // 2]] = 0
            order = (g * (1 - mask)).abs().flatten().sort(descending=True).indices
            mask.view(-1)[order[: count // 2]] = 1
            masks[index] = mask

    return update


def sorts_alone(weights: int) -> Callable[[], None]:
    """Return one full sort of each layer."""
    parameters: list[Tensor] = [p.detach() for p in layers(weights)]
    return lambda: [p.flatten().sort() for p in parameters] and None


def timed(action: Callable[[], object], rounds: int) -> float:
    """Return the median CPU seconds."""
    action()
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        action()
        found.append(time.process_time() - begin)
    return statistics.median(found)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--largest", type=int, default=100_000_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"{datetime.date.today()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n")
    print("| step-time ratio | " + " | ".join(STEP) + " |")
    print("|---" * (len(STEP) + 1) + "|")
    for name, make in (
        ("MLP 5x512, SGD, batch 64", mlp_5x512),
        ("MLP 5x512, SGD momentum, batch 64", lambda: mlp_5x512(momentum=0.9)),
        ("MLP 5x512, SGD, batch 8", lambda: mlp_5x512(8)),
        ("CNN 4 conv, SGD, batch 64", conv_net),
    ):
        costs = step_costs(make, given.rounds)
        row = [f"{costs[v]:.3f}" if v in costs else "-" for v in STEP]
        print(f"| {name} | {' | '.join(row)} |", flush=True)
    print("\n| mask update of 3.16 M weights | density 0.5 | density 0.1 |\n|---|---|---|")
    found = {}
    for density in (0.5, 0.1):
        actions = {
            "GraNet, dynamo_probe": mask_update(3_160_000, density),
            "the same by sorting": sorted_update(3_160_000, density),
            "one full sort of each layer": sorts_alone(3_160_000),
        }
        times = seconds(actions, max(5, given.rounds // 4))
        found[density] = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    for name in found[0.5]:
        print(f"| {name} | {found[0.5][name]:.1f} ms | {found[0.1][name]:.1f} ms |")
    print("\n| weights | mask update, ms | ns a weight |\n|---|---|---|")
    size = 100_000
    while size <= given.largest:
        took = timed(mask_update(size, 0.2), 3 if size >= 10_000_000 else 9)
        print(f"| {size:.0e} | {1e3 * took:.1f} | {1e9 * took / size:.1f} |", flush=True)
        size *= 10


if __name__ == "__main__":
    main()
