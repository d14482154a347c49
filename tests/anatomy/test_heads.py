"""The tap on attention: every way to call it, and nothing left behind."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

from dynamo_probe.anatomy.attention import AttentionCall
from dynamo_probe.anatomy.heads import HeadTap
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
    naive_scores,
    patterns_of,
)

alias = F


# --- import styles ---


@pytest.mark.parametrize(
    "function",
    [
        scaled_dot_product_attention,
        F.scaled_dot_product_attention,
        alias.scaled_dot_product_attention,
        torch._C._nn.scaled_dot_product_attention,
        lambda *args, **kwargs: nn.functional.scaled_dot_product_attention(*args, **kwargs),
    ],
    ids=["from ... import", "F.", "alias", "torch._C._nn", "nn.functional."],
)
@pytest.mark.parametrize("spelling", ["positions", "keywords", "scale"])
def test_every_import_of_the_function_is_seen(function: Callable, spelling: str):
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if spelling == "positions":
            return function(query, key, value, None, 0.0, True)
        if spelling == "keywords":
            return function(value=value, key=key, query=query, is_causal=True)
        return function(query * 4, key, value, is_causal=True, scale=0.25 / math.sqrt(6))

    model = Tiny(attend)
    found = head_scores(model, VOCAB, **SMALL)
    bias = causal_bias(found.tokens.shape[1])
    assert_equal(found, naive_scores(patterns_of(model, found.tokens, bias), found.tokens))


# --- Hugging Face ---


def hugging(kind: str, implementation: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"vocab_size": VOCAB, "attn_implementation": implementation}
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, **small
        )
    elif kind == "llama":
        config = transformers.LlamaConfig(num_key_value_heads=2, **sizes, **small)
    elif kind == "mistral":
        config = transformers.MistralConfig(
            num_key_value_heads=2, sliding_window=5, **sizes, **small
        )
    else:
        config = transformers.GPTNeoXConfig(**sizes, **small)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)
    return transformers.AutoModelForCausalLM.from_config(config).train()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "mistral"])
@pytest.mark.parametrize("kind_of_number", [torch.float32, torch.float64, torch.bfloat16])
def test_transformers_models_score_as_their_own_eager_patterns(
    kind: str, padded: bool, implementation: str, kind_of_number: torch.dtype
):
    if padded and kind_of_number == torch.float64:
        pytest.skip("transformers' eager attention is NaN there: see the test below")
    tokens = repeated_tokens(VOCAB, **SMALL)
    kept = np.ones(tokens.shape, bool)
    if padded:
        for b in range(len(tokens)):
            kept[b, : 1 + 2 * b] = False
    mask = torch.from_numpy(kept).long() if padded else None
    eager = hugging(kind, "eager").to(kind_of_number).eval()
    with torch.no_grad():
        output = eager(tokens, attention_mask=mask, output_attentions=True, use_cache=False)
    patterns = [pattern.double().numpy() for pattern in output.attentions]
    model = hugging(kind, implementation).to(kind_of_number)
    found = head_scores(model, VOCAB, tokens=tokens, attention_mask=mask)
    assert found.prefix_matching.shape == (2, 4) and not found.skipped
    # In bfloat16 eager patterns are rounded to 8 bits, and activations differ with the kernel.
    tolerance = 0.02 if kind_of_number == torch.bfloat16 else 1e-6
    assert_equal(found, naive_scores(patterns, tokens, kept), tolerance)
    assert model.training


def test_a_model_that_is_nan_in_eager_attention_is_refused_and_scored_where_it_is_not():
    # Its mask of float64's lowest number is -inf in the float32 of its softmax.
    tokens = repeated_tokens(VOCAB, **SMALL)
    mask = torch.ones_like(tokens)
    mask[:, :3] = 0
    with pytest.raises(Unmeasurable, match="not finite"):
        head_scores(hugging("llama", "eager").double(), VOCAB, tokens=tokens, attention_mask=mask)
    found, single = (
        head_scores(model, VOCAB, tokens=tokens, attention_mask=mask)
        for model in (hugging("llama", "sdpa").double(), hugging("llama", "sdpa"))
    )
    torch.testing.assert_close(found.prefix_matching, single.prefix_matching, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("padded", [False, True])
def test_chance_is_the_same_whatever_the_implementation(kind: str, padded: bool):
    tokens = repeated_tokens(VOCAB, **SMALL)
    mask = torch.ones_like(tokens)
    mask[:, :3] = 0
    one, two = (
        head_scores(
            hugging(kind, how), VOCAB, tokens=tokens, attention_mask=mask if padded else None
        )
        for how in ("sdpa", "eager")
    )
    torch.testing.assert_close(chances_of(one), chances_of(two), rtol=0, atol=1e-12)
    torch.testing.assert_close(one.reachable, two.reachable)


def test_an_encoder_decoder_is_scored_where_tokens_stand_in_their_places_only():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=VOCAB,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        pad_token_id=1,
        decoder_start_token_id=2,
        attn_implementation="sdpa",
    )
    # It shifts the tokens by one for its decoder, whose every position then is another token's.
    found = head_scores(transformers.BartModel(config), VOCAB, **SMALL)
    assert found.layers == ("encoder.layers.0.self_attn",)
    assert found.skipped.keys() == {"decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"}
    assert all("shifted" in reason for reason in found.skipped.values())


# --- nn.MultiheadAttention ---


class MultiHead(nn.Module):
    """Two layers of nn.MultiheadAttention, with every way to mask."""

    def __init__(self, first: bool, weights: bool, mask: str, padded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.weights, self.mask, self.padded = first, weights, mask, padded
        self.tokens = nn.Embedding(VOCAB, 24)
        self.positions = nn.Parameter(torch.randn(64, 24))
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(24, 4, dropout=0.1, batch_first=first) for _ in range(2)
        )
        with torch.no_grad():
            for layer in self.layers:
                layer.in_proj_weight *= 3
        self.patterns: list[np.ndarray] = []

    def masks(self, tokens: Tensor) -> dict[str, object]:
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        found: dict[str, object] = {}
        if self.mask == "bool":
            found["attn_mask"] = later
        elif self.mask != "none":
            found["attn_mask"] = torch.zeros(length, length).masked_fill(later, -torch.inf)
            found["is_causal"] = self.mask == "hint"
        if self.padded:
            padding = torch.zeros(tokens.shape, dtype=torch.bool)
            padding[:, -2:] = True
            whole = found.get("attn_mask")
            additive = isinstance(whole, Tensor) and whole.is_floating_point()
            zeros = torch.zeros(tokens.shape)
            found["key_padding_mask"] = (
                zeros.masked_fill(padding, -torch.inf) if additive else padding
            )
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        masks = self.masks(tokens)
        for layer in self.layers:
            y = x if self.first else x.transpose(0, 1)
            y, weights = layer(y, y, y, need_weights=self.weights, **masks)
            assert (weights is not None) == self.weights
            x = x + (y if self.first else y.transpose(0, 1))
        return x

    @torch.no_grad()
    def reference(self, tokens: Tensor) -> list[np.ndarray]:
        """Return patterns by torch's own path for weights, in float64, layer by layer."""
        found = []
        twin = MultiHead(self.first, self.weights, self.mask, self.padded).double().eval()
        twin.load_state_dict({name: part.double() for name, part in self.state_dict().items()})
        x = twin.tokens(tokens) + twin.positions[: tokens.shape[1]]
        masks = self.masks(tokens)
        masks = {
            name: part.double() if isinstance(part, Tensor) and part.is_floating_point() else part
            for name, part in masks.items()
        }
        for layer in twin.layers:
            y = x if self.first else x.transpose(0, 1)
            y, weights = layer(y, y, y, need_weights=True, average_attn_weights=False, **masks)
            found.append(weights.numpy())
            x = x + (y if self.first else y.transpose(0, 1))
        return found


@pytest.mark.parametrize(
    ("first", "weights", "mask", "padded", "train"),
    list(
        itertools.product(
            [True, False],
            [True, False],
            ["none", "bool", "float", "hint"],
            [False, True],
            [True, False],
        )
    ),
)
def test_multi_head_attention_scores_as_the_weights_that_it_returns(
    first: bool, weights: bool, mask: str, padded: bool, train: bool
):
    model = MultiHead(first, weights, mask, padded).train(train)
    found = head_scores(model, VOCAB, **SMALL)
    assert found.layers == ("layers.0", "layers.1")
    assert_equal(found, naive_scores(model.reference(found.tokens), found.tokens))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_transformer_encoder_is_seen_on_its_fast_path_too(
    train: bool, norm_first: bool, first: bool, is_causal: bool
):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=first, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(train)
    embedding = nn.Embedding(VOCAB, 24)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.encoder = embedding, encoder

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            x = x if first else x.transpose(0, 1)
            x = self.encoder(x, mask if is_causal else None, is_causal=is_causal)
            return x if first else x.transpose(0, 1)

    model = Model()
    model.train(train)
    found = head_scores(model, VOCAB, **SMALL)
    assert found.layers == ("encoder.layers.0.self_attn", "encoder.layers.1.self_attn")
    # The reference: the layers one by one, asking for the weights.
    with torch.no_grad():
        x = embedding(found.tokens)
        x = x if first else x.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(18) if is_causal else None
        patterns = []
        for part in encoder.eval().layers:
            given = part.norm1(x) if norm_first else x
            _, weights = part.self_attn(
                given, given, given, attn_mask=mask, average_attn_weights=False
            )
            patterns.append(weights.double().numpy())
            x = part(x, mask)
    assert_equal(found, naive_scores(patterns, found.tokens))


def test_what_multi_head_attention_returns_under_the_tap_is_what_it_returns_without():
    for weights, average in itertools.product([True, False], [True, False]):
        torch.manual_seed(0)
        layer = nn.MultiheadAttention(24, 4, batch_first=True).eval()
        x = torch.randn(2, 7, 24)
        asked = {"need_weights": weights, "average_attn_weights": average}
        with torch.no_grad():
            plain = layer(x, x, x, **asked)
            with HeadTap(layer, lambda call: None).on():
                tapped = layer(x, x, x, **asked)
        torch.testing.assert_close(tapped[0], plain[0], rtol=0, atol=1e-6)
        if weights:
            torch.testing.assert_close(tapped[1], plain[1])
        else:
            assert tapped[1] is plain[1] is None


def test_a_wrong_hint_of_causality_is_heeded_where_torch_heeds_it():
    near = torch.ones(7, 7, dtype=torch.bool).triu(2) | torch.ones(7, 7, dtype=torch.bool).tril(-2)
    layer = nn.MultiheadAttention(24, 4, batch_first=True).train()  # not its fast path
    x = torch.randn(2, 7, 24)
    for weights in (True, False):  # the path that computes weights takes the mask alone
        asked = {"attn_mask": near, "is_causal": True, "need_weights": weights}
        with torch.no_grad():
            plain, _ = layer(x, x, x, **asked)
            seen: list[AttentionCall] = []
            with HeadTap(layer, seen.append).on():
                tapped, _ = layer(x, x, x, **asked)
        torch.testing.assert_close(tapped, plain, rtol=0, atol=1e-6)
        assert seen[0].causal != weights


def test_keys_of_another_sequence_of_the_same_length_are_cross_attention():
    seen: list[AttentionCall] = []
    layer = nn.MultiheadAttention(24, 4, batch_first=True)
    x, y = torch.randn(2, 1, 7, 24).unbind()
    with HeadTap(layer, seen.append).on():
        layer(x, y, y)
        layer(x, x, x)
    assert [call.cross for call in seen] == [True, False]
    assert [call.why_not_over(7) is None for call in seen] == [False, True]


# --- names, order, replacing ---


class Calls(nn.Module):
    """A layer that calls attention twice and is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(VOCAB, 24)
        self.layer = Tiny(layers=1, width=24).layers[0]
        self.tied = nn.ModuleList([self.layer, self.layer])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for layer in self.tied:
            x = x + layer(x, None)
        y = x[:, None]
        return F.scaled_dot_product_attention(y, y, y, is_causal=True)[:, 0]


def test_later_calls_of_a_module_have_a_number():
    found = head_scores(Calls(), VOCAB, **SMALL)
    assert found.layers == ("layer", "layer#2", "")
    assert found.prefix_matching.shape == (3, 4)


def test_numbers_begin_anew_with_each_pass():
    seen: list[str] = []
    model = Calls()
    with HeadTap(model, lambda call: seen.append(call.name)).on():
        model(torch.arange(5)[None])
        model(torch.arange(5)[None])
    assert seen == ["layer", "layer#2", ""] * 2


def test_what_the_visitor_returns_takes_the_place_of_the_output():
    model = Tiny(layers=1).eval()
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        with HeadTap(model, lambda call: torch.zeros_like(call.output)).on():
            without = model(tokens)
        x = model.tokens(tokens) + model.positions.weight[:9]
        want = model.head(x + model.layers[0].out.bias)
    torch.testing.assert_close(without, want)


def test_only_the_model_itself_is_tapped():
    model, other = Tiny(), Tiny()
    seen: list[AttentionCall] = []
    with HeadTap(model, seen.append).on():
        other(torch.arange(5)[None])
        x = torch.randn(1, 1, 5, 4)
        F.scaled_dot_product_attention(x, x, x)
    assert not seen


def test_taps_one_inside_the_other_both_see_every_call():
    for model in (Tiny(), Tiny(_by_hand), MultiHead(True, True, "bool", False)):
        outer: list[str] = []
        inner: list[str] = []
        with (
            HeadTap(model, lambda call, o=outer: o.append(call.name)).on(),
            HeadTap(model, lambda call, i=inner: i.append(call.name)).on(),
        ):
            model(torch.arange(9)[None])
        assert outer == inner == ["layers.0", "layers.1"]


@pytest.mark.parametrize("kind", ["kernel", "by hand", "multi head"])
def test_scores_within_an_ablation_are_those_of_the_ablated_model(kind: str):
    model = {
        "kernel": lambda: Tiny(causal),
        "by hand": lambda: Tiny(_by_hand),
        "multi head": lambda: MultiHead(True, True, "bool", False),
    }[kind]()

    def first(call: AttentionCall) -> Tensor | None:
        return torch.zeros_like(call.output) if call.name == "layers.0" else None

    whole = head_scores(model, VOCAB, **SMALL)
    with HeadTap(model, first).on():
        found = head_scores(model, VOCAB, **SMALL)
    if isinstance(model, Tiny):
        nn.init.zeros_(model.layers[0].out.weight)
    else:
        nn.init.zeros_(model.layers[0].out_proj.weight)
    want = head_scores(model, VOCAB, **SMALL)
    torch.testing.assert_close(found.prefix_matching, want.prefix_matching, rtol=0, atol=1e-7)
    assert (found.prefix_matching[1] - whole.prefix_matching[1]).abs().max() > 1e-3


def _by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    size = query.shape[-2]
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    products = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(later, -torch.inf)
    return products.softmax(-1) @ value


def test_an_error_in_the_model_takes_the_tap_off():
    class Fails(Tiny):
        def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            super().forward(tokens)
            raise KeyboardInterrupt

    model = Fails()
    with pytest.raises(KeyboardInterrupt), HeadTap(model, lambda call: None).on():
        model(torch.arange(5)[None])
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._forward_hooks_always_called
    assert torch._C._len_torch_function_stack() == 0


# --- compiled models ---


@pytest.mark.parametrize("how", ["torch.compile", "fullgraph", "in place", "a part"])
@torch.no_grad()
def test_a_compiled_model_is_scored_and_not_compiled_again(how: str):
    torch._dynamo.reset()
    counter = CompileCounter()
    model = Tiny()
    plain = head_scores(model, VOCAB, **SMALL)
    compiled: nn.Module = model
    if how == "in place":
        model.compile(backend=counter)
    elif how == "a part":
        model.layers[0] = torch.compile(model.layers[0], backend=counter)
    else:
        compiled = torch.compile(model, backend=counter, fullgraph=how == "fullgraph")
    tokens = torch.arange(18)[None].repeat(3, 1)
    before = compiled(tokens)
    frames = counter.frame_count
    assert frames > 0
    graphs = dict(counters["stats"])
    for _ in range(2):
        found = head_scores(compiled, VOCAB, **SMALL)
        assert torch.equal(found.prefix_matching, plain.prefix_matching)
        assert len(found.layers) == 2
        assert torch.equal(compiled(tokens), before)
    assert counter.frame_count == frames
    assert dict(counters["stats"]) == graphs
    assert not counters["graph_break"]
    torch._dynamo.reset()
