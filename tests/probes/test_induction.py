"""Induction heads that are built by hand, so that what the probe has to say is known."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamo_probe as dp
from dynamo_probe.functional.ablation import ablate_heads
from dynamo_probe.functional.copying import copy_loss
from dynamo_probe.functional.heads import head_scores
from dynamo_probe.probes.induction import Induction
from tests.distributed import on_two_ranks
from tests.models import GPT, mlp
from tests.training import everything, identical, seeded, train

VOCABULARY = 60


class Copier(nn.Module):
    """Two layers of two heads: a previous-token head, and an induction head of a set strength.

    Head 0 of the first layer attends to the position before and hands its token on. Head 0 of the
    second looks for its own token there, and predicts what follows. The other heads attend evenly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, VOCABULARY)
        self.embed.weight.data = torch.eye(VOCABULARY)
        self.strength = nn.Parameter(torch.tensor(0.0))
        self.unused = mlp(1, 1, 1)  # a watch wants to see a hidden layer

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        length = tokens.shape[1]
        place = torch.eye(length).expand(len(tokens), length, length)
        nothing = torch.zeros_like(place)
        q = torch.stack([50 * place.roll(-1, 2), nothing], 1)
        k = torch.stack([place, nothing], 1)
        values = torch.stack([x, x], 1)
        first = F.scaled_dot_product_attention(q, k, values, is_causal=True, scale=1.0)
        previous = first[:, 0]
        q = torch.stack([self.strength * x, 0 * x], 1)
        k = torch.stack([previous, 0 * x], 1)
        second = F.scaled_dot_product_attention(q, k, values, is_causal=True, scale=1.0)
        return 10 * second[:, 0]


def run(
    model: Copier,
    probe: dp.Instrument,
    strengths: list[float],
    **watch: Any,
) -> dp.Watch:
    """Let the strength be as given, update by update."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    tokens = torch.randint(VOCABULARY, (4, 32))
    with dp.watch(model, optimizer, probe, on_error="raise", **watch) as watched:
        go_on(model, optimizer, tokens, strengths)
    return watched


def go_on(
    model: Copier, optimizer: torch.optim.Optimizer, tokens: Tensor, strengths: list[float]
) -> None:
    for strength in strengths:
        with torch.no_grad():
            model.strength.fill_(strength)
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()


def values(watch: dp.Watch, tag: str) -> dict[int, float]:
    steps, found = watch.history.series(f"induction/{tag}")
    return dict(zip(steps.tolist(), found.tolist(), strict=True))


def test_a_perfect_induction_head_scores_1_and_a_previous_token_head_1() -> None:
    watch = run(Copier(), Induction(every=10, bos=0, ablate=False), [60.0] * 10)
    assert values(watch, "top")[10] == pytest.approx(1, abs=1e-6)
    assert values(watch, "previous_token")[10] == pytest.approx(1, abs=1e-6)
    assert values(watch, "heads")[10] == 1
    assert values(watch, "head/1.0")[10] == pytest.approx(1, abs=1e-6)


def test_readings_are_those_of_the_pure_functions_on_the_tokens_of_the_probe() -> None:
    model = Copier()
    probe = Induction(every=5, vocab_size=VOCABULARY, bos=7, period=12, sequences=6, heads="all")
    watch = run(model, probe, [2.0] * 5)
    generator = torch.Generator().manual_seed(probe._seed)
    scores = head_scores(model, VOCABULARY, bos=7, period=12, sequences=6, generator=generator)
    matching = scores.prefix_matching
    assert values(watch, "top")[5] == matching.max()
    assert values(watch, "sum")[5] == pytest.approx(float(matching.sum()))
    assert values(watch, "chance")[5] == scores.chance
    assert values(watch, "second_copy")[5] == scores.second_copy["prefix_matching"].max()
    by_head = watch.history.latest("induction/duplicate_token_by_head")
    assert np.array_equal(by_head, scores.duplicate_token.flatten().numpy())
    for layer in (0, 1):
        for head in (0, 1):
            assert values(watch, f"head/{layer}.{head}")[5] == matching[layer, head]
    generator = torch.Generator().manual_seed(probe._seed)
    copied = copy_loss(model, VOCABULARY, bos=7, period=12, sequences=6, generator=generator)
    assert values(watch, "copy_loss")[5] == copied.loss
    assert values(watch, "copy_gap")[5] == copied.first - copied.loss


def test_ablation_readings_are_differences_of_copy_losses() -> None:
    model = Copier()
    probe = Induction(every=5, period=12, top=1)
    watch = run(model, probe, [20.0] * 5)

    def losses() -> Tensor:
        generator = torch.Generator().manual_seed(probe._seed)
        return copy_loss(model, VOCABULARY, period=12, generator=generator).by_sequence

    base = losses()
    wanted = {}
    for name, head in {"induction": (1, 0), "previous_token": (0, 0), "random": (1, 1)}.items():
        with ablate_heads(model, [head], "mean"):
            wanted[name] = losses() - base
    for name in ("induction", "previous_token"):
        assert values(watch, f"ablation/{name}")[5] == pytest.approx(float(wanted[name].mean()))
        assert values(watch, f"ablation/{name}")[5] > 1
    over = float((wanted["induction"] - wanted["random"]).mean())
    assert values(watch, "ablation/induction_over_random")[5] == pytest.approx(over)
    low = values(watch, "ablation/induction_over_random/low")[5]
    assert low < over < values(watch, "ablation/induction_over_random/high")[5]


def test_a_set_of_heads_that_would_be_empty_is_left_out_and_not_0() -> None:
    watch = run(Copier(), Induction(every=5, period=12, top=4), [20.0] * 5)
    assert "induction/ablation/induction" in watch.history.tags()
    assert "induction/ablation/previous_token" not in watch.history.tags()
    told = [e for e in watch.events if e.subject == "induction/ablation/previous_token"]
    assert len(told) == 1 and told[0].kind == "skipped"


def test_controls_are_drawn_from_heads_that_are_there_where_layers_have_different_numbers() -> None:
    class Wider(Copier):
        """Its first layer has four heads, of which two attend evenly as the second does."""

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)[:, None].expand(-1, 4, -1, -1)
            F.scaled_dot_product_attention(0 * x, 0 * x, x, is_causal=True)
            return super().forward(tokens)

    for seed in range(6):
        probe = Induction(every=5, period=12, top=1)
        watch = run(Wider(), probe, [20.0] * 5, seed=seed)
        assert values(watch, "ablation/induction_over_random")[5] > 1
        assert values(watch, "head/2.0")[5] > 0.5


def test_a_control_that_cannot_be_drawn_is_left_out_with_its_reason() -> None:
    watch = run(Copier(), Induction(every=5, period=12, top=2), [20.0] * 5)
    assert "induction/ablation/induction_over_random" not in watch.history.tags()
    noted = [e for e in watch.events if e.subject == "induction/ablation/induction"]
    assert len(noted) == 1 and "too few other heads" in noted[0].detail["reason"]


def test_formation_is_told_with_the_update_of_the_rise_and_the_expected_one() -> None:
    strengths = [0.0] * 100 + [20.0] * 60
    watch = run(Copier(), Induction(every=10, ablate=False, dense=0), strengths)
    formed = [e for e in watch.events if e.kind == "formed"]
    assert len(formed) == 1
    detail = formed[0].detail
    assert detail["prefix_matching_rose_at"] == detail["copy_gap_rose_at"] == 110
    # 10^5.7 / sqrt(4 sequences x 32 tokens)
    assert detail["expected"] == round(10**5.7 / (4 * 32) ** 0.5)
    assert (detail["batch_size"], detail["context"]) == (4, 32)
    assert "formed" in str(watch.doctor())


def test_what_does_not_form_is_not_told() -> None:
    watch = run(Copier(), Induction(every=5, ablate=False), [0.0] * 100)
    assert not [e for e in watch.events if e.kind == "formed"]


def test_readings_are_denser_while_scores_move() -> None:
    strengths = [0.0] * 84 + [20.0] * 156
    watch = run(Copier(), Induction(every=40, ablate=False, dense=5), strengths)
    # 120 is the first reading after the jump; two periods later it is calm again.
    calm, lively = [1, 40, 80, 120], list(range(125, 201, 5))
    assert list(values(watch, "top")) == [*calm, *lively, 240]


def test_readings_are_not_denser_for_ever_after_damage() -> None:
    strengths = [20.0] * 84 + [0.0] * 276
    watch = run(Copier(), Induction(every=40, ablate=False, dense=5), strengths)
    # 120 is the first reading after the fall; two periods later it is calm, and the damage stays.
    calm, lively = [1, 40, 80, 120], list(range(125, 201, 5))
    assert list(values(watch, "top")) == [*calm, *lively, 240, 280, 320, 360]
    assert values(watch, "damage")[360] > 0.25


def test_damage_is_the_drop_from_the_peak_and_from_the_reference() -> None:
    strengths = [20.0] * 10 + [3.0] * 10
    probe = Induction(every=10, ablate=False, reference={1: 1.0, 11: 2.0, 21: 3.0})
    watch = run(Copier(), probe, strengths)
    total = values(watch, "sum")
    assert values(watch, "damage")[10] == 0
    assert values(watch, "damage")[20] == pytest.approx(1 - total[20] / total[10])
    assert values(watch, "damage")[20] > 0.3
    assert values(watch, "damage_vs_reference")[20] == pytest.approx(1 - total[20] / 2.9)
    earlier = run(Copier(), Induction(every=10, ablate=False), [20.0] * 20).history
    again = run(Copier(), Induction(every=10, ablate=False, reference=earlier), strengths)
    assert values(again, "damage_vs_reference")[20] == pytest.approx(1 - total[20] / total[10])


def test_multipliers_are_effective_size_over_size() -> None:
    model = Copier()
    loss = copy_loss(
        model, VOCABULARY, generator=torch.Generator().manual_seed(0)
    ).loss  # strength 0: about the same for all tokens
    probe = Induction(
        every=1,
        ablate=False,
        size=1000,
        baselines={
            "copy_loss": {100: loss + 1, 10_000: loss - 1},
            "test_loss": {250: 3.0, 1000: 1.0},
            "prefix_matching": {100: 0.9, 1000: 0.99},
        },
        evaluate=lambda: 2.0,
    )
    watch = run(model, probe, [0.0])
    assert values(watch, "multiplier/test_loss")[1] == pytest.approx(0.5)
    found = values(watch, "copy_loss")[1]
    copying = 10 ** (2 + (loss + 1 - found)) / 1000
    assert values(watch, "multiplier/copy_loss")[1] == pytest.approx(copying)
    assert values(watch, "disproportion")[1] == pytest.approx(copying / 0.5)
    # Outside the table there is no figure, and the reason is told.
    assert "induction/multiplier/prefix_matching" not in watch.history.tags()
    told = [e for e in watch.events if e.subject == "induction/multiplier/prefix_matching"]
    assert len(told) == 1 and told[0].kind == "skipped"


def test_the_test_loss_may_change_modes_and_random_states() -> None:
    runs = []
    for watched in (False, True):
        seeded()
        model = GPT()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)

        def evaluate(model: nn.Module = model) -> float:
            model.eval()
            return float(model(torch.randint(11, (2, 8))).square().mean())

        def loss(model: nn.Module) -> Tensor:
            return model(torch.randint(11, (2, 8))).square().mean()

        if watched:
            probe = Induction(every=2, period=5, evaluate=evaluate)
            with dp.watch(model, optimizer, probe, on_error="raise") as watch:
                train(model, optimizer, loss, 8)
            assert len(values(watch, "test_loss")) == 5
        else:
            train(model, optimizer, loss, 8)
        runs.append(everything([model], [optimizer]))
    assert identical(*runs)


@pytest.mark.parametrize("cut", [3, 10, 25, 31])
def test_a_resumed_run_reads_what_the_whole_run_reads(cut: int) -> None:
    strengths = [0.0] * 20 + [20.0] * 10 + [2.0] * 20

    def probe() -> Induction:
        return Induction(every=8, period=10, sequences=4, dense=2)

    tokens = torch.randint(VOCABULARY, (4, 32))
    whole = run(Copier(), probe(), strengths)
    model = Copier()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with dp.watch(model, optimizer, probe(), on_error="raise") as first:
        go_on(model, optimizer, tokens, strengths[:cut])
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
    file.seek(0)
    with dp.watch(model, optimizer, probe(), on_error="raise") as second:
        second.load_state_dict(torch.load(file, weights_only=True))
        go_on(model, optimizer, tokens, strengths[cut:])
    for tag in whole.history.tags():
        ours, theirs = second.history.series(tag), whole.history.series(tag)
        assert np.array_equal(ours[0], theirs[0]), tag
        assert np.array_equal(ours[1], theirs[1]), tag
    assert [str(e) for e in second.events] == [str(e) for e in whole.events]


def test_between_readings_nothing_is_on_the_model() -> None:
    model = Copier()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with dp.watch(model, optimizer, Induction(every=2, vocab_size=60), on_error="raise"):
        go_on(model, optimizer, torch.randint(60, (4, 32)), [1.0, 1.0, 1.0])
        for module in model.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks


def test_compiled_training_is_neither_compiled_anew_nor_changed() -> None:
    runs, graphs = [], []
    for watched in (False, True):
        torch._dynamo.reset()
        seeded()
        count = [0]

        def backend(module: Any, inputs: Any, count: list[int] = count) -> Callable[..., Any]:
            count[0] += 1
            return module.forward

        model = GPT()
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)

        def loss(_: nn.Module, compiled: Any = compiled) -> Tensor:
            return compiled(torch.randint(11, (2, 8))).square().mean()

        probe = Induction(every=2, period=5)
        watch = dp.watch(compiled, optimizer, probe, on_error="raise") if watched else None
        train(model, optimizer, loss, 8)
        if watch is not None:
            assert len(values(watch, "top")) == 5
            watch.close()
        runs.append(everything([model], [optimizer]))
        graphs.append(count[0])
    torch._dynamo.reset()
    assert identical(*runs)
    assert graphs[0] == graphs[1] == 1


# --- what cannot be meant, and what goes wrong ----------------------------------------------------


def attach(model: nn.Module, probe: Induction) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dp.watch(model, optimizer, probe, on_error="raise").close()


class Positioned(nn.Module):
    """A model with learned positions for 16 tokens and without a tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(60, 8), nn.Embedding(16, 8)
        self.unused = mlp(1, 1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        x = x[:, None]
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)[:, 0] @ self.tokens.weight.T


def test_a_model_without_attention_is_refused_when_attaching() -> None:
    model = nn.Sequential(nn.Embedding(60, 8), mlp(8, 8, 60))
    with pytest.raises(ValueError, match="no call of attention"):
        attach(model, Induction())


def test_a_vocabulary_that_cannot_be_seen_has_to_be_given() -> None:
    class Half(Positioned):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens)[..., :30]

    with pytest.raises(ValueError, match="vocab_size="):
        attach(Half(), Induction(period=4))
    attach(Half(), Induction(period=4, vocab_size=60))
    attach(Positioned(), Induction(period=4))


def test_a_vocabulary_too_small_for_the_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="period=11 or less"):
        attach(GPT(), Induction())
    with pytest.raises(ValueError, match="period=11 or less"):
        Induction(vocab_size=11)


def test_a_context_too_short_for_the_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="lower period or copies"):
        attach(Positioned(), Induction(vocab_size=60))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"heads": "some"}, ValueError, "'top' or 'all'"),
        ({"top": 0}, ValueError, "1 or more"),
        ({"dense": -1}, ValueError, "0 for never"),
        ({"period": 1}, ValueError, "2 or more"),
        ({"evaluate": 3.0}, TypeError, "give a function"),
        ({"baselines": {"loss": {1: 2.0, 2: 1.0}}}, ValueError, "no metric 'loss'"),
        ({"baselines": {"copy_loss": {1: 2.0, 2: 1.0}}}, ValueError, "size="),
        ({"baselines": {"test_loss": {1: 2.0, 2: 1.0}}, "size": 1}, ValueError, "evaluate="),
        ({"baselines": {"copy_loss": {1: 2.0}}, "size": 1}, ValueError, "."),
        ({"reference": [1.0]}, TypeError, "mapping"),
        ({"reference": {}}, ValueError, "no reading"),
    ],
)
def test_wrong_settings_are_refused_at_once(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Induction(**wrong)


def test_without_logits_the_heads_are_scored_and_the_copy_loss_is_left_out() -> None:
    class Pooled(Copier):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens).mean(1)

    watch = run(Pooled(), Induction(every=5, bos=0), [60.0] * 10)
    assert values(watch, "top")[10] == pytest.approx(1, abs=1e-6)
    assert "induction/copy_loss" not in watch.history.tags()
    skipped = [e for e in watch.events if e.subject == "induction/copy_loss"]
    assert len(skipped) == 1 and "call=" in skipped[0].detail["reason"]


def test_weights_that_became_nan_are_told_and_never_scored_0() -> None:
    watch = run(Copier(), Induction(every=5, ablate=False), [1.0] * 5 + [float("nan")] * 5)
    assert list(values(watch, "top")) == [1, 5]
    assert any(e.kind == "skipped" and "not finite" in str(e) for e in watch.events)


def test_a_model_that_fails_in_the_probe_alone_goes_on_training() -> None:
    class Picky(Copier):
        picky = False

        def forward(self, tokens: Tensor) -> Tensor:
            if self.picky and tokens.shape[1] != 32:
                raise RuntimeError("only 32 tokens")
            return super().forward(tokens)

    model = Picky()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    tokens = torch.randint(VOCABULARY, (4, 32))
    with dp.watch(model, optimizer, Induction(every=2)) as watch:
        go_on(model, optimizer, tokens, [1.0] * 4)
        model.picky = True
        with pytest.warns(dp.DynamoProbeWarning, match="disabled"):
            go_on(model, optimizer, tokens, [1.0] * 20)
    assert watch.step == 24
    assert len([e for e in watch.events if e.kind == "disabled"]) == 1
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_a_model_without_attention_over_tokens_that_slips_through_is_skipped() -> None:
    optimizer = torch.optim.SGD((model := mlp(3, 4, 1)).parameters(), 0.1)
    with pytest.raises(ValueError, match="vocab_size"):
        dp.watch(model, optimizer, Induction())


# --- ranks ----------------------------------------------------------------------------------------


def on_a_rank(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Copier(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probe = Induction(every=8, period=10, sequences=4, dense=2)
    inner = model.module
    assert isinstance(inner, Copier)
    with dp.watch(model, optimizer, probe, on_error="raise") as watch:
        for strength in [0.0] * 20 + [20.0] * 20:
            with torch.no_grad():
                inner.strength.fill_(strength)
            tokens = torch.randint(VOCABULARY, (2, 32))
            optimizer.zero_grad()
            model(tokens).square().mean().backward()
            optimizer.step()
    return {
        "top": values(watch, "top"),
        "formed": [dict(e.detail) for e in watch.events if e.kind == "formed"],
    }


def fails_on_the_second(rank: int) -> tuple[list[str], int]:
    """Train with a model that, on one rank, cannot run what the probe gives it from update 5 on."""

    class Picky(Copier):
        picky = False

        def forward(self, tokens: Tensor) -> Tensor:
            if self.picky and tokens.shape[1] != 32:
                raise RuntimeError("only 32 tokens")
            return super().forward(tokens)

    model = nn.parallel.DistributedDataParallel(Picky(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with dp.watch(model, optimizer, Induction(every=2, period=10, sequences=4)) as watch:
            for update in range(12):
                model.module.picky = rank == 1 and update >= 4
                optimizer.zero_grad()
                model(torch.randint(VOCABULARY, (2, 32))).square().mean().backward()
                optimizer.step()
    return [str(e) for e in watch.events if e.kind == "disabled"], watch.step


def both(rank: int) -> tuple[Any, Any]:
    return on_a_rank(rank), fails_on_the_second(rank)


@pytest.fixture(scope="module")
def ranks() -> list[tuple[Any, Any]]:
    return on_two_ranks(both)


def test_a_failure_on_one_rank_disables_the_probe_on_both_and_nobody_waits(
    ranks: list[tuple[Any, Any]],
) -> None:
    (_, (first, steps)), (_, (second, others)) = ranks
    assert steps == others == 12
    assert len(first) == len(second) == 1
    assert first[0].startswith("update 6") and "on another rank" in first[0]
    assert second[0].startswith("update 6") and "only 32 tokens" in second[0]


def test_two_ranks_read_what_one_reads_and_stay_in_step(ranks: list[tuple[Any, Any]]) -> None:
    (first, _), (second, _) = ranks
    assert first == second
    alone = run(
        Copier(),
        Induction(every=8, period=10, sequences=4, dense=2),
        [0.0] * 20 + [20.0] * 20,
    )
    assert first["top"] == values(alone, "top")
    assert first["formed"][0]["batch_size"] == 4
