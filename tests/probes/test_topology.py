"""The topology probe beside a treatment whose masks are planned by hand, and without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

import dynamo_probe as dp
from dynamo_probe.anatomy.weights import find_weights
from dynamo_probe.connections import Change, Connections
from dynamo_probe.functional import dormancy_scores, overlap_coefficient, sparsity_report
from dynamo_probe.functional.connectivity import overparameterisation, survival, turnover
from tests.distributed import RANKS, on_two_ranks
from tests.models import GPT, ConvNet, mlp, plant_dead
from tests.training import everything, identical, seeded, train

Plan = Callable[[int], Mapping[str, Tensor]]
"""Takes an update, and returns the masks from then on."""


class Planned(dp.Treatment):
    """Keeps the masks of a plan, and does no more than a sparse treatment has to."""

    name = "planned"

    def __init__(self, plan: Plan, every: int, *, holds: bool = True, target: Any = None) -> None:
        super().__init__(every)
        self.plan, self.holds, self.target = plan, holds, target
        self.masks: dict[str, Tensor] = {}
        self.connections = Connections(self.name)

    def attach(self, site: dp.Site) -> None:
        self.site = site
        site.publish(self.connections)
        site.constrain(self, self.before, self.after, lambda: None)

    def start(self, site: dp.Site) -> None:
        if not self.masks:
            self.put(site.step)

    def put(self, update: int) -> None:
        self.masks = {name: mask.clone() for name, mask in self.plan(update).items()}
        found = find_weights(self.site.model).found
        self.connections.weights = {name: found[name] for name in self.masks}
        self.connections.mask_of = self.masks.__getitem__
        self.connections.target = None if self.target is None else self.target(update)
        self.after(self.site.optimizers[0], False)

    @torch.no_grad()
    def before(self, optimizer: Optimizer, closure: bool) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, mask in self.masks.items() if self.holds else ():
            parameter = self.connections.weights[name].parameter
            if parameter.grad is not None and id(parameter) in held:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def after(self, optimizer: Optimizer, closure: bool) -> None:
        for name, mask in self.masks.items() if self.holds else ():
            self.connections.weights[name].parameter.mul_(mask)

    def fire(self, site: dp.Site) -> None:
        before = dict(self.masks)
        self.put(site.step)
        change = Change(site.step, before, dict(self.masks))
        for listener in self.connections.listeners:
            listener(change)

    def state_dict(self) -> dict[str, Any]:
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = {name: mask.clone() for name, mask in state["masks"].items()}
        found = find_weights(self.site.model).found
        self.connections.weights = {name: found[name] for name in self.masks}
        self.connections.mask_of = self.masks.__getitem__


def drawn(shapes: Mapping[str, Sequence[int]], density: float = 0.3, seed: int = 0) -> Plan:
    def plan(update: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * seed + update)
        return {n: torch.rand(*s, generator=generator) < density for n, s in shapes.items()}

    return plan


SHAPES = {"0.weight": (8, 4), "2.weight": (6, 8)}


def small(seed: int = 0) -> tuple[nn.Sequential, torch.optim.Adam]:
    torch.manual_seed(seed)
    net = mlp(4, 8, 6, 1)
    return net, torch.optim.Adam(net.parameters(), 1e-2)


def loss(model: nn.Module) -> Tensor:
    return model(torch.randn(16, 4)).square().mean()


def readings(watch: dp.Watch) -> dict[str, tuple[list[int], list[Any], list[Any]]]:
    found = {}
    for tag in watch.history.tags():
        steps, values = watch.history.series(tag)
        found[tag] = steps.tolist(), [v.tolist() for v in values], [watch.history.samples(tag)]
    return found


# --- masks and how they change --------------------------------------------------------------------


@settings(max_examples=25)
@given(
    every=st.integers(1, 4),
    updates_of_masks=st.integers(1, 4),
    density=st.sampled_from((0.05, 0.3, 0.8)),
    seed=st.integers(0, 99),
)
def test_changes_are_counted_at_every_update_of_the_masks(
    every: int, updates_of_masks: int, density: float, seed: int
) -> None:
    plan = drawn(SHAPES, density, seed)
    net, optimizer = small()
    probe = dp.Topology(every=every, tau=None)
    with dp.watch(net, optimizer, [probe, Planned(plan, updates_of_masks)], on_error="raise") as w:
        train(net, optimizer, loss, 9)
    # The same by sets: at each update the probe reads, and then the masks change.
    masks, ever, regrown = plan(0), plan(0), {n: torch.zeros(s).bool() for n, s in SHAPES.items()}
    fresh: dict[str, Tensor] | None = None
    dropped = grown = lived = born = 0
    expected: dict[str, dict[int, float]] = {}
    for update in range(1, 10):
        if update == 1 or update % every == 0:
            active = sum(int(mask.sum()) for mask in masks.values())
            figures = {"density": active / 80, "dropped": dropped, "grown": grown}
            figures["overparameterisation"] = overparameterisation(ever)
            if active:
                figures["turnover"] = grown / active
            if born:
                figures["survival"] = lived / born
            if any(mask.any() for mask in regrown.values()):
                figures["regrown_alive"] = survival(regrown, masks)
            for name, value in figures.items():
                expected.setdefault(f"topology/{name}", {})[update] = value
            dropped = grown = lived = born = 0
        if update % updates_of_masks == 0:
            after = plan(update)
            change = turnover(masks, after)
            dropped, grown = dropped + change.dropped, grown + change.grown
            if fresh is not None:
                born += sum(int(mask.sum()) for mask in fresh.values())
                lived += sum(int((fresh[n] & after[n]).sum()) for n in after)
            fresh = {name: after[name] & ~masks[name] for name in after}
            regrown = {name: regrown[name] | fresh[name] for name in after}
            ever = {name: ever[name] | after[name] for name in after}
            masks = after
    for tag in (
        *("density", "dropped", "grown", "turnover"),
        *("survival", "regrown_alive", "overparameterisation"),
    ):
        tag = f"topology/{tag}"
        steps, values = w.history.series(tag) if tag in w.history.tags() else ([], [])
        assert dict(zip(map(int, steps), map(float, values), strict=True)) == expected.get(tag, {})


def test_first_masks_that_are_made_before_the_first_update_dropped_nothing() -> None:
    class Announced(Planned):
        def start(self, site: dp.Site) -> None:
            self.put(0)
            whole = {name: torch.ones_like(mask) for name, mask in self.masks.items()}
            for listener in self.connections.listeners:
                listener(Change(0, whole, dict(self.masks)))

    plan = drawn(SHAPES)
    net, optimizer = small()
    instruments = [dp.Topology(every=1), Announced(plan, every=5)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        train(net, optimizer, loss, 1)
    latest = watch.history.latest
    assert latest("topology/dropped") == latest("topology/grown") == 0
    assert latest("topology/overparameterisation") == overparameterisation(plan(0))
    assert latest("topology/overparameterisation") == latest("topology/density") < 0.5


def test_weights_that_a_change_leaves_out_have_survived() -> None:
    first, second = (torch.tensor(rows).bool() for rows in ([[1, 0, 0]], [[1, 1, 1]]))
    net = mlp(3, 1, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    class Quiet(Planned):
        def fire(self, site: dp.Site) -> None:
            if site.step == 1:
                return super().fire(site)
            for listener in self.connections.listeners:
                listener(Change(site.step, {}, {}))

    plan = lambda update: {"0.weight": second if update else first}  # noqa: E731
    with dp.watch(
        net, optimizer, [dp.Topology(every=1), Quiet(plan, 1)], on_error="raise"
    ) as watch:
        train(net, optimizer, lambda m: m(torch.randn(4, 3)).square().mean(), 4)
    assert watch.history.series("topology/grown")[1].tolist() == [0, 2, 0, 0]
    # Of the two that were grown at update 1, both are there after the next update of the masks;
    # after that one there are none to wait for.
    steps, values = watch.history.series("topology/survival")
    assert (steps.tolist(), values.tolist()) == ([3], [1.0])


def test_targets_of_two_treatments_are_weighted_by_size() -> None:
    net, optimizer = small()
    one = Planned(drawn({"0.weight": (8, 4)}), 2, target=lambda update: 0.5)
    two = Planned(drawn({"2.weight": (6, 8)}), 3, target=lambda update: 0.1 * (update + 1))
    two.name = "two"
    two.connections.owner = "two"
    with dp.watch(net, optimizer, [dp.Topology(every=1), one, two], on_error="raise") as watch:
        train(net, optimizer, loss, 4)
    late = (32 * 0.5 + 48 * 0.4) / 80
    expected = [(32 * 0.5 + 48 * 0.1) / 80] * 3 + [late]
    assert watch.history.series("topology/target")[1].tolist() == pytest.approx(expected)
    assert "reads the masks of planned, two" in str(watch.doctor())


def test_masks_that_are_not_put_on_the_weights_are_told_once() -> None:
    plan = drawn(SHAPES)
    net, optimizer = small()
    instruments = [dp.Topology(every=1), Planned(plan, every=9, holds=False)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        train(net, optimizer, loss, 3)
    absent = sum(int((~mask).sum()) for mask in plan(0).values())
    assert watch.history.latest("topology/outside") == absent
    alerts = [event for event in watch.events if event.kind == "alert"]
    assert [event.subject for event in alerts] == ["topology"]
    assert sum(alerts[0].detail["entries"].values()) == absent


def test_masks_that_hold_leave_nothing_outside() -> None:
    net, optimizer = small()
    instruments = [dp.Topology(every=1), Planned(drawn(SHAPES), every=2)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        train(net, optimizer, loss, 5)
    assert watch.history.series("topology/outside")[1].tolist() == [0] * 5
    assert not [event for event in watch.events if event.kind == "alert"]


# --- structure and savings ------------------------------------------------------------------------


def conv_loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(torch.randn(4, 2, 10, 10)), torch.randint(3, (4,)))


def test_units_flops_and_bytes_are_those_of_the_report_on_the_masks() -> None:
    torch.manual_seed(0)
    net = ConvNet()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    shapes = {n: p.shape for n, p in net.named_parameters() if p.dim() > 1 and "value" not in n}

    def plan(update: int) -> dict[str, Tensor]:
        masks = drawn(shapes, 0.15)(update)
        masks["conv1.weight"][2] = masks["conv2.weight"][:, 1] = masks["fc.weight"][:, 9:18] = False
        return masks

    instruments = [dp.Topology(every=3), Planned(plan, every=2)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        train(net, optimizer, conv_loss, 6)
    report = sparsity_report(net, torch.randn(4, 2, 10, 10), masks=plan(4))
    latest, samples = watch.history.latest, watch.history.samples
    assert latest("topology/density") == report.density
    assert latest("topology/units_without_input") == report.units_without_input / report.units
    assert samples("topology/units_without_input") == report.units
    silent = report.units_without_output
    assert silent and silent >= 2 and report.units_without_input
    assert latest("topology/units_without_output") == silent / report.hidden_units
    assert samples("topology/units_without_output") == report.hidden_units
    assert report.multiply_adds and report.dense_multiply_adds
    assert latest("topology/flops") == report.multiply_adds / report.dense_multiply_adds
    assert latest("topology/bytes") == report.bitmask_bytes / report.bytes
    for name, one in report.weights.items():
        layer = name.removesuffix(".weight")
        assert latest(f"topology/layer/{layer}/density") == one.density
        lacking = one.without_input.double().mean().item()
        assert latest(f"topology/layer/{layer}/units_without_input") == pytest.approx(lacking)
        assert latest(f"topology/fan_in/{layer}").tolist() == one.fan_in.tolist()
        unread, tag = one.without_output, f"topology/layer/{layer}/units_without_output"
        assert (unread is None) == (tag not in watch.history.tags())
        if unread is not None:
            assert latest(tag) == pytest.approx(unread.double().mean().item())


def test_readings_by_layer_can_be_left_out_and_without_tau_no_hook_is_put_on() -> None:
    net, optimizer = small()
    probe = dp.Topology(every=1, layers=False, tau=None, gradients=False)
    with dp.watch(net, optimizer, [probe], on_error="raise") as watch:
        train(net, optimizer, loss, 2)
        assert not any(module._forward_hooks for module in net.modules())
    assert set(watch.history.tags()) == {
        *("topology/density", "topology/bytes", "topology/flops"),
        *("topology/units_without_input", "topology/units_without_output"),
    }


def test_layers_whose_readers_are_not_known_are_left_out_and_named() -> None:
    torch.manual_seed(0)
    net = GPT(depth=1, gated=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with torch.no_grad():
        net.blocks[0].down.weight[:, :16] = 0  # type: ignore[index]
    with dp.watch(net, optimizer, dp.Topology(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(torch.randint(11, (2, 7))).square().mean(), 1)
    assert watch.history.samples("topology/units_without_output") == 64
    tags = [t for t in watch.history.tags() if t.endswith("units_without_output")]
    assert tags == [
        "topology/layer/blocks.0.gate/units_without_output",
        "topology/units_without_output",
    ]


def test_flops_that_cannot_be_counted_are_skipped_with_the_reason() -> None:
    net, optimizer = small()
    nn.utils.parametrizations.weight_norm(net[0])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with dp.watch(net, optimizer, dp.Topology(every=1), on_error="raise") as watch:
        train(net, optimizer, loss, 3)
    assert "topology/flops" not in watch.history.tags()
    skipped = [event for event in watch.events if event.subject == "topology: flops"]
    assert len(skipped) == 1 and "cannot be counted" in skipped[0].detail["reason"]


def test_modules_that_are_called_by_themselves_are_counted_for_one_sample_each() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"actor": mlp(4, 8, 2), "critic": mlp(4, 6, 1)})
    with torch.no_grad():
        net["actor"][0].weight[:4] = 0  # type: ignore[index]
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    with dp.watch(net, optimizer, dp.Topology(every=1), on_error="raise") as watch:
        (net["actor"](torch.randn(7, 4)).sum() + net["critic"](torch.randn(3, 4)).sum()).backward()
        optimizer.step()
    dense = 4 * 8 + 8 * 2 + 4 * 6 + 6
    assert watch.history.latest("topology/flops") == (dense - 16) / dense


# --- gradients ------------------------------------------------------------------------------------


def split(net: nn.Module, masks: Mapping[str, Tensor], value: Tensor) -> tuple[float, float]:
    """Norms of dL/dw on and off some masks, by autograd alone."""
    gradients = torch.autograd.grad(value, [net.get_parameter(name) for name in masks])
    on = off = 0.0
    for gradient, mask in zip(gradients, masks.values(), strict=True):
        for entry, there in zip(gradient.flatten().tolist(), mask.flatten().tolist(), strict=True):
            on, off = on + entry**2 * there, off + entry**2 * (not there)
    return math.sqrt(on), math.sqrt(off)


@pytest.mark.parametrize("order", [1, -1])
def test_gradients_on_and_off_the_masks_are_read_before_the_masks_are_put_on_them(
    order: int,
) -> None:
    net, _ = small()
    net.double()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True)
    plan = drawn(SHAPES)
    instruments = [dp.Topology(every=1), Planned(plan, every=2)][::order]
    watch = dp.watch(net, optimizer, instruments, on_error="raise")
    masks = plan(0)
    for update in range(1, 6):
        x = torch.randn(16, 4, dtype=torch.float64)
        value = net(x).square().mean()  # the first pass makes the masks
        on, off = split(net, masks, net(x).square().mean())
        total = split(
            net, {n: torch.ones(s).bool() for n, s in SHAPES.items()}, net(x).square().mean()
        )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found = (
            watch.history.latest("topology/gradient_on"),
            watch.history.latest("topology/gradient_off"),
        )
        assert found == (pytest.approx(on, rel=1e-12), pytest.approx(off, rel=1e-12))
        assert found[0] ** 2 + found[1] ** 2 == pytest.approx(total[0] ** 2, rel=1e-12)
        assert off > 0
        masks = plan(update) if update % 2 == 0 else masks
    watch.close()
    absent = ~masks["0.weight"]
    assert net[0].weight.grad is not None and not net[0].weight.grad[absent].any()


@pytest.mark.parametrize("fused", [False, True])
def test_the_scale_of_a_gradient_scaler_is_divided_out(fused: bool) -> None:
    net, _ = small()
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.randn(16, 4)
    with torch.no_grad():
        net[0].weight[:, :2] = 0
    masks = {n: net.get_parameter(n) != 0 for n in ("0.weight", "2.weight", "4.weight")}
    expected = split(net, masks, net(x).square().mean())
    with dp.watch(net, optimizer, dp.Topology(every=1), on_error="raise") as watch:
        scaler.scale(net(x).square().mean()).backward()
        scaler.step(optimizer)
    assert watch.history.latest("topology/gradient_on") == pytest.approx(expected[0], rel=1e-5)
    # The zeros are gone after the step, and were there when the gradient was made.
    assert watch.history.latest("topology/gradient_off") == pytest.approx(expected[1], rel=1e-5)
    density = sum(int(mask.sum()) for mask in masks.values()) / 86
    assert watch.history.latest("topology/density") > density


def test_with_a_closure_gradients_are_skipped_with_a_reason() -> None:
    net, optimizer = small()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    instruments = [dp.Topology(every=1), Planned(drawn(SHAPES), every=9)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        for _ in range(3):
            optimizer.step(closure)  # type: ignore[arg-type]
    assert not [tag for tag in watch.history.tags() if "gradient" in tag]
    skipped = [event for event in watch.events if "gradient_on" in event.subject]
    assert len(skipped) == 1 and "closure" in skipped[0].detail["reason"]
    assert "topology/density" in watch.history.tags()


def masking(mask: Tensor) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(mask)

    return hook


def test_gradients_that_were_masked_in_the_backward_pass_are_not_taken_for_zero() -> None:
    net, optimizer = small()
    plan = drawn(SHAPES)
    for name, mask in plan(0).items():
        net.get_parameter(name).register_post_accumulate_grad_hook(masking(mask))
    instruments = [dp.Topology(every=1), Planned(plan, every=9)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        train(net, optimizer, loss, 2)
    assert watch.history.latest("topology/gradient_on") > 0
    assert "topology/gradient_off" not in watch.history.tags()
    assert any("backward pass already" in str(event) for event in watch.events)


def test_a_second_optimizer_is_read_at_its_own_step() -> None:
    net, _ = small()
    first = torch.optim.SGD(net[0].parameters(), 0.1)
    second = torch.optim.SGD([*net[2].parameters(), *net[4].parameters()], 0.1)
    plan, x = drawn(SHAPES), torch.randn(16, 4)
    with dp.watch(
        net, [first, second], [dp.Topology(every=1), Planned(plan, 9)], on_error="raise"
    ) as watch:
        for _ in range(2):
            value = net(x).square().mean()
            expected = split(net, plan(0), net(x).square().mean())
            first.zero_grad(), second.zero_grad()
            value.backward()
            second.step()
            second.zero_grad()  # what is read at the clock's step would be gone
            first.step()
    assert watch.history.latest("topology/gradient_on") == pytest.approx(expected[0], rel=1e-5)
    assert watch.history.latest("topology/gradient_off") == pytest.approx(expected[1], rel=1e-5)


# --- dormancy -------------------------------------------------------------------------------------


def test_units_that_are_cut_off_and_dormant_ones_overlap_as_the_sets_do() -> None:
    net, _ = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    x = torch.randn(32, 4)
    plant_dead(net[0], 1, 2)  # no input, and dead
    with torch.no_grad():
        net[0].weight[5] = 0
        net[0].bias[5] = 3.0  # no input, and alive
        net[2].weight[:, 4] = 0  # no output
        net[4].weight[:, 3] = 0  # no output
        net[2].bias[0] = -99.0  # dead, and connected
    scores = dormancy_scores(net, x)
    dormant = torch.cat([scores["0"], scores["2"]]) <= 0.1
    cut = torch.zeros(14).bool()
    cut[[1, 2, 5, 4, 8 + 3]] = True
    assert 0 < overlap_coefficient(cut, dormant) < 1
    with dp.watch(net, optimizer, dp.Topology(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(x).square().mean(), 1)
    assert watch.history.latest("topology/dead_and_dormant") == overlap_coefficient(cut, dormant)
    assert watch.history.samples("topology/dead_and_dormant") == 32


def test_without_units_that_are_cut_off_there_is_no_overlap_and_no_zero() -> None:
    net, optimizer = small()
    plant = torch.randn(32, 4)
    with torch.no_grad():
        net[2].bias[0] = -99.0
    with dp.watch(net, optimizer, dp.Topology(every=1), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(plant).square().mean(), 2)
    assert "topology/dead_and_dormant" not in watch.history.tags()


# --- without a treatment --------------------------------------------------------------------------


def test_without_a_treatment_exact_zeros_are_read_and_nothing_is_said_of_changes() -> None:
    net, _ = small()
    net[0].requires_grad_(False)
    with torch.no_grad():
        net[0].weight[:, 0] = 0
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    with dp.watch(net, optimizer, dp.Topology(every=1), on_error="raise") as watch:
        train(net, optimizer, loss, 2)
    zeros = 8
    assert watch.history.series("topology/density")[1].tolist() == [(86 - zeros) / 86] * 2
    assert watch.history.latest("topology/layer/0/density") == 0.75
    assert watch.history.latest("topology/flops") == (86 - zeros) / 86
    for figure in ("target", "outside", "dropped", "turnover", "survival", "overparameterisation"):
        assert f"topology/{figure}" not in watch.history.tags()


def test_masks_that_are_not_made_yet_are_skipped_and_read_when_they_are() -> None:
    class Late(Planned):
        def start(self, site: dp.Site) -> None:
            found = find_weights(site.model).found
            self.connections.weights = {name: found[name] for name in SHAPES}

        def fire(self, site: dp.Site) -> None:
            self.put(site.step)

    net, optimizer = small()
    instruments = [dp.Topology(every=1), Late(drawn(SHAPES), every=2)]
    with dp.watch(net, optimizer, instruments, on_error="raise") as watch:
        train(net, optimizer, loss, 4)
    assert watch.history.series("topology/density")[0].tolist() == [3, 4]
    assert [str(e.detail["reason"]) for e in watch.events if e.subject == "topology"] == [
        "the sparse treatment has made no masks yet"
    ]


# --- the laws -------------------------------------------------------------------------------------


def test_a_watched_run_is_bit_identical_and_nothing_is_left() -> None:
    runs = []
    for probes in ([], [dp.Topology(every=2, updates=2)]):
        seeded()
        net = ConvNet()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        shapes = {n: p.shape for n, p in net.named_parameters() if p.dim() > 1}
        treatment = Planned(drawn(shapes), every=5)
        with dp.watch(net, optimizer, [*probes, treatment], on_error="raise") as watch:
            train(net, optimizer, conv_loss, 40)
        if probes:
            assert len(watch.history.series("topology/gradient_off")[0]) == 21
            assert treatment.connections.listeners == []
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        runs.append(everything([net], [optimizer]))
    assert identical(*runs)


@pytest.mark.parametrize("stops", [(3, 8), (4, 7), (5, 3, 3)])
def test_a_resumed_run_reads_what_the_uninterrupted_one_reads(
    stops: tuple[int, ...], tmp_path: Any
) -> None:
    found = []
    for parts in ((11,), stops):
        net, optimizer = small()
        state = None
        for updates in parts:
            instruments = [dp.Topology(every=3, updates=2), Planned(drawn(SHAPES), every=2)]
            watch = dp.watch(net, optimizer, instruments, on_error="raise")
            if state is not None:
                watch.load_state_dict(state)
            train(net, optimizer, loss, updates)
            torch.save(watch.state_dict(), tmp_path / "state")
            state = torch.load(tmp_path / "state", weights_only=True)
            watch.close()
        found.append((readings(watch), [(e.step, e.kind, e.subject) for e in watch.events]))
    assert found[0] == found[1]
    assert {"topology/survival", "topology/gradient_off"} < found[0][0].keys()


def test_masks_take_three_bits_a_weight_in_the_state() -> None:
    net, optimizer = small()
    probe = dp.Topology(every=1)
    with dp.watch(net, optimizer, [probe, Planned(drawn(SHAPES), every=1)], on_error="raise"):
        train(net, optimizer, loss, 3)
    sets = probe.state_dict()["rewiring"]
    for key in ("ever", "fresh", "regrown"):
        assert {name: bits.nbytes for name, bits in sets[key].items()} == {
            "0.weight": 32 // 8,
            "2.weight": 48 // 8,
        }


def test_a_failure_while_listening_ends_the_probe_and_not_the_treatment() -> None:
    class Broken(Planned):
        def fire(self, site: dp.Site) -> None:
            for listener in self.connections.listeners:
                listener(Change(site.step, {}, dict(self.masks)))

    net, optimizer = small()
    treatment = Broken(drawn(SHAPES), every=1)
    with pytest.warns(dp.DynamoProbeWarning, match="topology failed at update 2"):
        with dp.watch(net, optimizer, [dp.Topology(every=1), treatment]) as watch:
            train(net, optimizer, loss, 4)
    assert [e.subject for e in watch.events if e.kind == "disabled"] == ["topology"]


def on_a_rank(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = mlp(4, 15, 6, 1)
    with torch.no_grad():
        net[0].weight[3], net[2].weight[:, 7] = 0, 0
    if rank >= 0:
        fully_shard(net, mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    mine = x if rank < 0 else x.chunk(RANKS)[rank]
    with dp.watch(net, optimizer, dp.Topology(every=2), on_error="raise") as watch:
        train(net, optimizer, lambda m: m(mine).square().mean(), 4)
    return {tag: watch.history.series(tag) for tag in watch.history.tags()}


def test_sharded_parameters_on_two_ranks_read_what_one_rank_reads() -> None:
    expected = on_a_rank(-1)
    for found in on_two_ranks(on_a_rank):
        assert found.keys() == expected.keys()
        for tag, (steps, values) in expected.items():
            assert found[tag][0].tolist() == steps.tolist()
            ours, theirs = (torch.tensor(v).double().flatten() for v in (found[tag][1], values))
            assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-4), tag


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tau": -1.0}, "tau is -1.0"), ({"updates": 0}, "updates is 0"), ({"every": 0}, "period")],
)
def test_mistakes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp.Topology(**arguments)
