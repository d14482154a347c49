"""Copy loss against losses token by token, and models whose loss is known."""

import math
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.functional.copying import copy_loss
from dynamo_probe.functional.unmeasurable import Unmeasurable
from tests.attention_models import VOCAB, Tiny

SMALL = {"period": 6, "copies": 3, "sequences": 3}


class Copier(nn.Module):
    """Is sure of what followed the last copy of a token, and knows nothing of a new one."""

    def __init__(self, sure: float = 1e4) -> None:
        super().__init__()
        self.sure = sure

    def forward(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, VOCAB)
        for b, row in enumerate(tokens.tolist()):
            for p, token in enumerate(row):
                if token in row[:p]:
                    last = max(j for j in range(p) if row[j] == token)
                    logits[b, p, row[last + 1]] = self.sure
        return logits


@settings(max_examples=40)
@given(
    st.integers(2, 9),
    st.integers(2, 5),
    st.one_of(st.none(), st.sampled_from([0, 5, VOCAB - 1])),
    st.integers(0, 99),
)
def test_losses_of_copies_are_those_of_a_loop_over_tokens(period, copies, bos, seed):
    model = Tiny(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    found = copy_loss(
        model, VOCAB, bos=bos, period=period, copies=copies, sequences=3, generator=generator
    )
    begin = int(bos is not None)
    with torch.no_grad():
        logits = model(found.tokens).double()
    by_copy: dict[int, list[float]] = {}
    later: list[list[float]] = []
    for b, row in enumerate(found.tokens.tolist()):
        body = row[begin:]
        lag = body[1:].index(body[0]) + 1
        later.append([])
        for p, token in enumerate(body):
            at = p + begin
            if at == 0:
                continue  # nothing comes before it
            scores = logits[b, at - 1]
            loss = float(scores.exp().sum().log() - scores[token])
            if p >= lag:
                later[-1].append(loss)
            if (p // lag + 1) * lag <= len(body):
                by_copy.setdefault(p // lag, []).append(loss)
    assert found.loss == pytest.approx(fmean(sum(later, [])), abs=1e-5)
    assert found.first == pytest.approx(fmean(by_copy[0]), abs=1e-5)
    assert found.gap == pytest.approx(found.first - found.loss, abs=1e-12)
    assert found.by_copy.tolist() == pytest.approx([fmean(by_copy[k]) for k in by_copy], abs=1e-5)
    assert found.by_sequence.tolist() == pytest.approx([fmean(part) for part in later], abs=1e-5)


@pytest.mark.parametrize("bos", [None, 0])
def test_a_perfect_copier_loses_on_new_tokens_and_at_each_seam_once(bos: int | None):
    found = copy_loss(Copier(), VOCAB, bos=bos, **SMALL)
    assert found.first == pytest.approx(math.log(VOCAB), abs=1e-6)
    # The first token of copy 2 is the only one of the later copies that nothing tells of.
    begin = int(bos is not None)
    later = sum(18 - (row[begin + 1 :].index(row[begin]) + 1) for row in found.tokens.tolist())
    assert found.loss == pytest.approx(3 * math.log(VOCAB) / later, abs=1e-6)
    assert found.by_copy[2:].tolist() == pytest.approx([0.0] * (len(found.by_copy) - 2))


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary():
    found = copy_loss(Copier(sure=0.0), VOCAB, **SMALL)
    assert found.loss == found.first == pytest.approx(math.log(VOCAB), abs=1e-6)
    assert found.gap == 0.0


@pytest.mark.parametrize("bos", [None, 3])
def test_a_paragraph_is_repeated_as_hernandez_repeats_it(bos: int | None):
    paragraph = torch.tensor([7, 1, 7, 2, 9])
    found = copy_loss(Copier(), paragraph=paragraph, copies=11, bos=bos)
    want = paragraph.tolist() * 11
    assert found.tokens.tolist() == [want if bos is None else [bos, *want]]
    assert len(found.by_copy) == 11
    # 7 is followed by 1 and by 2 in turn: the last copy always points to the wrong one. That, and
    # the seam that copy 2 begins with, is all that is lost; a miss costs the copier's whole 1e4.
    misses = 2 * 10
    assert found.loss == pytest.approx((1e4 * misses + math.log(VOCAB)) / 50, rel=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"paragraph": torch.tensor([1])},
        {"paragraph": torch.tensor([[1, 2]])},
        {"paragraph": torch.tensor([1.0, 2.0])},
        {"paragraph": [1, 2, 3]},
        {"paragraph": torch.tensor([1, 2]), "copies": 1},
        {},
    ],
)
def test_wrong_arguments_raise_at_once(wrong: dict):
    with pytest.raises(ValueError, match="paragraph"):
        copy_loss(Tiny(), **wrong)


@pytest.mark.parametrize("kind", ["tuple", "dict", "object", "loss first"])
def test_outputs_of_every_kind_give_the_same_loss(kind: str):
    class Model(Tiny):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None):
            logits = super().forward(tokens)
            return {
                "tuple": (logits, None),
                "dict": {"logits": logits},
                "object": type("Output", (), {"logits": logits})(),
                "loss first": (logits.mean(), logits),
            }[kind]

    assert copy_loss(Model(), VOCAB, **SMALL).loss == copy_loss(Tiny(), VOCAB, **SMALL).loss


def test_logits_for_the_last_token_alone_are_an_error_that_a_call_mends():
    class Last(Tiny):
        def forward(self, tokens, targets=None):  # as nanoGPT has it
            logits = super().forward(tokens)
            return (logits, None) if targets is not None else (logits[:, -1:], None)

    with pytest.raises(ValueError, match="unless they are given targets"):
        copy_loss(Last(), VOCAB, **SMALL)
    found = copy_loss(Last(), VOCAB, call=lambda model, tokens: model(tokens, tokens), **SMALL)
    assert found.loss == copy_loss(Tiny(), VOCAB, **SMALL).loss


def test_a_loss_that_is_not_finite_is_an_error_and_not_a_number():
    model = Tiny()
    with torch.no_grad():
        model.head.bias[3] = float("nan")
    with pytest.raises(Unmeasurable, match="not finite"):
        copy_loss(model, VOCAB, **SMALL)


@pytest.mark.parametrize("vocab", [VOCAB - 10, VOCAB + 10])
def test_a_vocabulary_that_the_model_lacks_is_an_error(vocab: int):
    model = Tiny()
    if vocab > VOCAB:
        match = r"ids from \d+ to \d+ for 40 embeddings"
    else:
        model.head = nn.Linear(24, 20)
        match = "lower vocab_size"
    with pytest.raises(ValueError, match=match):
        copy_loss(model, vocab, period=20, copies=2, sequences=4)


def test_the_model_is_left_as_it_was():
    model = Tiny().train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    copy_loss(model, VOCAB, **SMALL)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_dropout_is_off():
    class Dropped(Tiny):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return F.dropout(super().forward(tokens), 0.5, self.training)

    assert copy_loss(Dropped().train(), VOCAB, **SMALL).loss == copy_loss(
        Tiny(), VOCAB, **SMALL
    ).loss  # fmt: skip
