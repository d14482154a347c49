"""Copying scores against loops over the weights, against logits that vanish, and planted heads."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.functional.heads import head_scores
from dynamo_probe.functional.output_circuit import CopyingScores, copying_scores
from dynamo_probe.functional.unmeasurable import Unmeasurable

VOCAB, WIDTH, HEADS, PERIOD = 40, 16, 4, 9
SETTINGS: dict[str, Any] = {"vocab_size": VOCAB, "period": PERIOD, "sequences": 3}


def by_loops(values: Tensor, output: Tensor, direct: Tensor, ids: list[int]) -> list[list[float]]:
    """Ratio of each head at each position, from the definition.

    Args:
        values: `[heads, positions, features]`.
        output: the output matrix `[written, heads * features]`.
        direct: what takes what is written to logits `[vocabulary, written]`.
        ids: token at each position.
    """
    values, output, direct = values.detach(), output.detach(), direct.detach()
    size = values.shape[2]
    ratios = []
    for head in range(values.shape[0]):
        matrix = direct @ output[:, head * size : (head + 1) * size]
        row = []
        for at in range(len(ids)):
            logits = [float(matrix[token] @ values[head, at]) for token in ids]
            mean = math.fsum(logits) / len(logits)
            raised = [max(0.0, logit - mean) for logit in logits]
            row.append(raised[at] / math.fsum(raised))
        ratios.append(row)
    return ratios


def folded(unembedding: Tensor, norm: nn.Module, *, centred: bool) -> Tensor:
    """The unembedding behind a norm, its positive scale left out."""
    gain, width = norm.weight, unembedding.shape[1]
    assert isinstance(gain, Tensor)
    centre = torch.eye(width).double() - (1 / width if centred else 0.0)
    return unembedding.double() @ torch.diag(gain.double()) @ centre


def shaken(model: Any, seed: int = 0) -> Any:
    """The model in float64 with every weight random, norms and biases as well."""
    torch.manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + 0.1)
    return model


def expected(
    model: nn.Module,
    scores: CopyingScores,
    layers: list[tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]],
    direct: Tensor,
    begin: int = 0,
) -> Tensor:
    """Scores by loops, of models whose attention modules are given their input as first argument.

    Args:
        model: run on each sequence, to see what goes into the attention modules.
        scores: for their tokens.
        layers: (module, input `[positions, width]` to values `[heads, positions, features]`, output
            matrix).
        direct: see `by_loops`.
        begin: first position that is scored.
    """
    inputs: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [
        module.register_forward_pre_hook(keep(i), with_kwargs=True)
        for i, (module, _, _) in enumerate(layers)
    ]
    rows: list[list[tuple[float, ...]]] = [[] for _ in layers]
    for tokens in scores.tokens:
        model.eval()(tokens[None])
        ids = tokens[begin:].tolist()
        for i, (_, values, output) in enumerate(layers):
            found = values(inputs[i].detach().reshape(len(tokens), -1))[:, begin:]
            rows[i] += zip(*by_loops(found, output, direct, ids), strict=True)
    for handle in handles:
        handle.remove()
    return torch.tensor(rows, dtype=torch.float64).mean(1)


def agree(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


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


# --- one model, with its parts spelled in many ways ---


class Spelled(nn.Module):
    """Two layers of attention on a stream, in float64, whose parts can be replaced.

    Attributes:
        values: of the last pass, `[heads, positions, features]` for each layer.
    """

    def __init__(self, *, bias: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.mixed = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.gain = nn.Parameter(torch.empty(WIDTH))
        self.head = nn.Linear(WIDTH, VOCAB)
        shaken(self, seed)
        self.values: list[Tensor] = []

    def attend(self, layer: int, x: Tensor) -> Tensor:
        """What the heads of a layer give, `[batch, heads, positions, features]`."""
        parts = self.mixed[layer](x / x.norm(dim=-1, keepdim=True)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        self.values.append(value[0].detach())
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def write(self, layer: int, heads: Tensor) -> Tensor:
        return self.out[layer](heads.transpose(1, 2).flatten(2))

    def block(self, layer: int, x: Tensor) -> Tensor:
        x = x + self.write(layer, self.attend(layer, x))
        return x + torch.relu(self.mlp[layer](x))

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x)

    def forward(self, tokens: Tensor) -> Tensor:
        self.values = []
        x = self.embedding(tokens)
        for layer in range(2):
            x = self.block(layer, x)
        return self.logits(x)


def wanted(model: Spelled, direct: Tensor, outputs: list[Tensor] | None = None) -> Tensor:
    """Scores by loops over the values that the model itself kept."""
    tokens = copying_scores(model, **SETTINGS).tokens
    outputs = outputs or [layer.weight for layer in model.out]  # type: ignore[misc]
    rows: list[list[tuple[float, ...]]] = [[], []]
    for row in tokens:
        model.eval()(row[None])
        for i, output in enumerate(outputs):
            found = by_loops(model.values[i], output, direct, row.tolist())
            rows[i] += zip(*found, strict=True)
    return torch.tensor(rows, dtype=torch.float64).mean(1)


class Functional(Spelled):
    def write(self, layer: int, heads: Tensor) -> Tensor:
        x, weight = heads.transpose(1, 2).flatten(2), self.out[layer].weight
        if layer == 0:
            return x @ weight.T + self.out[layer].bias
        flat = x.reshape(-1, WIDTH)
        return torch.addmm(self.out[layer].bias, flat, weight.T).view_as(x)


class InPlace(Spelled):
    def block(self, layer: int, x: Tensor) -> Tensor:
        x += F.dropout(self.write(layer, self.attend(layer, x)), 0.5, self.training)
        x.add_(torch.relu_(self.mlp[layer](x)))
        return x


class LogProbabilities(Spelled):
    def logits(self, x: Tensor) -> Tensor:
        return F.log_softmax(3 * self.head(x) / 7, dim=-1)


class LinearLayers(Spelled):
    """Later layers are linear as well: what comes through them is not on the direct path."""

    def block(self, layer: int, x: Tensor) -> Tensor:
        x = x + self.write(layer, self.attend(layer, x))
        return self.mlp[0](self.mlp[layer](x)) + x


class Transposed(Spelled):
    """Positions before the batch, and a copy of the heads in another layout on the way."""

    def write(self, layer: int, heads: Tensor) -> Tensor:
        return self.out[layer](heads.permute(2, 0, 1, 3).contiguous().flatten(2)).transpose(0, 1)


class ByHead(Spelled):
    """Each head is a call of attention of its own."""

    def attend(self, layer: int, x: Tensor) -> Tensor:
        parts = self.mixed[layer](x / x.norm(dim=-1, keepdim=True)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        self.values.append(value[0].detach())
        heads = [
            F.scaled_dot_product_attention(
                query[:, head], key[:, head], value[:, head], is_causal=True
            )
            for head in range(HEADS)
        ]
        return torch.cat(heads, dim=-1)

    def write(self, layer: int, heads: Tensor) -> Tensor:
        return self.out[layer](heads)


class ByHand(Spelled):
    """A softmax written by hand, averaged with einsum."""

    def attend(self, layer: int, x: Tensor) -> Tensor:
        parts = self.mixed[layer](x / x.norm(dim=-1, keepdim=True)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)) for part in parts)
        self.values.append(value[0].detach().transpose(0, 1))
        pattern = torch.einsum("bqhd,bkhd->bhqk", query, key).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", pattern, value)

    def write(self, layer: int, heads: Tensor) -> Tensor:
        return self.out[layer](heads.flatten(2))


@pytest.mark.parametrize(
    "kind",
    [
        Spelled,
        Functional,
        InPlace,
        LogProbabilities,
        LinearLayers,
        Transposed,
        ByHead,
        ByHand,
    ],
)
def test_other_spellings_give_the_same_scores_as_loops(kind: type[Spelled]):
    model = kind()
    scores = copying_scores(model, **SETTINGS)
    assert scores.skipped == {}
    found = scores.ratio.reshape(2, HEADS)
    agree(found, wanted(model, model.head.weight))
    assert scores.ratio.shape == ((2 * HEADS, 1) if kind is ByHead else (2, HEADS))


class Gained(Spelled):
    """Norms written by hand."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = norm

    def logits(self, x: Tensor) -> Tensor:
        if self.norm == "rms":
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        elif self.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
            x = x / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        elif self.norm == "function":
            return self.head(F.layer_norm(x, (WIDTH,), self.gain))
        return self.head(self.gain * x)


@pytest.mark.parametrize("norm", ["rms", "layer", "function", "none"])
def test_norms_written_by_hand_are_folded_in(norm: str):
    model = Gained(norm)
    centre = torch.eye(WIDTH).double() - (1 / WIDTH if norm in ("layer", "function") else 0)
    direct = model.head.weight @ torch.diag(model.gain) @ centre
    agree(copying_scores(model, **SETTINGS).ratio, wanted(model, direct))


class Scaled(Spelled):
    """Branches scaled by a number, by one for each feature, and streams that are mixed."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def block(self, layer: int, x: Tensor) -> Tensor:
        written = self.write(layer, self.attend(layer, x))
        if self.how == "negative":
            return x - 0.5 * written
        if self.how == "features":
            return x + self.gain * written
        if self.how == "alpha":
            return torch.add(x, written, alpha=-2)
        if self.how == "one":
            return x + self.gain[:1] * written
        y = x + written  # "twice": to the stream by itself, and once more by feature
        return y + self.gain * y / 4


@pytest.mark.parametrize(
    ("how", "first"),
    [("negative", -1.0), ("alpha", -1.0), ("one", None), ("features", None), ("twice", None)],
)
def test_scales_on_the_way_count_with_their_sign(how: str, first: float | None):
    model = Scaled(how)
    head, gain = model.head.weight, model.gain
    directs = {"one": [gain[0] * head] * 2, "features": [head * gain] * 2}
    directs["twice"] = [head * (1 + gain / 4) ** 2, head * (1 + gain / 4)]
    direct = directs.get(how, [head * (first or 1.0)] * 2)
    rows = [wanted(model, one)[i] for i, one in enumerate(direct)]
    agree(copying_scores(model, **SETTINGS).ratio, torch.stack(rows))


def test_heads_that_are_added_without_an_output_matrix_are_scored_as_they_are():
    class Bare(Spelled):
        def write(self, layer: int, heads: Tensor) -> Tensor:
            return heads.transpose(1, 2).flatten(2)

    model = Bare()
    identity = torch.eye(WIDTH).double()
    agree(copying_scores(model, **SETTINGS).ratio, wanted(model, model.head.weight, [identity] * 2))


def test_a_projection_before_the_unembedding_is_part_of_the_path():
    class Narrow(Spelled):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Linear(WIDTH, 6).double(), nn.Linear(6, VOCAB).double()

        def logits(self, x: Tensor) -> Tensor:
            return self.wide(self.narrow(x))

    model = Narrow()
    direct = model.wide.weight @ model.narrow.weight
    agree(copying_scores(model, **SETTINGS).ratio, wanted(model, direct))


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


# --- what is not one linear map is skipped, with the reason ---


class Gated(Spelled):
    def write(self, layer: int, heads: Tensor) -> Tensor:
        flat = heads.transpose(1, 2).flatten(2)
        return self.out[layer](flat * flat.sigmoid() if layer == 0 else flat)


class Adapted(Spelled):
    def write(self, layer: int, heads: Tensor) -> Tensor:
        flat = heads.transpose(1, 2).flatten(2)
        written = self.out[layer](flat)
        return written + self.mlp[0](self.mlp[1](flat)) if layer == 0 else written


class Sliced(Spelled):
    """One head by a way of its own."""

    def write(self, layer: int, heads: Tensor) -> Tensor:
        written = super().write(layer, heads)
        return written + 0.1 * heads[:, 0].mean(-1, keepdim=True) if layer == 0 else written


class Rotated(Spelled):
    """Features in another order than the stream's from a layer on."""

    def block(self, layer: int, x: Tensor) -> Tensor:
        x = super().block(layer, x)
        return x.flip(-1) if layer == 0 else x


class PostNorm(Spelled):
    def block(self, layer: int, x: Tensor) -> Tensor:
        x = x + self.write(layer, self.attend(layer, x))
        return F.layer_norm(x, (WIDTH,))

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x)


class Overwritten(Spelled):
    """What the first layer wrote is changed in place afterwards."""

    def block(self, layer: int, x: Tensor) -> Tensor:
        x = x + self.write(layer, self.attend(layer, x))
        if layer == 0:
            x[..., 0] = 0.0
        return x


class Grouped(Spelled):
    """Scaled by a number for each feature of a group."""

    def block(self, layer: int, x: Tensor) -> Tensor:
        x = super().block(layer, x)
        grouped = x.unflatten(-1, (4, 4)) * self.gain[:4] if layer == 0 else x
        return grouped.flatten(2)


class Sharded(Spelled):
    """The first output matrix is there for the product alone, as under `fully_shard`."""

    def write(self, layer: int, heads: Tensor) -> Tensor:
        if layer == 1:
            return super().write(layer, heads)
        gathered = self.out[layer].weight.detach().clone()
        written = F.linear(heads.transpose(1, 2).flatten(2), gathered)
        gathered.untyped_storage().resize_(0)
        return written


class Squashed(Spelled):
    def block(self, layer: int, x: Tensor) -> Tensor:
        x = super().block(layer, x)
        return x.tanh_() if layer == 0 else x


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Gated, "goes into (mul|sigmoid)"),
        (Adapted, "adapter beside the output matrix"),
        (Sliced, "goes into __getitem__"),
        (Rotated, "does not reach the logits"),
        (PostNorm, "more than one norm"),
        (Overwritten, "does not reach the logits"),
        (Grouped, "does not reach the logits"),
        (Sharded, "sharded"),
        (Squashed, "does not reach the logits"),
    ],
)
def test_a_layer_that_is_not_one_linear_map_is_skipped_and_the_other_scored(
    kind: type[Spelled], says: str
):
    model = kind()
    scores = copying_scores(model, **SETTINGS)
    assert list(scores.skipped) == [""] and scores.layers == ("#2",)
    direct = model.head.weight
    if kind is PostNorm:
        direct = direct @ (torch.eye(WIDTH).double() - 1 / WIDTH)
    agree(scores.ratio[0], wanted(model, direct)[1])
    assert re.search(says, scores.skipped[""])


class Capped(Spelled):
    def logits(self, x: Tensor) -> Tensor:
        return 5 * torch.tanh(self.head(x) / 5)


class Doubled(Spelled):
    """An adapter beside the unembedding."""

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x) + 0.1 * self.head(self.mlp[0](x))


class Headless(Spelled):
    """Its stream, in place of logits."""

    def logits(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, VOCAB - WIDTH))


class SecondNorm(Spelled):
    def logits(self, x: Tensor) -> Tensor:
        return self.head(F.layer_norm(F.rms_norm(x, (WIDTH,)), (WIDTH,)))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Capped, "capped"),
        (Doubled, "in parallel"),
        (Headless, "does not reach the logits"),
        (SecondNorm, "more than one norm"),
    ],
)
def test_where_no_layer_can_be_scored_it_says_why(kind: type[Spelled], says: str):
    with pytest.raises(Unmeasurable, match=says):
        copying_scores(kind(), **SETTINGS)


def test_a_model_that_returns_its_stream_is_not_taken_for_one_with_logits():
    model = nn.Sequential(nn.Embedding(16, 16), nn.TransformerEncoderLayer(16, 4, norm_first=True))
    with pytest.raises(Unmeasurable, match="are these logits"):
        copying_scores(model, 16, period=9, call=lambda m, t: m(t.T).transpose(0, 1))


def test_capped_logits_can_be_scored_before_the_cap():
    model = Capped()

    def plain(m: nn.Module, tokens: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = model.head.register_forward_hook(lambda a, b, out: kept.append(out))
        m(tokens)
        handle.remove()
        return kept[-1]

    found = copying_scores(model, **SETTINGS, call=plain)
    agree(found.ratio, copying_scores(Spelled(), **SETTINGS).ratio)


def test_a_model_without_attention_is_refused_with_advice():
    with pytest.raises(Unmeasurable, match="no call of attention was seen"):
        copying_scores(nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB)), **SETTINGS)


def test_weights_that_are_not_finite_are_said_to_be_so():
    model = Spelled()
    with torch.no_grad():
        model.out[1].weight[0, 0] = float("inf")  # type: ignore[union-attr, index]
    with pytest.raises(Unmeasurable, match="not finite|does not reach"):
        copying_scores(model, **SETTINGS)


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
