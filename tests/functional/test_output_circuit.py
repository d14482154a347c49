"""Copying scores against loops over the weights, against logits that vanish, and planted heads."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.functional.heads import head_scores
from dynamo_probe.functional.output_circuit import copying_scores
from tests.output_models import (
    HEADS,
    PERIOD,
    SETTINGS,
    VOCAB,
    WIDTH,
    InPlace,
    Spelled,
    agree,
    expected,
    folded,
    shaken,
)

# --- models of the field, against loops over their weights ---


def test_gpt2_of_hugging_face_against_its_weights():
    pytest.importorskip("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    for attention in ("sdpa", "eager"):
        config = GPT2Config(
            vocab_size=VOCAB,
            n_positions=32,
            n_embd=WIDTH,
            n_layer=2,
            n_head=HEADS,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation=attention,
        )
        model = shaken(GPT2LMHeadModel(config))
        scores = copying_scores(model, **SETTINGS, bos=0)
        direct = folded(model.lm_head.weight, model.transformer.ln_f, centred=True)

        def values(block: Any) -> Callable[[Tensor], Tensor]:
            weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
            return lambda x: (
                (x @ weight[:, 2 * WIDTH :] + bias[2 * WIDTH :])
                .unflatten(-1, (HEADS, -1))
                .transpose(0, 1)
            )

        layers = [(b.attn, values(b), b.attn.c_proj.weight.T) for b in model.transformer.h]
        assert scores.skipped == {} and scores.ratio.shape == (2, HEADS)
        assert scores.layers == ("transformer.h.0.attn", "transformer.h.1.attn")
        agree(scores.ratio, expected(model, scores, layers, direct, begin=1))


def test_llama_with_grouped_queries_against_its_weights():
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    model = shaken(LlamaForCausalLM(config))
    scores = copying_scores(model, **SETTINGS)
    direct = folded(model.lm_head.weight, model.model.norm, centred=False)

    def values(attention: Any) -> Callable[[Tensor], Tensor]:
        def of(x: Tensor) -> Tensor:
            groups = (x @ attention.v_proj.weight.T).unflatten(-1, (2, -1))
            return torch.stack([groups[:, head // 2] for head in range(HEADS)])

        return of

    found = [layer.self_attn for layer in model.model.layers]
    layers = [(attention, values(attention), attention.o_proj.weight) for attention in found]
    agree(scores.ratio, expected(model, scores, layers, direct))


@pytest.mark.parametrize("parallel", [True, False])
def test_neox_against_its_weights(parallel: bool):
    pytest.importorskip("transformers")
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=32,
        use_parallel_residual=parallel,
    )
    model = shaken(GPTNeoXForCausalLM(config))
    scores = copying_scores(model, **SETTINGS)
    direct = folded(model.lm_head.weight, model.gpt_neox.final_layer_norm, centred=True)

    def values(attention: Any) -> Callable[[Tensor], Tensor]:
        layer, size = attention.query_key_value, WIDTH // HEADS

        def of(x: Tensor) -> Tensor:
            mixed = (x @ layer.weight.T + layer.bias).unflatten(-1, (HEADS, 3 * size))
            return mixed[..., 2 * size :].transpose(0, 1)

        return of

    found = [layer.attention for layer in model.gpt_neox.layers]
    layers = [(attention, values(attention), attention.dense.weight) for attention in found]
    agree(scores.ratio, expected(model, scores, layers, direct))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("final", ["layer_norm", "rms_norm", "none"])
def test_torchs_own_encoder_against_its_weights(batch_first: bool, final: str):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 24, batch_first=batch_first, norm_first=True
            )
            self.embedding = nn.Embedding(VOCAB, WIDTH)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            norms = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}
            self.norm = norms[final](WIDTH) if final in norms else nn.Identity()
            self.head = nn.Linear(WIDTH, VOCAB)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            x = self.encoder(x if batch_first else x.transpose(0, 1))
            return self.head(self.norm(x if batch_first else x.transpose(0, 1)))

    model = shaken(Model())
    scores = copying_scores(model, **SETTINGS)
    direct = model.head.weight.double()
    if final != "none":
        direct = folded(direct, model.norm, centred=final == "layer_norm")

    def values(attention: Any) -> Callable[[Tensor], Tensor]:
        weight, bias = attention.in_proj_weight[2 * WIDTH :], attention.in_proj_bias[2 * WIDTH :]
        return lambda x: (x @ weight.T + bias).unflatten(-1, (HEADS, -1)).transpose(0, 1)

    found = [layer.self_attn for layer in model.encoder.layers]
    layers = [(attention, values(attention), attention.out_proj.weight) for attention in found]
    agree(scores.ratio, expected(model, scores, layers, direct))


# --- against the model's own logits, without a look at any weight ---


def test_the_ratio_is_that_of_the_logits_that_vanish_with_a_value():
    """In the last layer, without a norm, the direct path is all there is."""

    class Last(Spelled):
        gone: tuple[int, int] | None = None

        def block(self, layer: int, x: Tensor) -> Tensor:
            return x + self.write(layer, self.attend(layer, x))

        def attend(self, layer: int, x: Tensor) -> Tensor:
            parts = self.mixed[layer](x).chunk(3, dim=-1)
            query, key, value = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)
            if layer == 1 and self.gone is not None:
                keep = torch.ones_like(value)
                keep[:, self.gone[0], self.gone[1]] = 0
                value = value * keep
            return F.scaled_dot_product_attention(query * 0.1, key, value)

    model = Last()
    scores = copying_scores(model, **SETTINGS)
    total = torch.zeros(HEADS, dtype=torch.float64)
    with torch.no_grad():
        for row in scores.tokens:
            model.gone = None
            whole = model(row[None])[0]
            for head in range(HEADS):
                for at in range(PERIOD):
                    model.gone = (head, at)
                    lost = (whole - model(row[None])[0])[3, row]
                    raised = (lost - lost.mean()).relu()
                    total[head] += raised[at] / raised.sum()
    torch.testing.assert_close(
        scores.ratio[1], total / (PERIOD * len(scores.tokens)), rtol=1e-6, atol=1e-9
    )


# --- planted heads ---


class Planted(nn.Module):
    """One layer on tokens that are orthogonal; each head writes its own map of what it reads."""

    def __init__(self, maps: list[Tensor], vocab: int = 60) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, vocab)
        self.heads, self.head = len(maps), nn.Linear(vocab, vocab, bias=False)
        self.out = nn.Linear(vocab * len(maps), vocab, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(vocab))
            self.head.weight.copy_(torch.eye(vocab))
            self.out.weight.copy_(torch.cat(maps, dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        parts = x[:, None].expand(-1, self.heads, -1, -1)
        found = F.scaled_dot_product_attention(parts, parts, parts, is_causal=True)
        return self.head(x + self.out(found.transpose(1, 2).flatten(2)))


def test_a_head_that_copies_has_1_one_that_suppresses_has_0_and_an_idle_one_has_none():
    eye = torch.eye(60)
    scores = copying_scores(Planted([eye, -eye, 0 * eye, 0.01 * eye]), 60)
    assert scores.ratio[0, [0, 1, 3]].tolist() == [1.0, 0.0, 1.0]
    assert scores.ratio[0, 2].isnan() and scores.scaled[0, 2].isnan()
    assert scores.scaled[0, [0, 1]].tolist() == [1.0, -1.0]


def test_a_head_that_copies_half_its_tokens_has_half():
    half = torch.diag((torch.arange(60) % 2 == 0).float())
    mixed = half - torch.diag((torch.arange(60) % 2 == 1).float())
    scores = copying_scores(Planted([mixed]), 60, sequences=40)
    even = (scores.tokens % 2 == 0).double().mean().item()
    assert scores.ratio[0, 0] == pytest.approx(even, abs=1e-12)


@pytest.mark.parametrize("period", [5, 25])
def test_heads_of_random_weights_are_at_chance(period: int):
    torch.manual_seed(0)
    scores = copying_scores(Planted([torch.randn(60, 60) for _ in range(8)]), 60, period=period)
    assert scores.chance == 1 / period
    # 8 heads, 8 sequences: a ratio of independent logits spreads by about 1.5 times its mean.
    spread = 1.5 / period / math.sqrt(8 * 8 * period)
    assert scores.ratio.mean() == pytest.approx(scores.chance, abs=4 * spread)


# --- its use ---


def test_layers_are_those_of_the_head_scores():
    model = Spelled()
    assert copying_scores(model, **SETTINGS).layers == head_scores(model, VOCAB, period=9).layers


def test_tokens_are_unique_and_the_start_token_is_first_and_not_drawn():
    tokens = copying_scores(Spelled(), VOCAB, bos=3, period=VOCAB - 1, sequences=2).tokens
    assert tokens.shape == (2, VOCAB)
    for row in tokens.tolist():
        assert row[0] == 3 and sorted(row) == list(range(VOCAB))


def test_a_generator_of_the_callers_draws_other_tokens():
    first, again = (copying_scores(Spelled(), **SETTINGS) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.ratio, again.ratio)
    other = copying_scores(Spelled(), **SETTINGS, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(first.tokens, other.tokens)


def test_bfloat16_is_scored_from_its_own_values():
    model = Spelled().bfloat16()
    found, exact = copying_scores(model, **SETTINGS), copying_scores(model.double(), **SETTINGS)
    # A value has 8 bits; the logits of a token are a sum over 16 * 4 products of them.
    torch.testing.assert_close(found.ratio, exact.ratio, rtol=0, atol=16 * 2**-8 / PERIOD)


def test_the_model_and_all_random_states_are_left_as_they_were():
    model = InPlace().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    copying_scores(model, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"period": 2}, "period is 2; give a whole number of 3"),
        ({"period": 9.0}, "period is 9.0"),
        ({"sequences": 0}, "sequences is 0"),
        ({"bos": -1}, "bos is -1"),
        ({"vocab_size": 8}, "give period=8 or less"),
        ({"vocab_size": 9, "bos": 0}, "give period=8 or less"),
        ({"vocab_size": "9"}, "vocab_size is '9'"),
        ({"vocab_size": 4000}, "the model failed|lower vocab_size|ids up to"),
    ],
)
def test_bad_arguments_are_refused_with_the_fix(arguments: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        copying_scores(Spelled(), **{**SETTINGS, **arguments})
