"""Mask updates: against a naive reference, exact at the end, put off where they must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.treatments.sparse import Evidence, Score
from tests.models import GPT, ConvNet, mlp
from tests.training import seeded, train


def loss(model: nn.Module) -> Tensor:
    x = torch.randn(16, 6, dtype=next(model.parameters()).dtype)
    return F.mse_loss(model(x), x[:, :2].sin())


def masks(treatment: dp.SparseTraining) -> dict[str, Tensor]:
    return {n: treatment.connections.mask_of(n).clone() for n in treatment.connections.weights}


def there(treatment: dp.SparseTraining) -> int:
    return sum(int(mask.sum()) for mask in masks(treatment).values())


# --- GraNet by hand, in plain Python: the paper's algorithm and the authors' rules ----------------


def granet_by_hand(
    model: nn.Sequential, first: dict[str, Tensor], updates: int, every: int, end: int
) -> dict[str, Tensor]:
    """SGD with momentum 0.9, rate 0.05; cubic 0.6 to 0.15; half of each layer exchanged, cosine."""
    weights = {name: p for name, p in model.named_parameters() if name in first}
    mask = {name: m.double() for name, m in first.items()}
    momentum = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in weights.items():
            p.mul_(mask[name])
    for t in range(1, updates + 1):
        model.zero_grad()
        loss(model).backward()
        dense = {name: p.grad.clone() for name, p in weights.items()}
        with torch.no_grad():
            for name, p in model.named_parameters():
                g = p.grad * mask[name] if name in mask else p.grad
                momentum[name] = 0.9 * momentum[name] + g
                p.sub_(0.05 * momentum[name])
            if t % every:
                continue
            density = 0.15 + 0.45 * (1 - min(t, end) / end) ** 3
            total = sum(p.numel() for p in weights.values())
            keep = round(density * total)
            entries = [
                (abs(float(p.flatten()[i])), name, i)
                for name, p in weights.items()
                for i in range(p.numel())
                if mask[name].flatten()[i]
            ]
            entries.sort(key=lambda e: -e[0])
            for _, name, i in entries[keep:]:
                mask[name].view(-1)[i] = 0
            share = 0.005 + (0.5 - 0.005) * (1 + math.cos(math.pi * min(t, end) / end)) / 2
            for name, p in weights.items() if t <= end else ():
                on = [i for i in range(p.numel()) if mask[name].flatten()[i]]
                if len(on) == p.numel():
                    continue
                worst = sorted(on, key=lambda i: abs(float(p.flatten()[i])))
                worst = worst[: math.ceil(share * len(on) - 1e-9)]
                for i in worst:
                    mask[name].view(-1)[i] = 0
                off = [i for i in range(p.numel()) if not mask[name].flatten()[i]]
                best = sorted(off, key=lambda i: -abs(float(dense[name].flatten()[i])))
                for i in best[: len(worst)]:
                    mask[name].view(-1)[i] = 1
            for name, p in weights.items():
                p.mul_(mask[name])
                momentum[name] *= mask[name]
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_granet_is_the_papers_algorithm_weight_by_weight() -> None:
    seeded()
    model = mlp(6, 12, 10, 2).double()
    start = {n: v.clone() for n, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    treatment = dp.GraNet(0.15, 0.6, end=20, every=4)
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        torch.manual_seed(1)
        treatment.start(treatment._site)
        first = masks(treatment)
        train(model, optimizer, loss, 27)
    other = mlp(6, 12, 10, 2).double()
    other.load_state_dict(start)
    torch.manual_seed(1)
    expected = granet_by_hand(other, first, updates=27, every=4, end=20)
    assert treatment.regrown > 20
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-12)
        assert torch.equal(parameter.detach() == 0, expected[name] == 0)


# --- exact counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [20, 23, 97])
@pytest.mark.parametrize("final", [0.03, 0.1, 1 / 3])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_density_is_the_target_to_the_weight_at_the_end_of_the_schedule(
    end: int, final: float, scope: str
) -> None:
    seeded()
    model = mlp(6, 32, 32, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    treatment = dp.GraNet(final, end=end, every=10, scope=scope)
    size = 6 * 32 + 2 * 32 * 32
    seen: dict[int, int] = {}
    with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
        for update in range(1, end + 15):
            train(model, optimizer, loss, 1)
            seen[update] = there(treatment)
    assert seen[end] == seen[end + 14] == round(final * size)
    assert seen[1] > seen[end - 1] >= seen[end]
    steps, density = watch.history.series("sparsity/density")
    assert density[list(steps).index(end)] * size == pytest.approx(round(final * size))
    assert all(bool(mask.any()) for mask in masks(treatment).values())


def test_no_layer_is_emptied_and_the_floor_holds() -> None:
    seeded()
    model = mlp(6, 32, 32, 32, 2)
    with torch.no_grad():
        model[2].weight.mul_(1e-6)  # the global threshold alone would empty it
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for floor, least in ((0.0, 1), (0.02, math.ceil(0.02 * 1024))):
        treatment = dp.GradualMagnitudePruning(0.05, end=10, every=5, floor=floor)
        with dp.watch(model, optimizer, treatment, on_error="raise"):
            train(model, optimizer, loss, 12)
        found = masks(treatment)
        assert int(found["2.weight"].sum()) == least
        assert sum(int(m.sum()) for m in found.values()) == round(0.05 * (192 + 2048))
        model = mlp(6, 32, 32, 32, 2)
        with torch.no_grad():
            model[2].weight.mul_(1e-6)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)


def test_acdc_is_dense_and_sparse_in_turn_and_ends_sparse() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    treatment = dp.ACDC(0.1, start=10, end=50, sparse_for=10, dense_for=5)
    sizes = []
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        for _ in range(60):
            train(model, optimizer, loss, 1)
            sizes.append(there(treatment))
    full, few = 1216, round(0.1 * 1216)
    expected = [full if t < 10 else few if t >= 50 or (t - 10) % 15 < 10 else full
                for t in range(1, 61)]  # fmt: skip
    assert sizes == expected


# --- what comes, what goes ------------------------------------------------------------------------


class Planted(Score):
    """Scores that a test sets."""

    name = "planted"

    def __init__(self, scores: dict[str, Tensor]) -> None:
        self.scores = scores

    def __call__(self, evidence: Evidence) -> Tensor:
        return self.scores[evidence.where.name]


@pytest.mark.parametrize("reinit", [False, True])
def test_what_goes_and_comes_back_keeps_its_value_unless_told_otherwise(reinit: bool) -> None:
    seeded()
    model = mlp(6, 8, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    scores = {"2.weight": torch.zeros(8, 8)}
    treatment = dp.SET(
        0.5, every=4, turnover=0.25, include=["2"], grow=Planted(scores), reinit_when_same=reinit
    )
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        train(model, optimizer, loss, 3)
        before = masks(treatment)["2.weight"]
        weight = model[2].weight
        order = weight.detach().abs().masked_fill(~before, math.inf).flatten().argsort()
        back, away = order[:2], order[2:8]  # 8 of 32 are dropped: two of them are to come back
        scores["2.weight"].view(-1)[back] = 2.0
        fresh = (~before).flatten().nonzero().flatten()[:6]
        scores["2.weight"].view(-1)[fresh] = 1.0
        with torch.no_grad():
            weight.mul_(1 + 1e-3)  # keep the order, and see that it is today's value that stays
        optimizer.zero_grad()
        kept = weight.detach().clone().flatten()
        optimizer.step()  # without gradients SGD leaves the weights alone
    state = optimizer.state[weight]["momentum_buffer"].flatten()
    now, after = weight.detach().flatten(), masks(treatment)["2.weight"].flatten()
    assert after[back].all() and after[fresh].all() and not after[away].any()
    assert torch.equal(now[back], torch.zeros(2) if reinit else kept[back])
    assert bool((state[back] == 0).all()) is reinit
    assert not now[fresh].any() and not state[fresh].any()
    assert not now[away].any() and not state[away].any()


def test_growing_by_gradient_takes_the_sum_over_the_updates_before() -> None:
    seeded()
    model = mlp(6, 8, 8, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    treatment = dp.RigL(0.5, stop=100, every=4, turnover=0.5, include=["2"], accumulate=3)
    sums = torch.zeros(8, 8, dtype=torch.float64)
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        for update in range(1, 5):
            optimizer.zero_grad()
            loss(model).backward()
            if update >= 2:
                sums += model[2].weight.grad
            before = masks(treatment)["2.weight"]
            optimizer.step()
    share = 0.5 * (1 + math.cos(math.pi * 4 / 100)) / 2
    gone = math.ceil(share * 32)
    after = masks(treatment)["2.weight"]
    kept = before & after
    came = after & ~before
    # The best of all that were not there after dropping.
    candidates = ~before
    worst_chosen = sums.abs()[came].min()
    assert worst_chosen >= sums.abs()[candidates & ~after].max()
    assert int(after.sum()) == 32 and int(kept.sum()) >= 32 - gone


def test_momentum_growth_sees_the_dense_gradient() -> None:
    seeded()
    model = mlp(6, 8, 8, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    treatment = dp.SNFS(0.5, stop=100, every=50)
    mean = torch.zeros(8, 8, dtype=torch.float64)
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        for _ in range(7):
            optimizer.zero_grad()
            loss(model).backward()
            mean = 0.9 * mean + 0.1 * model[2].weight.grad
            optimizer.step()
        found = treatment._network.gatherer.momenta["2.weight"]  # type: ignore[union-attr]
    torch.testing.assert_close(found, mean)


def test_snip_is_the_largest_w_g_of_the_dense_network_at_the_first_update() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    x = torch.randn(16, 6)

    def batch_loss() -> Tensor:
        return F.mse_loss(model(x), x[:, :2].sin())

    parameters = [model[0].weight, model[2].weight]
    gradients = torch.autograd.grad(batch_loss(), parameters)
    scores = torch.cat(
        [(p * g).abs().flatten() for p, g in zip(parameters, gradients, strict=True)]
    )
    k = round(0.1 * scores.numel())
    expected = torch.zeros_like(scores, dtype=torch.bool)
    expected[scores.argsort(descending=True, stable=True)[:k]] = True
    start = {n: v.clone() for n, v in model.state_dict().items()}
    for given in (None, batch_loss):
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        treatment = dp.StaticSparse(0.1, "snip", loss=given)
        with dp.watch(model, optimizer, treatment, on_error="raise"):
            optimizer.zero_grad()
            batch_loss().backward()
            optimizer.step()
        found = torch.cat([mask.flatten() for mask in masks(treatment).values()])
        assert torch.equal(found, expected)


def test_grasp_leaves_gradients_buffers_and_random_states_alone() -> None:
    seeded()
    model = ConvNet()
    x = torch.randn(4, 2, 10, 10)
    treatment = dp.StaticSparse(
        0.3, "grasp", loss=lambda: F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        buffers = [b.clone() for b in model.buffers()]
        state = torch.get_rng_state()
        treatment.start(treatment._site)
        assert torch.equal(state, torch.get_rng_state())
        assert all(p.grad is None for p in model.parameters())
        for buffer, kept in zip(model.buffers(), buffers, strict=True):
            assert torch.equal(buffer, kept)
    size = sum(w.parameter.numel() for w in treatment.connections.weights.values())
    assert there(treatment) == round(0.3 * size)


def test_zeros_that_are_there_can_be_the_masks() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    with torch.no_grad():
        model[2].weight.mul_(torch.rand(32, 32) < 0.3)
    expected = model[2].weight.detach() != 0
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    treatment = dp.StaticSparse(1.0, "zeros", every=5)
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        train(model, optimizer, loss, 12)
    assert torch.equal(model[2].weight.detach() != 0, expected)
    assert torch.equal(masks(treatment)["2.weight"], expected)


def test_fresh_masks_on_weights_that_are_sparse_already_are_told_of() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    with torch.no_grad():
        model[2].weight.mul_(torch.rand(32, 32) < 0.3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with dp.watch(model, optimizer, dp.StaticSparse(0.2), on_error="raise"):
        with pytest.warns(dp.DynamoProbeWarning, match=r"load watch.state_dict\(\)"):
            train(model, optimizer, loss, 1)


# --- what is masked, and what is not --------------------------------------------------------------


def test_outputs_norms_biases_and_embeddings_stay_whole_and_the_doctor_says_so() -> None:
    seeded()
    tokens = torch.randint(11, (2, 8))
    cases: tuple[tuple[nn.Module, Callable[[nn.Module], Tensor], set[str]], ...] = (
        (ConvNet(), lambda m: m(torch.randn(4, 2, 10, 10)).square().mean(),
         {"conv1.weight", "conv2.weight", "fc.weight"}),
        (GPT(depth=1), lambda m: F.cross_entropy(m(tokens).flatten(0, 1), tokens.flatten()),
         {f"blocks.0.{part}.weight" for part in ("qkv", "out", "up", "down")}),
    )  # fmt: skip
    for model, step, names in cases:
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        treatment = dp.StaticSparse(0.3)
        with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
            train(model, optimizer, step, 2)
            report = str(watch.doctor())
        assert set(treatment.connections.weights) == names
        assert set(treatment.connections.left) | names == dict(model.named_parameters()).keys()
        for name, reason in treatment.connections.left.items():
            assert f"whole: {name} ({reason})" in report
        for name in names:
            assert f"masked: {name}," in report
    assert "an output layer" in treatment.connections.left["head.weight"]


def test_an_agent_whose_parts_are_called_one_by_one_keeps_its_outputs() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = mlp(6, 16, 16, 2), mlp(6, 16, 16, 1)

    seeded()
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), 1e-2)
    treatment = dp.StaticSparse(0.3)
    with dp.watch(agent, optimizer, treatment, on_error="raise"):
        train(agent, optimizer, lambda m: (m.actor(torch.randn(4, 6)).sum()
              + m.critic(torch.randn(4, 6)).sum()), 3)  # fmt: skip
    assert {n for n in treatment.connections.left if "weight" in n} == {
        "actor.4.weight",
        "critic.4.weight",
    }


def test_densities_can_be_given_by_layer() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    treatment = dp.StaticSparse(1.0, distribution={"0": 0.5, "2.*": 0.125})
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        train(model, optimizer, loss, 2)
    found = {name: int(mask.sum()) for name, mask in masks(treatment).items()}
    assert found == {"0.weight": 96, "2.weight": 128}


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: dp.StaticSparse(0.0), "above 0 and at most 1"),
        (lambda: dp.StaticSparse(1.5), "above 0 and at most 1"),
        (lambda: dp.GraNet(-0.1, end=10), "above 0 and at most 1"),
        (lambda: dp.GraNet(0.1, 1.2, end=10), "above 0 and at most 1"),
        (lambda: dp.GraNet(0.1, start=10, end=10), "has to lie after start"),
        (lambda: dp.GraNet(0.1, end=10, stop=5), "give a later one"),
        (lambda: dp.RigL(0.1, stop=10, turnover=1.5), "from 0 to 1"),
        (lambda: dp.SET(0.1, grow="gradients"), "give one of"),
        (lambda: dp.SET(0.1, every=0), "1 or more"),
        (lambda: dp.SET(0.1, distribution="power"), "'uniform', 'erk'"),
        (lambda: dp.SET(0.1, granularity="3:2"), "'N:M' such as"),
        (lambda: dp.SET(0.1, accumulate=0), "1 or more updates"),
        (lambda: dp.GraNet(0.1, end=9, scope="global", granularity="fan-in"), "scope='layer'"),
        (lambda: dp.SNFS(0.1, stop=9, mask_grads="backward"), "mask_grads='step'"),
        (lambda: dp.StaticSparse(0.1, "grasp"), "give loss="),
        (lambda: dp.StaticSparse(0.1, "synflow"), "'random', 'magnitude', 'snip', 'grasp' or"),
        (lambda: dp.SET(0.1, floor=1.0), "below 1"),
        (lambda: dp.SNFS(0.5, stop=9, granularity="2:4"), "grow_scope='layer'"),
        (lambda: dp.RigL(0.5, stop=9, grow_scope="momentum"), "give scope='global'"),
        (lambda: dp.StaticSparse(0.5, "zeros", granularity="2:4"), "'unstructured'"),
        (lambda: dp.RigL(0.3, stop=9, granularity="2:4"), "2:4 is 0.5"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_with_the_fix(make: Any, fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        make()


def test_a_model_without_anything_to_prune_is_refused_with_the_reasons() -> None:
    model = mlp(6, 8, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for treatment, reason in (
        (dp.StaticSparse(0.1, exclude=["*"]), "a pattern of exclude="),
        (dp.StaticSparse(0.1, include=["7.weight"]), "names no parameter and no layer"),
        (dp.StaticSparse(0.1, types=(nn.Conv2d,)), "Linear is not among the types"),
    ):
        with pytest.raises(ValueError, match=reason):
            dp.watch(model, optimizer, treatment)
    half = torch.optim.SGD(model[4].parameters(), 0.1)
    with pytest.raises(ValueError, match="none of the watch's optimizers holds it"):
        dp.watch(model, half, dp.StaticSparse(0.1, include=["2.weight"]))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        dp.watch(model, optimizer, dp.StaticSparse(0.1))


def test_meta_and_frozen_weights_stay_whole_and_are_refused_by_name() -> None:
    model = mlp(6, 8, 8, 8, 2)
    model[4].to(device="meta")
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for name, reason in (("4.weight", "meta device"), ("2.weight", "frozen")):
        with pytest.raises(ValueError, match=reason):
            dp.watch(model, optimizer, dp.StaticSparse(0.1, include=[name]))


def test_a_density_below_the_floors_is_refused_when_it_is_attached() -> None:
    model = mlp(6, 32, 32, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    treatment = dp.GradualMagnitudePruning(0.05, end=30, floor=0.2)
    with pytest.raises(ValueError, match="raise the density or lower the floor"):
        dp.watch(model, optimizer, treatment)


def test_one_pattern_may_be_given_as_it_is() -> None:
    model = mlp(6, 32, 32, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    treatment = dp.StaticSparse(0.5, include="2.weight")
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        train(model, optimizer, loss, 1)
    assert list(treatment.connections.weights) == ["2.weight"]


def test_a_mirror_of_another_shape_is_refused() -> None:
    model = mlp(6, 8, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="same architecture"):
        dp.watch(model, optimizer, dp.StaticSparse(0.1, mirror=mlp(6, 9, 8, 2)))


def test_a_schedule_that_ends_after_training_is_told_of() -> None:
    seeded()
    model = mlp(6, 8, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(dp.DynamoProbeWarning, match="before the density's schedule did at 100"):
        with dp.watch(model, optimizer, dp.GraNet(0.1, end=100, every=10)) as watch:
            train(model, optimizer, loss, 20)
    assert any(event.kind == "alert" for event in watch.events)


@pytest.mark.parametrize("trouble", ["missing", "nan", "inf"])
def test_an_update_without_usable_gradients_is_put_off_and_told_and_nothing_is_lost(
    trouble: str,
) -> None:
    seeded()
    model = mlp(6, 16, 16, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    treatment = dp.GraNet(0.2, end=30, every=10)
    with dp.watch(model, optimizer, treatment, on_error="raise") as watch:
        train(model, optimizer, loss, 9)
        for update in (10, 11):
            before = masks(treatment)
            optimizer.zero_grad()
            if trouble == "missing":
                model[0](torch.randn(3, 6)).sum().backward()
                optimizer.step()
            else:
                loss(model).backward()
                kept = [p.detach().clone() for p in model.parameters()]
                model[2].weight.grad[0, 0] = float(trouble)
                optimizer.step()
                with torch.no_grad():
                    for p, value in zip(model.parameters(), kept, strict=True):
                        p.copy_(value)
            for name, mask in masks(treatment).items():
                assert torch.equal(mask, before[name]), update
        told = [e for e in watch.events if e.kind == "skipped"]
        assert len(told) == 1 and "put off" in str(told[0])
        train(model, optimizer, loss, 1)
        assert there(treatment) < sum(int(m.sum()) for m in before.values())
        assert watch.history.series("sparsity/pruned")[0].tolist() == [12]
        train(model, optimizer, loss, 18)
    assert there(treatment) == round(0.2 * (96 + 256))
    assert watch.history.series("sparsity/pruned")[0].tolist() == [12, 20, 30]


def test_a_failure_in_an_update_leaves_the_model_as_it_was_and_the_masks_hold() -> None:
    class Failing(Score):
        def __call__(self, evidence: Evidence) -> Tensor:
            raise RuntimeError("no score today")

    seeded()
    model = mlp(6, 16, 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    treatment = dp.SET(0.3, every=5, grow=Failing())
    with pytest.warns(dp.DynamoProbeWarning, match="no score today"):
        with dp.watch(model, optimizer, treatment) as watch:
            train(model, optimizer, loss, 4)
            before = masks(treatment)
            train(model, optimizer, loss, 10)
    assert watch.step == 14
    for name, mask in masks(treatment).items():
        assert torch.equal(mask, before[name])
        assert not torch.count_nonzero(model.get_parameter(name)[~mask])


def test_the_whole_use_is_one_line_and_two_budgets_can_be_kept_apart() -> None:
    seeded()
    model = mlp(6, 16, 16, 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    treatments = [dp.StaticSparse(0.2, include=["0"]), dp.StaticSparse(0.5, include=["2"])]
    with dp.watch(model, optimizer, treatments, on_error="raise") as watch:
        train(model, optimizer, loss, 5)
    assert watch.history.latest("sparsity/density") == pytest.approx(round(0.2 * 96) / 96)
    assert watch.history.latest("sparsity-2/density") == 0.5
    assert torch.count_nonzero(model[4].weight) == 256


def test_ceron_prunes_from_a_fifth_to_four_fifths_of_training_to_five_percent() -> None:
    seeded()
    model = mlp(6, 32, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    treatment = dp.GradualMagnitudePruning.for_agents(updates=200)
    seen = []
    with dp.watch(model, optimizer, treatment, on_error="raise"):
        for _ in range(200):
            train(model, optimizer, loss, 1)
            seen.append(there(treatment))
    assert seen[39] == 1216 and seen[41] < 1216
    assert seen[100] > seen[158] >= seen[159] == seen[199] == round(0.05 * 1216)
