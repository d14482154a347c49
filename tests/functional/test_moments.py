"""Optimizer state is compared coordinate by coordinate with a plain loop, and with closed forms."""

import copy
import math

import pytest
import torch
from torch import nn

from dynamo_probe.functional.ledger import Ledger
from dynamo_probe.functional.moments import MOMENTS, States, reset, restart

OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, 1e-3),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, 1e-3, fused=True),
    "Adam, foreach": lambda p: torch.optim.Adam(p, 1e-3, foreach=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-3),
    "SGD": lambda p: torch.optim.SGD(p, 1e-2),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-3, centered=True, momentum=0.9),
    "Adamax": lambda p: torch.optim.Adamax(p, 1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, 1e-3),
    "RAdam": lambda p: torch.optim.RAdam(p, 1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Rprop": lambda p: torch.optim.Rprop(p, 1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, 1e-2, t0=2),
}
SECOND = {"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum"}


def trained(name, shape=(6, 8), steps=5):
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = OPTIMIZERS[name]([parameter])
    for _ in range(steps):
        parameter.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return parameter, optimizer


def fresh_value(key, parameter, where, group):
    if key in ("ax", "z"):
        return parameter[where]
    if key == "step_size":
        return group["lr"]
    return group.get("initial_accumulator_value", 0.0) if key == "sum" else 0.0


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_changes_at_the_recycled_coordinates_as_said_and_nowhere_else(name, dim, moments):
    parameter, optimizer = trained(name)
    before = copy.deepcopy(dict(optimizer.state.get(parameter, {})))
    # Two slices a unit along dimension 1, as after a flatten.
    units = [[0], [1], [2], [3], [4], [5]] if dim == 0 else [[0, 1], [2, 3], [4, 5], [6, 7]]
    recycled, live = [units[1], units[2]], [u for i, u in enumerate(units) if i not in (1, 2)]
    with torch.no_grad(), Ledger() as ledger:
        states = States([optimizer])
        reset(ledger, states, parameter, dim, torch.tensor(recycled), torch.tensor(live), moments)
    for key, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[key]))
            continue
        expected = before[key].clone()
        for unit in recycled if moments != "keep" else []:
            for slot, position in enumerate(unit):
                for other in range(parameter.shape[1 - dim]):
                    where = (position, other) if dim == 0 else (other, position)
                    if moments == "live-mean" and key in SECOND:
                        lived = [
                            before[key][(p[slot], other) if dim == 0 else (other, p[slot])]
                            for p in live
                        ]
                        expected[where] = sum(float(v) for v in lived) / len(lived)
                    else:
                        group = optimizer.param_groups[0]
                        expected[where] = fresh_value(key, parameter, where, group)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_after_a_reset(name, moments):
    parameter, optimizer = trained(name)
    with torch.no_grad(), Ledger() as ledger:
        states = States([optimizer])
        index, live = torch.tensor([[1]]), torch.tensor([[0], [2]])
        reset(ledger, states, parameter, 0, index, live, moments)
        restart(ledger, states, [parameter])
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        before = parameter.detach().clone()
        optimizer.step()
    assert parameter.isfinite().all()
    assert (parameter[1] != before[1]).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restarted_tensor_with_no_moments_takes_the_steps_of_a_new_one(name):
    parameter, optimizer = trained(name)
    everything = torch.arange(6).unsqueeze(1)
    with torch.no_grad(), Ledger() as ledger:
        states = States([optimizer])
        none = torch.empty(0, 1, dtype=torch.int64)
        reset(ledger, states, parameter, 0, everything, none, "zero+step")
        restart(ledger, states, [parameter])
    if name == "ASGD":
        optimizer.state[parameter]["eta"].fill_(1e-2)  # its rate decays apart from its state
        optimizer.state[parameter]["mu"].fill_(1.0)
    new = nn.Parameter(parameter.detach().clone())
    reference = OPTIMIZERS[name]([new])
    for step in range(4):
        gradient = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        parameter.grad, new.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(parameter, new, rtol=1e-6, atol=1e-7)


def adam_after(moments, steps=4000, slots=8):
    """Train with unit noise for so long that the bias correction is 1, then reset one slice."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.zeros(slots, 50))
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator).sign()
        optimizer.step()
    with torch.no_grad(), Ledger() as ledger:
        live = torch.arange(1, slots).unsqueeze(1)
        states = States([optimizer])
        reset(ledger, states, parameter, 0, torch.tensor([[0]]), live, moments)
        if moments == "zero+step":
            restart(ledger, states, [parameter])
    sizes = []
    for _ in range(40):
        parameter.grad = torch.ones_like(parameter)
        before = parameter.detach().clone()
        optimizer.step()
        sizes.append((parameter.detach() - before).abs()[0].max().item() / 1e-3)
    return sizes


def test_zeroed_moments_with_a_late_step_count_give_updates_of_several_learning_rates():
    sizes = adam_after("zero")
    b1, b2 = 0.9, 0.999
    # m_t / sqrt(v_t) of a constant gradient from zero moments, with bias corrections of 1.
    expected = [(1 - b1**t) / math.sqrt(1 - b2**t) for t in range(1, 41)]
    assert expected[0] == pytest.approx(3.16, abs=0.01)
    assert max(expected) == pytest.approx(6.6, abs=0.1)
    # After 4000 steps 1 - b2^t is 0.982: one per cent below 1 in its square root.
    assert sizes == pytest.approx(expected, rel=0.02)


def test_the_live_mean_keeps_the_first_updates_within_one_learning_rate():
    sizes = adam_after("live-mean")
    assert sizes[0] == pytest.approx(0.1, rel=0.02)  # (1 - b1) / sqrt(1): the momentum has to build
    assert max(sizes) <= 1.0


def test_a_restart_gives_updates_of_one_learning_rate():
    assert adam_after("zero+step") == pytest.approx([1.0] * 40, rel=1e-4)


def test_with_no_unit_left_the_second_moment_is_zero():
    parameter, optimizer = trained("Adam")
    with torch.no_grad(), Ledger() as ledger:
        none = torch.empty(0, 1, dtype=torch.int64)
        states = States([optimizer])
        reset(ledger, states, parameter, 0, torch.arange(6).unsqueeze(1), none, "live-mean")
    assert optimizer.state[parameter]["exp_avg_sq"].count_nonzero() == 0


@pytest.mark.parametrize("step", [7, 7.0, torch.tensor(7.0), torch.tensor(7, dtype=torch.int64)])
def test_a_step_count_keeps_its_type(step):
    parameter, optimizer = trained("Adam")
    optimizer.state[parameter]["step"] = step
    with torch.no_grad(), Ledger() as ledger:
        restart(ledger, States([optimizer]), [parameter])
    after = optimizer.state[parameter]["step"]
    assert type(after) is type(step) and after == 0
    if isinstance(step, torch.Tensor):
        assert after is step and after.dtype == step.dtype and after.shape == ()


def test_state_that_is_not_per_weight_is_named_and_left():
    parameter, optimizer = trained("SGD")
    rows, columns = torch.ones(6), torch.ones(8)
    optimizer.state[parameter] = {"rows": rows, "columns": columns, "step": torch.tensor(3.0)}
    states = States([optimizer])
    with torch.no_grad(), Ledger() as ledger:
        reset(ledger, states, parameter, 0, torch.tensor([[1]]), torch.tensor([[0]]), "zero")
    assert states.not_per_weight(parameter) == ["rows", "columns"]
    assert rows.tolist() == [1] * 6 and columns.tolist() == [1] * 8


def test_lbfgs_keeps_nothing_per_weight():
    parameter = nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.LBFGS([parameter], max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert {"d", "prev_flat_grad"} <= set(States([optimizer]).not_per_weight(parameter))


def test_looking_for_state_does_not_make_any():
    parameter = nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.Adam([parameter])
    with torch.no_grad(), Ledger() as ledger:
        states = States([optimizer])
        reset(ledger, states, parameter, 0, torch.tensor([[1]]), torch.tensor([[0]]), "zero")
        restart(ledger, states, [parameter])
    assert len(optimizer.state) == 0


def test_a_parameter_of_two_optimizers_is_reset_in_both():
    parameter, first = trained("Adam")
    second = torch.optim.SGD([parameter], 1e-2, momentum=0.9)
    parameter.grad = torch.ones_like(parameter)
    second.step()
    with torch.no_grad(), Ledger() as ledger:
        states = States([first, second])
        reset(ledger, states, parameter, 0, torch.tensor([[1]]), torch.tensor([[0]]), "zero")
    assert first.state[parameter]["exp_avg"][1].count_nonzero() == 0
    assert second.state[parameter]["momentum_buffer"][1].count_nonzero() == 0
