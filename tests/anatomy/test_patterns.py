"""Attention written by hand, in many spellings, against patterns from the weights in NumPy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from dynamo_probe.anatomy.heads import HeadTap
from dynamo_probe.functional.heads import head_scores
from dynamo_probe.functional.unmeasurable import Unmeasurable
from tests.attention_models import (
    SMALL,
    VOCAB,
    Tiny,
    causal_bias,
    chances_of,
    figures_of,
    naive_scores,
    patterns_of,
)


def products(query: Tensor, key: Tensor) -> Tensor:
    size = query.shape[-2]
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    return (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(later, -torch.inf)


def at(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return products(q, k).softmax(-1) @ v


def matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.matmul(F.softmax(products(q, k), dim=-1), v)


def method(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(products(q, k), 3).matmul(v)


def keyword(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.matmul(torch.softmax(input=products(q, k), dim=-1), other=v)


def merged(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    batch = len(q)
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    return torch.bmm(F.softmax(products(q, k), -1), v).unflatten(0, (batch, -1))


def merged_late(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    pattern = products(q, k).softmax(-1).flatten(0, 1)
    return pattern.bmm(v.flatten(0, 1)).unflatten(0, (len(q), -1))


def heads_first(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    return (products(q, k).softmax(-1) @ v).transpose(0, 1)


def heads_first_late(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return (products(q, k).softmax(-1).transpose(0, 1) @ v.transpose(0, 1)).transpose(0, 1)


def dropped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.dropout(products(q, k).softmax(-1), 0.3, training=False) @ v


def cast(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.softmax(products(q, k), -1, dtype=torch.float64).to(q.dtype).type_as(v) @ v


def one_head_at_a_time(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    parts = [
        products(a, b).softmax(-1) @ c
        for a, b, c in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True)
    ]
    return torch.stack(parts, 1)


def letters(equation: str, swap: bool = False):
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        pattern = products(q, k).softmax(-1)
        value = v.transpose(1, 2) if equation.replace(" ", "").split("->")[0].endswith("jhd") else v
        if swap:
            value = v.transpose(1, 2) if equation.startswith("bjhd") else v
            out = torch.einsum(equation, value, pattern)
        else:
            out = torch.einsum(equation, pattern, value)
        return out.transpose(1, 2) if out.shape[1] != q.shape[1] else out

    return attend


def einops_letters(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    pattern = products(q, k).softmax(-1)
    return einsum(pattern, v, "b head query key, b head key d -> b head query d")


def einsum_all(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (rearrange(part, "b h t d -> b t h d") for part in (q, k, v))
    size = q.shape[1]
    scores = torch.einsum("blhe,bshe->bhls", q, k) / math.sqrt(q.shape[-1])
    scores = scores + torch.full((size, size), -torch.inf).triu(1)
    out = torch.einsum("bhls,bshd->blhd", torch.softmax(scores, dim=-1), v)
    return out.transpose(1, 2)


def queries_before_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (rearrange(part, "b h t d -> b t h d") for part in (q, k, v))
    size = q.shape[1]
    scores = torch.einsum("bqhd,bkhd->bqhk", q, k) / math.sqrt(q.shape[-1])
    scores = scores + torch.full((size, size), -torch.inf).triu(1)[:, None]
    return torch.einsum("bqhk,bkhd->bqhd", scores.softmax(-1), v).transpose(1, 2)


SPELLINGS = {
    "@": at,
    "torch.matmul, F.softmax": matmul,
    "method, dim 3": method,
    "keywords": keyword,
    "bmm of batch * heads": merged,
    "merged after the softmax": merged_late,
    "heads before batch": heads_first,
    "heads before batch, after the softmax": heads_first_late,
    "dropout": dropped,
    "casts": cast,
    "einsum bhij,bhjd->bhid": letters("bhij,bhjd->bhid"),
    "einsum bhij,bjhd->bihd": letters("bhij,bjhd->bihd"),
    "einsum with spaces": letters("b h i j, b h j d -> b h i d"),
    "einsum, values first": letters("bhjd,bhij->bhid", swap=True),
    "einsum, values first, heads later": letters("bjhd,bhij->bihd", swap=True),
    "einsum with an ellipsis": letters("...ij,...jd->...id"),
    "einsum, other letters": letters("nhqk,nhkx->nhqx"),
    "einops": einops_letters,
    "einsum throughout": einsum_all,
    "einsum, queries before heads": queries_before_heads,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_attention_written_by_hand_scores_as_the_weights_say(name: str):
    model = Tiny(SPELLINGS[name])
    found = head_scores(model, VOCAB, **SMALL)
    bias = causal_bias(found.tokens.shape[1])
    want = naive_scores(patterns_of(model, found.tokens, bias), found.tokens)
    assert found.layers == ("layers.0", "layers.1") and not found.skipped
    for score, figure in figures_of(found).items():
        np.testing.assert_allclose(figure, want[score], rtol=0, atol=1e-6)
    kernel = head_scores(Tiny(), VOCAB, **SMALL)
    torch.testing.assert_close(chances_of(found), chances_of(kernel))


def test_each_head_by_itself_is_a_call_of_its_own():
    model = Tiny(one_head_at_a_time, layers=1)
    found = head_scores(model, VOCAB, **SMALL)
    assert found.layers == ("layers.0", "layers.0#2", "layers.0#3", "layers.0#4")
    want = naive_scores(patterns_of(model, found.tokens, causal_bias(18)), found.tokens)
    np.testing.assert_allclose(
        found.prefix_matching[:, 0], want["prefix_matching"][0], rtol=0, atol=1e-6
    )


def test_values_shared_by_all_heads():
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return torch.einsum("bhij,bjd->bhid", products(q, k).softmax(-1), v[:, 0])

    model = Tiny(attend, groups=1)
    found = head_scores(model, VOCAB, **SMALL)
    want = naive_scores(patterns_of(model, found.tokens, causal_bias(18)), found.tokens)
    np.testing.assert_allclose(found.prefix_matching, want["prefix_matching"], rtol=0, atol=1e-6)


def test_a_softmax_module_and_a_dropout_module():
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.softmax, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.5)

        def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return self.dropout(self.softmax(products(q, k))) @ v

    model = Tiny(Attend()).train()
    found = head_scores(model, VOCAB, **SMALL)
    want = naive_scores(patterns_of(model, found.tokens, causal_bias(18)), found.tokens)
    np.testing.assert_allclose(found.prefix_matching, want["prefix_matching"], rtol=0, atol=1e-6)


def test_heads_merged_with_the_batch_are_told_apart_whatever_their_numbers():
    for sequences in (1, 4, 5):  # 4 heads: with 4 sequences both axes have one size
        for attend in (merged, heads_first, heads_first_late):
            found = head_scores(Tiny(attend), VOCAB, period=6, copies=3, sequences=sequences)
            want = head_scores(Tiny(), VOCAB, period=6, copies=3, sequences=sequences)
            torch.testing.assert_close(
                found.prefix_matching, want.prefix_matching, rtol=0, atol=1e-6
            )


@pytest.mark.parametrize("pattern_of", ["head", "all"])
def test_a_pattern_that_is_the_same_for_all_sequences(pattern_of: str):
    torch.manual_seed(0)
    fixed = torch.randn(4, 18, 18)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        size = q.shape[-2]
        bias = torch.full((size, size), -torch.inf).triu(1)
        pattern = (fixed[:, :size, :size] + bias).softmax(-1)
        return (pattern if pattern_of == "head" else pattern[None]) @ v

    found = head_scores(Tiny(attend, layers=1), VOCAB, **SMALL)
    later = np.triu(np.full((18, 18), -np.inf), 1)
    weights = np.exp(fixed.double().numpy() + later)
    weights = np.broadcast_to(weights / weights.sum(-1, keepdims=True), (3, 4, 18, 18))
    want = naive_scores([weights], found.tokens)
    np.testing.assert_allclose(found.prefix_matching, want["prefix_matching"], atol=1e-6)


def test_a_mask_after_the_softmax_takes_its_keys_out_of_chance_too():
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        pattern = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return pattern.tril() @ v

    found = head_scores(Tiny(attend), VOCAB, **SMALL)
    torch.testing.assert_close(
        found.chances["prefix_matching"],
        head_scores(Tiny(), VOCAB, **SMALL).chances["prefix_matching"],
    )


# --- what cannot be followed ---


def no_followed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    pattern = products(q, k).softmax(-1)
    return torch.stack([pattern, pattern]).sum(0) / 2 @ v


def by_exp(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    powers = products(q, k).exp()
    return powers / powers.sum(-1, keepdim=True) @ v


def by_log_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return products(q, k).log_softmax(-1).exp() @ v


def values_on_the_left(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return (v.mT @ products(q, k).softmax(-1).mT).mT


def over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return (q @ k.mT).softmax(-2) @ v


def talking_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    mixed = torch.einsum("bhij,hg->bgij", products(q, k).softmax(-1), torch.eye(4))
    return mixed @ v


def negative(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    one, two = products(q, k).softmax(-1), products(k, q).softmax(-1)
    return (one - 0.5 * two) @ v


@pytest.mark.parametrize(
    "attend",
    [
        no_followed,
        by_exp,
        by_log_softmax,
        values_on_the_left,
        over_queries,
        talking_heads,
        negative,
    ],
)
def test_what_cannot_be_followed_is_an_error_and_not_zeros(attend):
    with pytest.raises(Unmeasurable):
        head_scores(Tiny(attend), VOCAB, **SMALL)


def test_a_softmax_whose_product_is_not_seen_is_named_beside_layers_that_are():
    model = Tiny()
    model.layers[0].attend = values_on_the_left
    found = head_scores(model, VOCAB, **SMALL)
    assert found.layers == ("layers.1",)
    assert "not its product with the values" in found.skipped["layers.0"]


@pytest.mark.parametrize("slots", [9, 16, 18])
def test_a_softmax_over_other_things_than_tokens_is_named_and_left_alone(slots: int):
    class Memory(Tiny):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            x = self.tokens(tokens)[..., :slots].softmax(-1) @ torch.ones(slots, 5)
            return super().forward(tokens) + x.mean()

    found = head_scores(Memory(), VOCAB, **SMALL)
    assert found.layers == ("layers.0", "layers.1")
    assert found.skipped.keys() == {""}
    want = head_scores(Tiny(), VOCAB, **SMALL)
    assert torch.equal(found.prefix_matching, want.prefix_matching)


@pytest.mark.parametrize("memory", [9, 16, 18])
def test_cross_attention_by_hand_is_named(memory: int):
    torch.manual_seed(0)
    other = torch.randn(memory, 24)

    class Cross(Tiny):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            x = self.tokens(tokens)
            keys = other.expand(len(x), -1, -1)
            return super().forward(tokens) + ((x @ keys.mT).softmax(-1) @ keys).mean()

    found = head_scores(Cross(), VOCAB, **SMALL)
    assert found.layers == ("layers.0", "layers.1")
    assert found.skipped[""].startswith("cross-attention")


def test_probabilities_of_tokens_are_no_attention():
    class Sampler(Tiny):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            logits = super().forward(tokens)
            torch.multinomial(logits.softmax(-1)[:, -1], 1)
            return logits

    found = head_scores(Sampler(), VOCAB, **SMALL)
    assert found.layers == ("layers.0", "layers.1") and not found.skipped


def test_a_product_that_sums_over_heads_is_left_alone():
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        pattern = products(q, k).softmax(-1)
        torch.einsum("bhij,bhjd->bid", pattern, v)
        return pattern @ v

    found = head_scores(Tiny(attend), VOCAB, **SMALL)
    torch.testing.assert_close(
        found.prefix_matching,
        head_scores(Tiny(), VOCAB, **SMALL).prefix_matching,
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_replaces_an_output_comes_out_in_the_layout_of_the_model(name: str):
    model = Tiny(SPELLINGS[name], layers=1).eval()
    tokens = torch.arange(9).repeat(2, 1)
    tokens[1] += 9
    with torch.no_grad():
        plain = model(tokens)
        with HeadTap(model, lambda call: call.output.clone()).on():
            same = model(tokens)
        with HeadTap(model, lambda call: call.pattern @ call.value).on():
            again = model(tokens)
    assert torch.equal(same, plain)
    torch.testing.assert_close(again, plain)


def test_a_softmax_over_queries_is_no_call_of_attention():
    seen = []
    model = Tiny(over_queries)
    with HeadTap(model, seen.append).on():
        model(torch.arange(9)[None])
    assert not seen
