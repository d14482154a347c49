"""The in-context learning score against losses that are set by hand, and its bounds."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.functional.in_context import (
    InContextScore,
    in_context_from,
    in_context_learning_score,
)
from dynamo_probe.functional.unmeasurable import Unmeasurable

VOCAB = 7


class Planted(nn.Module):
    """Gives the next token a logit that is set for its position; all others have 0."""

    def __init__(self, length: int, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.logit = nn.Parameter(torch.randn(length, generator=random, dtype=torch.float64) * 2)
        self.batches: list[int] = []
        self.masks: list[Tensor | None] = []
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.batches.append(len(tokens))
        self.masks.append(attention_mask)
        following = torch.nn.functional.one_hot(tokens.roll(-1, 1), VOCAB).double()
        return self.dropout(following * self.logit[: tokens.shape[1], None])

    def loss(self, position: int) -> float:
        """Cross-entropy of the token at a position, from its definition."""
        logit = self.logit[position - 1].item()
        return math.log(math.exp(logit) + VOCAB - 1) - logit


def texts(count: int, length: int) -> Tensor:
    return torch.randint(0, VOCAB, (count, length), generator=torch.Generator().manual_seed(1))


def test_it_is_the_loss_of_token_500_less_that_of_token_50():
    model = Planted(512)
    score = in_context_learning_score(model, texts(5, 512))
    assert score == pytest.approx(model.loss(500) - model.loss(50), abs=1e-12)
    assert (score.early, score.late, score.samples, score.left_out) == (50, 500, 5, 0)


@given(st.integers(3, 511))
def test_in_shorter_texts_both_tokens_move_to_the_same_share_of_the_length(length: int):
    model = Planted(length)
    score = in_context_learning_score(model, texts(2, length))
    early, late = round(50 * length / 512), round(500 * length / 512)
    assert (score.early, score.late) == (max(1, early), min(late, length - 1))
    assert 1 <= score.early < score.late < length
    assert score == pytest.approx(model.loss(score.late) - model.loss(score.early), abs=1e-12)


def test_positions_that_are_named_are_not_moved():
    model = Planted(40)
    score = in_context_learning_score(model, texts(3, 40), early=1, late=39)
    assert (score.early, score.late) == (1, 39)
    assert score == pytest.approx(model.loss(39) - model.loss(1), abs=1e-12)


def test_batches_bound_the_memory_and_change_nothing():
    model, tokens = Planted(64), texts(10, 64)
    whole = in_context_learning_score(model, tokens)
    model.batches.clear()
    parts = in_context_learning_score(model, tokens, batch_size=4)
    assert model.batches == [4, 4, 2]
    assert parts == pytest.approx(whole, abs=1e-12) and parts.samples == 10


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_counted_from_where_a_padded_text_begins(side: str):
    model, length = Planted(20), 20
    tokens, mask = texts(3, length), torch.ones(3, length, dtype=torch.long)
    for row, padding in enumerate((0, 2, 6)):
        mask[row, slice(0, padding) if side == "left" else slice(length - padding, length)] = 0
    score = in_context_learning_score(model, tokens, early=3, late=15, attention_mask=mask)
    starts = (0, 2) if side == "left" else (0, 0)
    wanted = [model.loss(start + 15) - model.loss(start + 3) for start in starts]
    assert score == pytest.approx(sum(wanted) / 2, abs=1e-12)
    assert (score.samples, score.left_out) == (2, 1)
    assert model.masks[0] is not None and model.masks[0].shape == (2, length)


def test_a_text_that_ends_at_the_late_token_still_counts():
    mask = torch.tensor([[1] * 16 + [0] * 4, [1] * 15 + [0] * 5])
    score = in_context_learning_score(
        Planted(20), texts(2, 20), early=3, late=15, attention_mask=mask
    )
    assert (score.samples, score.left_out) == (1, 1)


def test_losses_at_hand_give_the_same_score():
    model, tokens = Planted(64), texts(4, 64)
    losses = torch.tensor([[model.loss(position) for position in range(1, 64)]] * 4)
    wanted = in_context_learning_score(model, tokens)
    found = in_context_from(losses)
    assert (found.early, found.late, found.samples) == (wanted.early, wanted.late, 4)
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_model_that_predicts_all_tokens_alike_has_no_gain():
    model = nn.Sequential(nn.Embedding(VOCAB, VOCAB))
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    assert in_context_learning_score(model, texts(4, 64)) == 0.0


def test_the_model_is_left_as_it_was():
    model = Planted(64)
    state, mode = torch.get_rng_state(), model.training
    in_context_learning_score(model, texts(4, 64))
    assert torch.equal(torch.get_rng_state(), state) and model.training is mode
    assert model.logit.grad is None


def test_a_score_survives_copies_and_reads_as_a_float():
    score = InContextScore(-0.5, 6, 62, 4, 1)
    for made in (copy.copy(score), copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert isinstance(made, InContextScore) and made == -0.5
        assert (made.early, made.late, made.samples, made.left_out) == (6, 62, 4, 1)
    assert isinstance(score, float) and f"{score:.2f}" == "-0.50"


def test_a_model_given_in_other_arguments_is_run_by_call():
    class Named(Planted):
        def forward(self, ids: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"logits": super().forward(ids)}

    model = Named(64)
    score = in_context_learning_score(model, texts(2, 64), call=lambda m, t: m(ids=t))
    assert score == pytest.approx(model.loss(62) - model.loss(6), abs=1e-12)


def test_a_loss_that_is_not_finite_is_said_to_be_so():
    model = Planted(64)
    with torch.no_grad():
        model.logit[61] = float("nan")
    with pytest.raises(Unmeasurable, match="not finite"):
        in_context_learning_score(model, texts(2, 64))
    with pytest.raises(Unmeasurable, match="not finite"):
        in_context_from(torch.tensor([[1.0, float("inf")]]), early=1, late=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"early": 0, "late": 5}, "has no loss"),
        ({"early": 5, "late": 5}, "early < late"),
        ({"early": 5, "late": 64}, "late <= 63"),
        ({"early": 50, "late": 501}, "late <= 63"),
        ({"early": 1.5}, "early is 1.5"),
        ({"late": True}, "late is True"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"attention_mask": torch.ones(2, 63)}, "attention_mask has shape"),
        ({"attention_mask": torch.tensor([1, 0, 1] + [1] * 61).repeat(2, 1)}, "padding inside"),
        ({"attention_mask": torch.zeros(2, 64)}, "no text has more than"),
    ],
)
def test_bad_arguments_are_refused_with_the_fix(arguments: dict, says: str):
    with pytest.raises(ValueError, match=says):
        in_context_learning_score(Planted(64), texts(2, 64), **arguments)


@pytest.mark.parametrize(
    "tokens", [torch.zeros(4, 2).long(), torch.zeros(4).long(), torch.rand(2, 9)]
)
def test_what_are_no_texts_is_refused(tokens: Tensor):
    with pytest.raises(ValueError, match="tokens"):
        in_context_learning_score(Planted(64), tokens)


@pytest.mark.parametrize(
    "losses", [torch.rand(3), torch.rand(0, 5), torch.rand(2, 1), [[1.0, 2.0]]]
)
def test_what_are_no_losses_is_refused(losses: Tensor):
    with pytest.raises(ValueError, match="losses have"):
        in_context_from(losses)
