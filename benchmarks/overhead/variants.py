"""The ways to watch a network whose costs are compared: this package, its peers, and hand work.

Each takes a workload and an interval and returns the update to time; a peer is imported when it is
attached, so that none has to be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dynamo_probe as dp
from benchmarks.overhead.workloads import Workload

ACTIVATIONS = (nn.ReLU, nn.GELU)

Update = Callable[[], object]
Attach = Callable[[Workload, int], Update]


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to watch a network.

    Attributes:
        name: whose it is.
        gives: what it reports.
        per_unit: whether that is a figure for each unit.
        attach: puts it on a workload with an interval, and returns the update to time.
    """

    name: str
    gives: str
    per_unit: bool
    attach: Attach


def bare(w: Workload, every: int) -> Update:
    return w.update


def dynamo_probe(w: Workload, every: int) -> Update:
    dp.watch(w.model, w.optimizer, dp.Dormancy(every=every), on_error="raise")
    return w.update


def unit_means(h: Tensor) -> Tensor:
    """Mean |h| of each unit: the last dimension, or the second of an image."""
    axis = 1 if h.dim() == 4 else h.dim() - 1
    return h.abs().mean([d for d in range(h.dim()) if d != axis])


def hand_written_hook(w: Workload, every: int) -> Update:
    """The least that a user would write; it counts no micro-batches and keeps one reading."""
    held: dict[str, Tensor] = {}
    on = [False]

    def hook(name: str) -> Callable[..., None]:
        def read(module: nn.Module, args: object, output: Tensor) -> None:
            if on[0]:
                held[name] = unit_means(output.detach())

        return read

    for name, module in w.model.named_modules():
        if isinstance(module, ACTIVATIONS):
            module.register_forward_hook(hook(name))

    def update(step: int) -> None:
        on[0] = step % every == 0
        w.update()
        if on[0]:
            [one.numpy() for one in held.values()]

    return _counted(update)


def torch_module_monitor(w: Workload, every: int) -> Update:
    from torch_module_monitor import ModuleMonitor

    watched = [n for n, m in w.model.named_modules() if isinstance(m, ACTIVATIONS)]
    others = "|".join(watched).replace(".", r"\.")
    monitor = ModuleMonitor(
        monitor_step_fn=lambda step: step % every == 0,
        excluded_modules_regex=rf"^(?!({others})$).*$",
        format_module_name_fn=str,
    )
    monitor.set_module(w.model)
    monitor.add_activation_metric(
        "mean magnitude", unit_means, metric_aggregation_fn=lambda values: values
    )

    def update(step: int) -> None:
        monitor.begin_step(step)
        w.update()
        monitor.end_step()
        if monitor.is_step_monitored(step):
            found = monitor.get_step_metrics()
            if len(found) != len(watched):
                raise RuntimeError(f"{len(found)} of {len(watched)} layers were seen")

    return _counted(update)


def monitorch(w: Workload, every: int) -> Update:
    from monitorch.inspector import PyTorchInspector
    from monitorch.lens import OutputActivation
    from monitorch.visualizer import DummyVisualizer

    inspector = PyTorchInspector(
        [OutputActivation(channel_last=w.inputs.dtype == torch.long, dropout=False)],
        module=w.model,
        visualizer=DummyVisualizer(),
        is_active_fn=every,
    )

    def update(step: int) -> None:
        w.update()
        inspector.tick_epoch()

    return _counted(update)


def traintools(w: Workload, every: int) -> Update:
    from traintools.plasticity import PlasticityProbe

    probe = PlasticityProbe(w.model)

    def update(step: int) -> None:
        if step % every:
            with probe.paused():
                w.update()
            return
        w.update()
        if not probe.measure(step).layers:
            raise RuntimeError("no layer was seen")
        probe.reset_buffers()

    return _counted(update)


def gradient_histograms(w: Workload, every: int) -> Update:
    """The kind of pass that wandb.watch(log="gradients") makes, written here; nothing is sent."""

    def update(step: int) -> None:
        w.optimizer.zero_grad()
        w.forward_backward()
        if step % every == 0:
            for parameter in w.model.parameters():
                gradient = parameter.grad
                if gradient is not None:
                    flat = gradient.detach().flatten()
                    flat = flat[torch.isfinite(flat)]
                    low, high = flat.min().item(), flat.max().item()
                    torch.histc(flat, 64, low, high).tolist()
        w.optimizer.step()

    return _counted(update)


def backpack(w: Workload, every: int) -> Update:
    import backpack as package
    from backpack.extensions import BatchL2Grad

    model, loss, targets = _extended(w)

    def update(step: int) -> None:
        w.optimizer.zero_grad()
        if step % every:
            with package.disable():
                loss(model(w.inputs), targets).backward()
        else:
            with package.backpack(BatchL2Grad()):
                loss(model(w.inputs), targets).backward()
            [parameter.batch_l2.tolist() for parameter in model.parameters()]
        w.optimizer.step()

    return _counted(update)


def cockpit(w: Workload, every: int) -> Update:
    from backpack import extend
    from cockpit import Cockpit
    from cockpit.utils import schedules
    from cockpit.utils.configuration import configuration

    model, loss, targets = _extended(w)
    each = extend(nn.CrossEntropyLoss(reduction="none"))
    quantities = configuration("economy", track_schedule=schedules.linear(every))
    probe = Cockpit(model.parameters(), quantities=quantities)

    def update(step: int) -> None:
        w.optimizer.zero_grad()
        outputs = model(w.inputs)
        mean = loss(outputs, targets)
        info = {
            "batch_size": len(targets),
            "individual_losses": each(outputs, targets),
            "loss": mean,
            "optimizer": w.optimizer,
        }
        with probe(step - 1, info=info):  # it counts from 0
            mean.backward(create_graph=probe.create_graph(step - 1))
        w.optimizer.step()

    return _counted(update)


def _extended(w: Workload) -> tuple[nn.Module, nn.Module, Tensor]:
    from backpack import extend

    if not isinstance(w.model, nn.Sequential):
        raise RuntimeError("its extensions follow chains of modules only (here: nn.Sequential)")
    targets = torch.randint(10, (len(w.inputs),))
    return extend(w.model), extend(nn.CrossEntropyLoss()), targets


def _counted(update: Callable[[int], None]) -> Update:
    """Hand an update its number, from 1."""
    done = [0]

    def counted() -> None:
        done[0] += 1
        update(done[0])

    return counted


MAGNITUDES = "mean activation magnitude of each unit"
OURS = Variant("dynamo_probe", f"{MAGNITUDES}, normalised; shares at three tau", True, dynamo_probe)
PEERS = (
    Variant("hand-written hook", f"{MAGNITUDES} (the last forward pass)", True, hand_written_hook),
    Variant("torch-module-monitor", f"{MAGNITUDES} (a metric given to it)", True,
            torch_module_monitor),
    Variant("monitorch", "share of non-zero outputs and of dead units, by layer", False, monitorch),
    Variant("traintools", "share of dead units and effective rank, by layer", False, traintools),
    Variant("gradient histograms", "64 bins of each gradient, like wandb.watch", False,
            gradient_histograms),
    Variant("BackPACK", "norm of each sample's gradient, by parameter", False, backpack),
    Variant("Cockpit (economy)", "norms, tests and a histogram of the gradients", False, cockpit),
)  # fmt: skip
