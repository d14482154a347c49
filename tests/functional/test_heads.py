"""Scores of heads against loops over patterns that NumPy computes from the weights in float64."""

import math
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_probe.functional.heads import head_scores
from dynamo_probe.functional.repeated_tokens import repeated_tokens
from dynamo_probe.functional.unmeasurable import Unmeasurable
from tests.attention_models import (
    SMALL,
    VOCAB,
    Tiny,
    assert_equal,
    causal,
    causal_bias,
    chances_of,
    figures_of,
    naive_scores,
    patterns_of,
    soft,
)


def reference(model: Tiny, tokens: Tensor, bias: np.ndarray | None = None, kept=None):
    bias = causal_bias(tokens.shape[1], kept) if bias is None else bias
    return naive_scores(patterns_of(model, tokens, bias), tokens, kept)


# --- against the weights, in NumPy ---


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bos", [None, 0, 7, VOCAB - 1])
def test_scores_equal_loops_over_the_patterns_of_the_weights(groups: int, bos: int | None):
    model = Tiny(_grouped if groups < 4 else causal, groups=groups)
    found = head_scores(model, VOCAB, bos=bos, **SMALL)
    assert found.prefix_matching.shape == (2, 4) and found.layers == ("layers.0", "layers.1")
    assert found.prefix_matching.dtype == torch.float64
    assert_equal(found, reference(model, found.tokens))


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def test_a_model_in_float64_agrees_to_rounding():
    model = Tiny().double()
    found = head_scores(model, VOCAB, **SMALL)
    assert_equal(found, reference(model, found.tokens), 1e-13)


def test_a_model_in_bfloat16_agrees_to_three_digits():
    # Activations are rounded to 8 bits at every step; the reference has the same weights.
    model = Tiny(sharpness=1.0).bfloat16()
    found = head_scores(model, VOCAB, **SMALL)
    assert_equal(found, reference(model, found.tokens), 2e-3)


@pytest.mark.parametrize("sharpness", [20.0, 60.0])
def test_products_of_hundreds_are_scored_to_float32s_own_rounding_of_them(sharpness: float):
    model = Tiny(layers=1, sharpness=sharpness)
    with torch.no_grad():
        model.tokens.weight *= 3
    found = head_scores(model, VOCAB, **SMALL)
    with torch.no_grad():
        query = model.layers[0].query(model.tokens.weight).unflatten(-1, (4, -1))
        key = model.layers[0].key(model.tokens.weight).unflatten(-1, (4, -1))
    largest = float((torch.einsum("ahd,bhd->hab", query, key) / math.sqrt(6)).abs().max())
    assert largest > 100
    # A weight moves with its product, of which float32 keeps 24 bits after some 30 additions.
    assert_equal(found, reference(model, found.tokens), 4 * largest * 2.0**-24)
    exact = head_scores(model.double(), VOCAB, **SMALL)
    assert_equal(exact, reference(model, exact.tokens), 1e-11)


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_padding_is_neither_query_nor_key(side: str):
    torch.manual_seed(1)
    tokens = repeated_tokens(VOCAB, **SMALL)
    kept = np.ones(tokens.shape, bool)
    for b in range(len(tokens)):
        cut = {"left": slice(0, 2 + b), "right": slice(18 - 2 - b, 18), "holes": slice(4, 9, 2)}
        kept[b, cut[side]] = False
    mask = torch.from_numpy(kept).long()
    model = Tiny()
    found = head_scores(model, VOCAB, tokens=tokens, attention_mask=mask)
    assert_equal(found, reference(model, tokens, kept=kept))
    uniform = soft(np.broadcast_to(causal_bias(18, kept), (3, 1, 18, 18)))
    chance = naive_scores([uniform], tokens, kept)
    for name, figure in chances_of(found).items():
        np.testing.assert_allclose(figure, float(chance[name][0, 0]), atol=1e-12)


def test_a_sliding_window_hides_far_successors_and_chance_and_reach_say_so():
    length, window = 18, 5
    near = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        size = query.shape[-2]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=near[:size, :size])

    model = Tiny(attend)
    found = head_scores(model, VOCAB, **SMALL)
    bias = np.where(near.numpy(), 0.0, -np.inf)[None, None]
    assert_equal(found, reference(model, found.tokens, bias))
    chance = naive_scores([soft(np.broadcast_to(bias, (3, 1, 18, 18)))], found.tokens)
    np.testing.assert_allclose(
        found.chances["prefix_matching"], float(chance["prefix_matching"][0, 0]), atol=1e-12
    )
    reached, repeated = 0, 0
    for row in found.tokens.tolist():
        for p, token in enumerate(row):
            keys = [j + 1 for j in range(p) if row[j] == token]
            repeated += bool(keys)
            reached += any(near[p, k] for k in keys)
    assert 0 < reached < repeated
    np.testing.assert_allclose(found.reachable, reached / repeated, atol=1e-12)


@pytest.mark.parametrize("shape", ["TT", "1TT", "HTT", "11TT", "1HTT", "B1TT", "BHTT", "B11T"])
@pytest.mark.parametrize("kind", ["bool", "additive", "alibi"])
def test_masks_of_every_shape(shape: str, kind: str):
    sizes = {"B": 3, "H": 4, "T": 18, "1": 1}
    generator = torch.Generator().manual_seed(3)
    whole = torch.rand(3, 4, 18, 18, generator=generator) < 0.7
    whole |= torch.eye(18, dtype=torch.bool)
    cut = tuple(slice(0, sizes[s]) for s in shape.rjust(4, "1"))
    free = whole[cut].reshape([sizes[s] for s in shape])
    additive = torch.where(free, 0.0, float("-inf"))
    if kind == "alibi":
        slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None]
        distance = torch.arange(18)[None, :] - torch.arange(18)[:, None]
        bias = (slopes * distance)[cut[1]]
        additive = additive + (bias if shape != "TT" else bias[0])

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        chosen = free if kind == "bool" else additive
        size, batch = query.shape[-2], query.shape[0]
        columns = chosen[..., :size]
        columns = columns[..., :size, :] if columns.shape[-2] > 1 else columns
        columns = columns[:batch] if shape[0] == "B" else columns
        return F.scaled_dot_product_attention(query, key, value, attn_mask=columns)

    model = Tiny(attend)
    found = head_scores(model, VOCAB, **SMALL)
    bias = additive.double().numpy()
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    assert_equal(found, reference(model, found.tokens, bias))


def test_rows_that_attend_to_nothing_count_as_zero_mass():
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        size = query.shape[-2]
        free = torch.ones(size, size, dtype=torch.bool).tril()
        free[::3] = False
        return F.scaled_dot_product_attention(query, key, value, attn_mask=free)

    model = Tiny(attend)
    found = head_scores(model, VOCAB, **SMALL)
    free = np.tril(np.ones((18, 18), bool))
    free[::3] = False
    assert_equal(found, reference(model, found.tokens, np.where(free, 0.0, -np.inf)[None, None]))


# --- patterns made by hand ---


class Fixed(nn.Module):
    """Attention with products that are a function of the tokens."""

    def __init__(self, products_of) -> None:
        super().__init__()
        self.tokens, self.products_of = nn.Embedding(VOCAB, VOCAB), products_of

    def forward(self, tokens: Tensor) -> Tensor:
        value = self.tokens(tokens)[:, None]
        size = tokens.shape[1]
        bias = self.products_of(tokens)[:, None] + torch.full((size, size), -torch.inf).triu(1)
        zero = torch.zeros(len(tokens), 1, size, 8)
        return F.scaled_dot_product_attention(zero, zero, value, attn_mask=bias)[:, 0]


def induction(tokens: Tensor) -> Tensor:
    same = tokens[:, :, None] == tokens[:, None, :]
    before = F.pad(same[:, :, :-1], (1, 0)).tril()  # key k follows a copy of the query
    return torch.where(before | ~before.any(-1, keepdim=True), 0.0, -1e4)


def previous(tokens: Tensor) -> Tensor:
    size = tokens.shape[1]
    step = torch.ones(size, size).tril(-1).triu(-1)
    step[0, 0] = 1
    return torch.where(step > 0, 0.0, -1e4).expand(len(tokens), -1, -1)


@pytest.mark.parametrize("bos", [None, 0])
def test_a_perfect_induction_head_scores_one_and_not_more(bos: int | None):
    found = head_scores(Fixed(induction), VOCAB, bos=bos, **SMALL)
    # Two successors share the mass, each exp(-ln 2) in float32.
    assert found.prefix_matching.item() == pytest.approx(1.0, abs=2.0**-24)
    assert found.second_copy["prefix_matching"].item() == 1.0
    assert found.duplicate_token.item() == 0.0


def test_a_perfect_previous_token_head_scores_one():
    found = head_scores(Fixed(previous), VOCAB, **SMALL)
    assert found.previous_token.item() == 1.0
    assert found.prefix_matching.item() == found.duplicate_token.item() == 0.0
    # The sink is the token before for the second position alone.
    assert found.sink.item() == pytest.approx(1 / 17, abs=1e-15)


def test_a_sink_at_the_first_position_scores_one_as_a_sink_only():
    def products(tokens: Tensor) -> Tensor:
        first = torch.full((tokens.shape[1],), -1e4)
        first[0] = 0
        return first.expand(*tokens.shape, -1)

    found = head_scores(Fixed(products), VOCAB, bos=0, **SMALL)
    assert found.sink.item() == 1.0
    assert found.prefix_matching.item() == 0.0


@pytest.mark.parametrize("bos", [None, 0, 3])
def test_uniform_attention_scores_chance_in_closed_form(bos: int | None):
    found = head_scores(
        Fixed(lambda tokens: torch.zeros(*tokens.shape, tokens.shape[1])), VOCAB, bos=bos, **SMALL
    )
    begin = int(bos is not None)
    length = 18 + begin
    prefix = repeated = second = once = 0
    for row in found.tokens.tolist():
        lag = row[begin + 1 :].index(row[begin]) + 1
        for p in range(begin + lag, length):
            copies = (p - begin) // lag
            prefix, repeated = prefix + copies / (p + 1), repeated + 1
            if copies == 1:
                second, once = second + 1 / (p + 1), once + 1
    harmonic = sum(1 / (p + 1) for p in range(1, length)) / (length - 1)
    want = {
        "prefix_matching": prefix / repeated,
        "second_copy prefix_matching": second / once,
        "second_copy duplicate_token": second / once,
        "duplicate_token": prefix / repeated,
        "previous_token": harmonic,
        "sink": harmonic,
    }
    for name, value in want.items():
        assert figures_of(found)[name].item() == pytest.approx(value, abs=1e-7)
        assert chances_of(found)[name].item() == pytest.approx(value, abs=1e-12)
    assert found.chance == pytest.approx(prefix / repeated, abs=1e-12)


def test_chance_at_olssons_setting_is_three_percent():
    tokens = torch.cat([torch.tensor([0]), torch.arange(1, 26).repeat(4)])[None]
    found = head_scores(Tiny(context=101), VOCAB, tokens=tokens)
    want = sum((p - 1) // 25 / (p + 1) for p in range(26, 101)) / 75
    assert found.chance == pytest.approx(want, abs=1e-12)
    assert want == pytest.approx(0.03, abs=1e-3)


def test_a_query_without_an_earlier_copy_gives_nan_and_not_zero():
    tokens = torch.arange(12)[None]
    found = head_scores(Tiny(), VOCAB, tokens=tokens)
    assert found.prefix_matching.isnan().all() and found.duplicate_token.isnan().all()
    assert (found.previous_token > 0).all()


@settings(max_examples=30)
@given(st.data())
def test_scores_are_shares_and_equal_the_loops_whatever_the_tokens(data: st.DataObject):
    tokens = data.draw(st.lists(st.lists(st.integers(0, 6), min_size=9, max_size=9), min_size=1))
    model = Tiny(seed=data.draw(st.integers(0, 99)))
    given_tokens = torch.tensor(tokens[:3])
    found = head_scores(model, VOCAB, tokens=given_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 where nothing is repeated
        want = reference(model, given_tokens)
    assert_equal(found, want)
    for values in figures_of(found).values():
        assert bool(((values >= 0) & (values <= 1 + 1e-6) | values.isnan()).all())


@settings(max_examples=20)
@given(
    st.integers(2, 8),
    st.integers(2, 4),
    st.one_of(st.none(), st.integers(0, VOCAB)),
    st.integers(0, 99),
)
def test_scores_equal_the_loops_whatever_the_period_copies_and_bos(period, copies, bos, seed):
    model = Tiny(seed=seed)
    if bos == VOCAB:
        bos = VOCAB - 1
    generator = torch.Generator().manual_seed(seed)
    found = head_scores(
        model, VOCAB, bos=bos, period=period, copies=copies, sequences=2, generator=generator
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert_equal(found, reference(model, found.tokens))


def test_top_gives_the_highest_first():
    found = head_scores(Tiny(), VOCAB, **SMALL)
    flat = sorted(
        ((float(found.sink[la, h]), (la, h)) for la in range(2) for h in range(4)), reverse=True
    )
    assert found.top(3, "sink") == [pair for _, pair in flat[:3]]


def test_layers_with_fewer_heads_are_filled_with_nan():
    model = Tiny()
    model.layers[1] = Tiny(heads=2).layers[1]
    found = head_scores(model, VOCAB, **SMALL)
    assert found.prefix_matching[1].isnan().tolist() == [False, False, True, True]
    assert (1, 2) not in found.top(8) and len(found.top(8)) == 6


# --- what is refused ---


class Wrapped(nn.Module):
    """A model around a function of (embeddings, tokens)."""

    def __init__(self, run) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.run = nn.Embedding(VOCAB, 32), run

    def forward(self, tokens: Tensor) -> Tensor:
        return self.run(self.tokens(tokens), tokens)


@pytest.mark.parametrize("channels", [18, 17, 16, 32])
def test_attention_over_channels_is_refused_also_with_as_many_channels_as_tokens(channels: int):
    def run(x: Tensor, tokens: Tensor) -> Tensor:
        x = x[..., :channels].mT
        return F.scaled_dot_product_attention(x, x, x).mT

    with pytest.raises(Unmeasurable, match=rf"attention over {channels} x {channels} positions"):
        head_scores(Wrapped(run), VOCAB, **SMALL)


@pytest.mark.parametrize("channels", [16, 18])
def test_attention_over_channels_beside_tokens_is_skipped_with_the_reason(channels: int):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tiny = Tiny()

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.tiny.tokens(tokens)[..., :channels].mT
            return self.tiny(tokens) + F.scaled_dot_product_attention(x, x, x).mT.mean()

    model = Both()
    found = head_scores(model, VOCAB, **SMALL)
    assert found.layers == ("tiny.layers.0", "tiny.layers.1")
    assert f"{channels} x {channels} positions" in found.skipped[""]
    assert_equal(found, reference(model.tiny, found.tokens))


@pytest.mark.parametrize("extra", [1, 5])
def test_attention_with_added_tokens_is_refused(extra: int):
    def run(x: Tensor, tokens: Tensor) -> Tensor:
        x = torch.cat([x.new_ones(len(x), extra, 32), x], 1)
        return F.scaled_dot_product_attention(x, x, x)

    with pytest.raises(Unmeasurable, match="added tokens"):
        head_scores(Wrapped(run), VOCAB, **SMALL)


def test_attention_over_the_batch_is_refused():
    layer = nn.TransformerEncoderLayer(32, 4, 32)  # sequence first, given batch first
    with pytest.raises(Unmeasurable, match="1 x 1 positions"):
        head_scores(Wrapped(lambda x, tokens: layer(x)), VOCAB, **SMALL)


@pytest.mark.parametrize("how", ["shifted", "reversed"])
def test_attention_at_other_positions_than_the_tokens_is_refused(how: str):
    class Moved(Tiny):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            if how == "reversed":
                return super().forward(tokens.flip(1)).flip(1)
            return super().forward(F.pad(tokens[:, :-1], (1, 0)))

    with pytest.raises(Unmeasurable, match="shifted, reversed or of another sequence"):
        head_scores(Moved(), VOCAB, **SMALL)


def test_cross_attention_is_refused_by_name():
    memory = torch.randn(1, 9, 32)
    layer = nn.MultiheadAttention(32, 4, batch_first=True)

    def run(x: Tensor, tokens: Tensor) -> Tensor:
        return layer(x, memory.expand(len(x), -1, -1), memory.expand(len(x), -1, -1))[0]

    with pytest.raises(Unmeasurable, match="cross-attention"):
        head_scores(Wrapped(run), VOCAB, **SMALL)


def test_a_decoder_layers_own_attention_is_scored_and_its_cross_attention_named():
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.tokens = nn.Embedding(VOCAB, 32)
            self.layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True)
            self.encoder = nn.Linear(32, 32)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.tokens(tokens)
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.layer(x, self.encoder(x), tgt_mask=mask, tgt_is_causal=True)

    found = head_scores(Decoder(), VOCAB, **SMALL)
    assert found.layers == ("layer.self_attn",)
    assert found.skipped.keys() == {"layer.multihead_attn"}
    assert found.skipped["layer.multihead_attn"].startswith("cross-attention")


def test_no_attention_at_all_is_an_error_with_advice():
    with pytest.raises(Unmeasurable, match="attn_implementation='sdpa'"):
        head_scores(nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB)), VOCAB, **SMALL)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_an_error_and_not_zeros():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    def run(x: Tensor, tokens: Tensor) -> Tensor:
        x = x.unflatten(-1, (2, 16)).transpose(1, 2)
        return flex.flex_attention(x, x, x).transpose(1, 2).flatten(2)

    with pytest.raises(Unmeasurable, match="FlexAttention"):
        head_scores(Wrapped(run), VOCAB, **SMALL)


def test_a_vocabulary_that_the_embedding_lacks_is_an_error_before_the_kernel_sees_it():
    with pytest.raises(
        ValueError, match=r"ids from \d+ to \d+ for 40 embeddings.*lower vocab_size"
    ):
        head_scores(Tiny(), 4000, **SMALL)


def test_a_context_that_is_too_short_is_an_error():
    with pytest.raises(ValueError, match="lower period or copies"):
        head_scores(Tiny(context=17), VOCAB, **SMALL)


@pytest.mark.parametrize("given_value", [float("nan"), float("inf")])
@pytest.mark.parametrize("attend", ["kernel", "by hand"])
def test_a_model_that_is_not_finite_is_an_error_and_not_zero(given_value: float, attend: str):
    model = Tiny(causal if attend == "kernel" else _by_hand)
    with torch.no_grad():
        model.layers[1].query.weight[:3] = given_value
    with pytest.raises(Unmeasurable, match=r"layers\.1 are not finite"):
        head_scores(model, VOCAB, **SMALL)


def _by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    size = query.shape[-2]
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    products = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(later, -torch.inf)
    return products.softmax(-1) @ value


def test_half_precision_on_the_cpu_is_scored_or_refused_with_advice():
    try:
        found = head_scores(Tiny(sharpness=1.0).half(), VOCAB, **SMALL)
    except ValueError as error:
        assert "bfloat16" in str(error)
        return
    assert_equal(found, reference(Tiny(sharpness=1.0), found.tokens), 2e-3)


def test_chance_counts_keys_whose_weight_is_too_small_for_its_type():
    zeros = []

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        size = query.shape[-2]
        later = torch.ones(size, size, dtype=torch.bool).triu(1)
        pattern = (query @ key.mT).masked_fill(later, -torch.inf).softmax(-1)
        zeros.append(int((pattern[..., ~later] == 0).sum()))
        return pattern @ value

    found = head_scores(Tiny(attend, layers=1, sharpness=500.0), VOCAB, **SMALL)
    kernel = head_scores(Tiny(layers=1), VOCAB, **SMALL)
    assert zeros[-1] > 100
    assert found.chance == kernel.chance
    assert (found.reachable == 1).all()


def test_weights_that_are_no_distribution_are_refused():
    def over_queries(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return (key @ query.mT).softmax(-1).mT @ value

    with pytest.raises(Unmeasurable, match="no distribution over the keys"):
        head_scores(Tiny(over_queries), VOCAB, **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": torch.zeros(2, 5)},
        {"tokens": torch.zeros(5, dtype=torch.long)},
        {"tokens": torch.zeros(1, 2, dtype=torch.long)},
        {"tokens": torch.zeros(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 4)},
        {"attention_mask": torch.ones(2, 4)},
        {"period": 1},
        {"sequences": 0},
    ],
)
def test_wrong_arguments_raise_at_once(wrong: dict):
    with pytest.raises(ValueError):
        head_scores(Tiny(), VOCAB, **wrong)


# --- however it is called ---


@pytest.mark.parametrize(
    "call",
    [
        lambda model, tokens: model.forward(tokens),
        lambda model, tokens: torch.cat([model(row[None]) for row in tokens]),
        lambda model, tokens: model(tokens=tokens),
    ],
    ids=["forward", "a loop over sequences", "by keyword"],
)
def test_any_way_to_run_the_model_gives_the_same_scores(call):
    model = Tiny()
    found = head_scores(model, VOCAB, call=call, **SMALL)
    assert found.layers == ("layers.0", "layers.1")
    assert_equal(found, reference(model, found.tokens))


def test_a_part_of_the_model_may_be_run():
    outer = nn.ModuleDict({"gpt": Tiny(), "other": nn.Linear(2, 2)})
    found = head_scores(outer, VOCAB, call=lambda model, tokens: model["gpt"](tokens), **SMALL)
    assert found.layers == ("gpt.layers.0", "gpt.layers.1")
    assert_equal(found, reference(outer["gpt"], found.tokens))


def test_a_model_that_runs_twice_is_not_scored_double():
    model = Tiny()
    found = head_scores(model, VOCAB, call=lambda m, t: (m(t), m(t))[1], **SMALL)
    assert found.layers == ("layers.0", "layers.1", "layers.0#2", "layers.1#2")
    torch.testing.assert_close(found.prefix_matching[:2], found.prefix_matching[2:])


def test_another_output_than_a_tensor_is_no_matter():
    class Dict(Tiny):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None):
            return {"logits": super().forward(tokens), "more": [None]}

    model = Dict()
    found = head_scores(model, VOCAB, **SMALL)
    assert_equal(found, reference(model, found.tokens))


def test_the_same_tokens_are_drawn_each_time_and_others_on_request():
    model = Tiny()
    one, two = (head_scores(model, VOCAB, **SMALL) for _ in range(2))
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.prefix_matching, two.prefix_matching)
    other = head_scores(model, VOCAB, generator=torch.Generator().manual_seed(5), **SMALL)
    assert not torch.equal(one.tokens, other.tokens)


# --- no trace ---


def state_of(model: nn.Module) -> dict:
    return {
        "random": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "modes": [m.training for m in model.modules()],
        "grad": [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()],
        "buffers": [b.tolist() for b in model.buffers()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "stack": torch._C._len_torch_function_stack(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "function": F.scaled_dot_product_attention,
        "multi head": F.multi_head_attention_forward,
    }


class Noisy(Tiny):
    """Draws random numbers, has dropout and a buffer that changes with every pass."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.norm, self.drop, self.fails = nn.BatchNorm1d(24), nn.Dropout(0.5), fails
        self.register_buffer("passes", torch.zeros(()))
        self.layers[0].training = False

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.passes += 1
        torch.rand(3)
        np.random.rand()
        out = super().forward(self.drop(tokens.double()).long())
        if self.fails:
            raise RuntimeError("planted")
        return out


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace_is_left_also_when_the_model_fails(fails: bool):
    model = Noisy(fails).train()
    model.layers[0].training = False
    list(model.parameters())[2].requires_grad_(False)
    before = state_of(model)
    if fails:
        with pytest.raises(ValueError, match="RuntimeError: planted"):
            head_scores(model, VOCAB, **SMALL)
    else:
        head_scores(model, VOCAB, **SMALL)
    assert state_of(model) == before


def test_training_goes_on_to_the_bit():
    def trained(every: int) -> list[Tensor]:
        model = Tiny()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(8):
            tokens = torch.randint(VOCAB, (4, 12))
            loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            if every and step % every == 0:
                head_scores(model, VOCAB, **SMALL)
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    assert all(map(torch.equal, trained(0), trained(2)))


def test_another_thread_that_runs_the_model_meanwhile_changes_nothing():
    model = Tiny()
    want = head_scores(model, VOCAB, **SMALL)
    tokens = torch.arange(12)[None]
    plain = model(tokens).detach()
    seen: list[Tensor] = []

    def call(model: nn.Module, given_tokens: Tensor) -> Tensor:
        def other() -> None:
            seen.append(model(tokens).detach())

        handle = model.layers[0].register_forward_pre_hook(lambda m, a: run_once())
        threads: list[threading.Thread] = []

        def run_once() -> None:
            if not threads:
                threads.append(threading.Thread(target=other))
                threads[0].start()
                threads[0].join()

        try:
            return model(given_tokens)
        finally:
            handle.remove()

    found = head_scores(model, VOCAB, call=call, **SMALL)
    assert found.layers == want.layers
    assert torch.equal(found.prefix_matching, want.prefix_matching)
    assert seen and all(torch.equal(one, plain) for one in seen)


def test_inside_another_function_mode_the_scores_are_the_same():
    mha = nn.Sequential(
        nn.Embedding(VOCAB, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    )
    for model in (Tiny(), mha):
        want = head_scores(model, VOCAB, **SMALL)
        with torch.device("cpu"):
            found = head_scores(model, VOCAB, **SMALL)
        torch.testing.assert_close(found.prefix_matching, want.prefix_matching, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mixed", [False, True])
def test_under_autocast_the_scores_are_those_of_the_lower_precision(mixed: bool):
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mixed:  # rotary embeddings leave queries and keys in float32
            query, key = query.float(), key.float()
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    model = Tiny(attend, sharpness=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = head_scores(model, VOCAB, **SMALL)
    assert_equal(found, reference(model, found.tokens), 2e-3)


def test_the_kernels_log_sum_exp_reaches_the_scores(monkeypatch: pytest.MonkeyPatch):
    from dynamo_probe.functional import heads

    seen = []
    plain = heads.pair_mass
    monkeypatch.setattr(
        heads, "pair_mass", lambda call, *rest: seen.append(call) or plain(call, *rest)
    )
    head_scores(Tiny(), VOCAB, **SMALL)
    assert len(seen) == 2 * 3 and all(call.logsumexp is not None for call in seen)
