"""Recycling is compared with a plain loop over units and weights, written from the algorithm."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynamo_probe.anatomy.wiring import wire
from dynamo_probe.functional import recycling
from dynamo_probe.functional.initial import Initial, record_initial
from dynamo_probe.functional.moments import States
from dynamo_probe.functional.recycling import RecycleReport, recycle, recycle_units

OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, 1e-3),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, 1e-3, fused=True),
    "Adam, foreach": lambda p: torch.optim.Adam(p, 1e-3, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-3),
    "SGD": lambda p: torch.optim.SGD(p, 1e-2),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-3, centered=True, momentum=0.9),
    "Adamax": lambda p: torch.optim.Adamax(p, 1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, 1e-3),
    "RAdam": lambda p: torch.optim.RAdam(p, 1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
}
MOMENTS = ["zero", "live-mean", "zero+step", "keep"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """Convolutions, a flatten, norms and two heads: every kind of entry."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 4, 3, bias=False)
        self.fc, self.ln = nn.Linear(4 * 4, 6), nn.LayerNorm(6)
        self.value, self.policy = nn.Linear(6, 1), nn.Linear(6, 3)

    def forward(self, x):
        h = F.relu(self.bn(self.conv1(x)))
        h = F.relu(self.conv2(h)).flatten(1)
        h = F.relu(self.ln(self.fc(h)))
        return torch.cat([self.value(h), self.policy(h)], 1)


INPUT = torch.randn(8, 2, 6, 6, generator=generator(1))
MASKS = {
    "conv1": torch.tensor([1, 0, 0, 1, 0]).bool(),
    "conv2": torch.tensor([0, 1, 0, 0]).bool(),
    "fc": torch.tensor([0, 0, 1, 0, 1, 0]).bool(),
}
# Written by hand from the architecture: what belongs to unit u of each layer, {name: where}.
INCOMING = {
    "conv1": {"conv1.weight": lambda u: (u,)},
    "conv2": {"conv2.weight": lambda u: (u,)},
    "fc": {"fc.weight": lambda u: (u,)},
}
CONSTANT = {
    "conv1": {
        "conv1.bias": 0.0, "bn.weight": 1.0, "bn.bias": 0.0, "bn.running_mean": 0.0,
        "bn.running_var": 1.0,
    },
    "conv2": {},
    "fc": {"fc.bias": 0.0, "ln.weight": 1.0, "ln.bias": 0.0},
}  # fmt: skip
OUTGOING = {
    "conv1": {"conv2.weight": lambda u: (slice(None), u)},
    "conv2": {"fc.weight": lambda u: (slice(None), slice(4 * u, 4 * u + 4))},
    "fc": {
        "value.weight": lambda u: (slice(None), u),
        "policy.weight": lambda u: (slice(None), u),
    },
}


def trained(optimizer_name="Adam", steps=4, build=Net, x=INPUT):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    optimizer = OPTIMIZERS[optimizer_name](list(model.parameters()))
    step(model, optimizer, steps, x)
    return model, optimizer


def step(model, optimizer, steps=1, x=INPUT):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


def snapshot(model, *optimizers):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                label = f"{number} {names[parameter]} {key}"
                tensors[label] = torch.as_tensor(value).clone() if value is not None else None
    return tensors


def assert_same(before, after, but=()):
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name not in but:
            assert value is after[name] or torch.equal(value, after[name]), name


def touched(masks):
    """Booleans of the coordinates that a recycling may set, from the tables above."""
    model = Net()
    marks = {name: torch.zeros_like(v, dtype=torch.bool) for name, v in model.state_dict().items()}
    for layer, mask in masks.items():
        for unit in mask.nonzero().flatten().tolist():
            for name, where in (INCOMING[layer] | OUTGOING[layer]).items():
                marks[name][where(unit)] = True
            for name in CONSTANT[layer]:
                marks[name][unit] = True
    return marks


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_but_the_entries_of_recycled_units_changes(name, moments):
    model, optimizer = trained(name)
    before = snapshot(model, optimizer)
    recycle(model, optimizer, MASKS, inputs=INPUT, generator=generator(), moments=moments)
    after = snapshot(model, optimizer)
    marks = touched(MASKS)
    changed = []
    for label, value in before.items():
        if value is None:
            continue
        parameter = label.split()[1] if " " in label else label
        if label.endswith((" step", " mu_product")):
            expected = 1.0 if label.endswith("mu_product") else 0.0
            hit = moments == "zero+step" and bool(marks[parameter].any())
            assert torch.equal(after[label], torch.full_like(value, expected) if hit else value)
            continue
        outside = ~marks.get(parameter, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(after[label][outside], value[outside]), label
        if not torch.equal(after[label], value):
            changed.append(label)
    state = [label for label in changed if " " in label]
    assert bool(state) == (moments != "keep" and name != "SGD")
    assert {label for label in changed if " " not in label} >= {
        "conv1.weight", "conv1.bias", "bn.weight", "bn.running_mean", "bn.running_var",
        "conv2.weight", "fc.weight", "fc.bias", "ln.weight", "value.weight", "policy.weight",
    }  # fmt: skip
    # A further step works and reaches the outgoing weights of fresh units.
    step(model, optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert model.value.weight[:, MASKS["fc"]].count_nonzero() > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeroed_state_is_zero_at_every_recycled_coordinate(name):
    model, optimizer = trained(name)
    recycle(model, optimizer, MASKS, inputs=INPUT, moments="zero", generator=generator())
    marks = touched(MASKS)
    for parameter_name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                assert value[marks[parameter_name]].count_nonzero() == 0, (parameter_name, key)


def test_the_values_are_those_of_the_algorithm():
    model, optimizer = trained()
    recycle(model, optimizer, MASKS, inputs=INPUT, generator=generator())
    after = model.state_dict()
    for layer, mask in MASKS.items():
        for unit in mask.nonzero().flatten().tolist():
            for name, value in CONSTANT[layer].items():
                assert after[name][unit] == value, name
            for name, where in OUTGOING[layer].items():
                assert after[name][where(unit)].count_nonzero() == 0, name
    # Fresh rows, all within 1 / sqrt(fan_in); the rows of conv1 are read by nobody else.
    for layer, fan_in in (("conv1", 18), ("conv2", 45), ("fc", 16)):
        rows = after[f"{layer}.weight"][MASKS[layer]]
        assert 0.5 / math.sqrt(fan_in) < rows.abs().max() <= 1 / math.sqrt(fan_in)
    assert after["conv1.weight"][MASKS["conv1"]].count_nonzero() == 2 * 18


def test_a_weight_between_two_recycled_units_ends_at_zero_whatever_the_order():
    for layers in (["conv1", "conv2", "fc"], ["fc", "conv2", "conv1"]):
        model, optimizer = trained()
        masks = {layer: MASKS[layer] for layer in layers}
        recycle(model, optimizer, masks, inputs=INPUT, generator=generator())
        assert model.conv2.weight[1][MASKS["conv1"]].count_nonzero() == 0
        assert model.conv2.weight[1][~MASKS["conv1"]].count_nonzero() == 3 * 9
        assert model.fc.weight[MASKS["fc"]][:, 4:8].count_nonzero() == 0
        assert model.fc.weight[MASKS["fc"]][:, :4].count_nonzero() == 8


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
        )


def test_recycling_dead_units_does_not_change_the_output_by_a_bit():
    x = torch.randn(32, 4, generator=generator(1))
    model, optimizer = trained(build=Mlp, x=x)
    dead = {"0": torch.rand(64, generator=generator(2)) < 0.4}
    dead["2"] = torch.rand(64, generator=generator(3)) < 0.4
    with torch.no_grad():
        for layer, mask in dead.items():
            model.get_submodule(layer).weight[mask] = 0
            model.get_submodule(layer).bias[mask] = -1
        before = model(x)
        assert torch.equal(model[1](model[0](x)).amax(0) == 0, dead["0"])
    report = recycle(model, optimizer, dead, inputs=x, generator=generator())
    assert report.units == {n: tuple(m.nonzero().flatten().tolist()) for n, m in dead.items()}
    with torch.no_grad():
        assert torch.equal(model(x), before)
        # And they are not dead any more.
        assert (model[1](model[0](x)).amax(0)[dead["0"]] > 0).float().mean() > 0.9


def test_the_output_moves_by_what_the_units_gave_and_no_more():
    x = torch.randn(32, 4, generator=generator(1))
    model, optimizer = trained(build=Mlp, x=x)
    mask = torch.zeros(64, dtype=torch.bool)
    mask[[3, 17]] = True
    with torch.no_grad():
        h = model[3](model[2](model[1](model[0](x))))
        given = h[:, mask] @ model[4].weight[:, mask].T
        before = model(x)
        recycle(model, optimizer, {"2": mask}, inputs=x, generator=generator())
        torch.testing.assert_close(before - given, model(x), rtol=1e-5, atol=1e-6)


def test_gated_units_are_recycled_on_both_sides():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.down(F.silu(self.gate(x)) * self.up(x))

    x = torch.randn(5, 4, generator=generator(1))
    model, optimizer = trained(build=Gated, x=x)
    before = snapshot(model, optimizer)
    mask = torch.tensor([0, 1, 0, 0, 0, 0]).bool()
    recycle(model, optimizer, {"up": mask}, inputs=x, generator=generator())
    for layer in (model.gate, model.up):
        assert layer.bias[1] == 0 and layer.bias[~mask].count_nonzero() == 5
    assert model.down.weight[:, 1].count_nonzero() == 0
    for name in ("gate.weight", "up.weight"):
        rows = (model.state_dict()[name] != before[name]).any(1)
        assert torch.equal(rows, mask)


def test_own_xavier_and_given_distributions_have_their_bounds():
    x = torch.randn(5, 400, generator=generator(1))
    mask = torch.ones(100, dtype=torch.bool)
    for init, bound in (
        ("own", 1 / math.sqrt(400)),
        ("xavier", math.sqrt(6 / 500)),
        ({"0.weight": Initial("uniform", 0.7)}, 0.7),
        ({"0": Initial("uniform", 0.3)}, 0.3),
    ):
        model = nn.Sequential(nn.Linear(400, 100), nn.ReLU(), nn.Linear(100, 2))
        recycle(model, None, {"0": mask}, inputs=x, init=init, generator=generator())
        largest = float(model[0].weight.detach().abs().max())
        assert bound * 0.999 < largest <= bound
        # The bound of a port that forgets a = sqrt(5) is 2.45 times the layer's own.
        assert record_initial(model[0].weight).family == "uniform"


def test_the_generator_decides_and_the_global_one_is_left_alone():
    model, optimizer = trained()
    twin = copy.deepcopy(model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    recycle(model, optimizer, MASKS, inputs=INPUT, generator=generator(7))
    assert torch.equal(torch.get_rng_state(), state)
    recycle(twin, None, MASKS, inputs=INPUT, generator=generator(7))
    assert_same(snapshot(model), snapshot(twin))
    recycle(twin, None, MASKS, inputs=INPUT)
    assert not torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(twin.fc.weight, model.fc.weight)


@pytest.mark.parametrize("inputs", [(INPUT,), {"x": INPUT}], ids=["tuple", "mapping"])
def test_inputs_may_be_positional_or_named(inputs):
    model, optimizer = trained()
    report = recycle(model, optimizer, MASKS, inputs=inputs, generator=generator())
    assert report.units["fc"] == (2, 4)


def test_the_report_counts_and_names():
    model, optimizer = trained()
    parameter = model.fc.weight
    optimizer.state[parameter]["rows"] = torch.ones(6)
    masks = {**MASKS, "value": torch.zeros(1, dtype=torch.bool)}
    masks["conv2"] = torch.zeros(4, dtype=torch.bool)
    report = recycle(model, optimizer, masks, inputs=INPUT, generator=generator())
    assert isinstance(report, RecycleReport)
    assert report.units == {"conv1": (0, 3), "conv2": (), "fc": (2, 4)}
    assert "model's output" in report.skipped["value"]
    # conv1: two rows of 18, bias, four norm values, columns of conv2; fc: rows, bias, norm, heads.
    assert report.entries == {
        "conv1": 2 * (18 + 1 + 4 + 4 * 9), "conv2": 0, "fc": 2 * (16 + 1 + 2 + 4)
    }  # fmt: skip
    assert report.left_alone == ("fc.weight: rows",)


def test_no_units_change_nothing_and_make_no_state():
    model, _ = trained()
    optimizer = torch.optim.Adam(model.parameters())
    before = snapshot(model, optimizer)
    none = {layer: torch.zeros_like(mask) for layer, mask in MASKS.items()}
    report = recycle(model, optimizer, none, inputs=INPUT)
    assert report.units == {"conv1": (), "conv2": (), "fc": ()}
    assert_same(before, snapshot(model, optimizer))
    recycle(model, optimizer, MASKS, inputs=INPUT)
    assert len(optimizer.state) == 0


def test_a_mirror_gets_the_same_values_at_the_same_entries():
    model, optimizer = trained()
    target, _ = trained(steps=2)
    before = snapshot(target)
    recycle(model, optimizer, MASKS, inputs=INPUT, generator=generator(), mirror=[target])
    marks, source, after = touched(MASKS), model.state_dict(), target.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], torch.where(marks[name], source[name], value)), name


def test_several_optimizers_share_a_model():
    model, _ = trained()
    heads = [*model.value.parameters(), *model.policy.parameters()]
    body = [p for n, p in model.named_parameters() if not n.startswith(("value", "policy"))]
    first, second = torch.optim.Adam(body), torch.optim.SGD(heads, 1e-2, momentum=0.9)
    (model(INPUT) - 1).square().mean().backward()
    first.step()
    second.step()
    recycle(model, [first, second], MASKS, inputs=INPUT, generator=generator())
    assert second.state[model.value.weight]["momentum_buffer"][:, MASKS["fc"]].count_nonzero() == 0
    assert first.state[model.fc.weight]["exp_avg"][MASKS["fc"]].count_nonzero() == 0
    with pytest.raises(ValueError, match=r"no optimizer .* holds `value.weight`"):
        recycle(model, first, MASKS, inputs=INPUT)


def test_recycle_units_does_the_same_with_the_wiring_at_hand():
    model, optimizer = trained()
    twin, twin_optimizer = trained()
    wiring = wire(model, (INPUT,), {}, ["conv1", "conv2", "fc", "value"])
    recycle(model, optimizer, MASKS, wiring=wiring, generator=generator(1))
    shared = generator(1)
    asked = []

    def generator_for(layer):
        asked.append(layer)
        return shared

    wirings = wire(twin, (INPUT,), {}, list(MASKS))
    report = recycle_units(wirings, MASKS, [twin_optimizer], generator_for=generator_for)
    assert asked == ["conv1", "conv2", "fc"] and report.units["conv1"] == (0, 3)
    assert_same(snapshot(model, optimizer), snapshot(twin, twin_optimizer))


MISTAKES = {
    "unknown layer": (
        lambda m: {"masks": {"fc9": torch.ones(6).bool()}}, ValueError,
        "no layer is called fc9; the layers are conv1, conv2, fc, value, policy",
    ),
    "mask of another length": (
        lambda m: {"masks": {"fc": torch.ones(5).bool()}}, ValueError,
        r"mask of `fc` has the shape \(5,\); .* 6 units",
    ),
    "mask of numbers": (
        lambda m: {"masks": {"fc": torch.ones(6)}}, TypeError, "mask of `fc` is torch.float32"
    ),
    "mask that is a list": (lambda m: {"masks": {"fc": [True] * 6}}, TypeError, "is list"),
    "output layer": (
        lambda m: {"masks": {"value": torch.ones(1).bool()}}, ValueError,
        "units of `value` cannot be recycled: its units are the model's output; leave",
    ),
    "inputs of another kind": (lambda m: {"inputs": [INPUT]}, TypeError, "inputs is a list"),
    "no inputs": (lambda m: {"inputs": None}, TypeError, "give an example input"),
    "moments": (lambda m: {"moments": "mean"}, ValueError, "zero, live-mean, zero"),
    "init": (lambda m: {"init": "kaiming"}, ValueError, "give own, xavier"),
    "init that lacks a layer": (
        lambda m: {"init": {"conv1": Initial("uniform", 1.0)}}, ValueError,
        "no initial distribution was given for `conv2.weight`",
    ),
    "optimizer of another kind": (
        lambda m: {"optimizer": [m]}, TypeError, "the optimizer is a Net"
    ),
    "optimizer of another model": (
        lambda m: {"optimizer": torch.optim.Adam(Net().parameters())}, ValueError,
        "no optimizer that was given holds `conv1.weight`",
    ),
    "mirror of another shape": (
        lambda m: {"mirror": [nn.Sequential(nn.Linear(2, 2))]}, ValueError,
        "`conv1.weight` does not exist in the mirror",
    ),
    "one network for mirror": (lambda m: {"mirror": m}, TypeError, r"mirror=\[network\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_says_the_fix_and_changes_nothing(name):
    change, error, words = MISTAKES[name]
    model, optimizer = trained()
    before = snapshot(model, optimizer)
    arguments = {"optimizer": optimizer, "masks": MASKS, "inputs": INPUT} | change(model)
    with pytest.raises(error, match=words):
        recycle(model, **arguments)
    assert_same(before, snapshot(model, optimizer))


@pytest.mark.parametrize("moments", ["zero", "live-mean", "zero+step"])
@pytest.mark.parametrize("after", range(0, 56, 5))
def test_a_failure_on_the_way_leaves_everything_as_it_was(monkeypatch, after, moments):
    model, optimizer = trained()
    target, _ = trained(steps=2)
    before = snapshot(model, optimizer), snapshot(target)
    count = 0

    class Failing(recycling.Ledger):
        def write(self, tensor, dim, index, values):
            nonlocal count
            count += 1
            super().write(tensor, dim, index, values)
            if count > after:
                raise RuntimeError("out of memory")

    monkeypatch.setattr(recycling, "Ledger", Failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        recycle(model, optimizer, MASKS, inputs=INPUT, moments=moments, mirror=[target])
    assert_same(before[0], snapshot(model, optimizer))
    assert_same(before[1], snapshot(target))
    step(model, optimizer)


def test_a_failure_at_the_step_counts_leaves_them_as_they_were(monkeypatch):
    model, optimizer = trained("NAdam")
    before = snapshot(model, optimizer)

    def fail(ledger, states, parameters):
        restart(ledger, states, list(parameters)[:2])
        raise RuntimeError("interrupted")

    restart = recycling.restart
    monkeypatch.setattr(recycling, "restart", fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        recycle(model, optimizer, MASKS, inputs=INPUT, moments="zero+step")
    assert_same(before, snapshot(model, optimizer))


def test_the_live_mean_is_taken_in_the_order_of_the_weights():
    """Incoming first: a weight between two recycled units gets the mean over live columns of a row
    that already holds means over live rows."""
    x = torch.randn(5, 4, generator=generator(1))
    model, optimizer = trained(build=Mlp, x=x)
    first, second = torch.zeros(64).bool(), torch.zeros(64).bool()
    first[[1, 2]], second[[5]] = True, True
    before = optimizer.state[model[2].weight]["exp_avg_sq"].clone()
    masks = {"0": first, "2": second}
    recycle(model, optimizer, masks, inputs=x, moments="live-mean", generator=generator())
    after = optimizer.state[model[2].weight]["exp_avg_sq"]
    row = before[~second].mean(0)
    torch.testing.assert_close(after[5, ~first], row[~first])
    torch.testing.assert_close(after[5, first], row[~first].mean().expand(2))
    torch.testing.assert_close(
        after[~second][:, first], before[~second][:, ~first].mean(1, True).expand(-1, 2)
    )
    assert States([optimizer]).holds(model[2].weight)


def test_half_precision_weights_are_recycled_in_their_own_type():
    model = Net().bfloat16()
    report = recycle(model, None, MASKS, inputs=INPUT.bfloat16(), generator=generator())
    assert report.units["fc"] == (2, 4) and model.fc.weight.dtype == torch.bfloat16
    assert model.value.weight[:, MASKS["fc"]].count_nonzero() == 0


def test_recycling_works_without_gradients_and_keeps_leaves():
    model, optimizer = trained()
    with torch.no_grad():
        recycle(model, optimizer, MASKS, inputs=INPUT, generator=generator())
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())
    held = optimizer.param_groups[0]["params"]
    assert all(p is q for p, q in zip(model.parameters(), held, strict=True))
