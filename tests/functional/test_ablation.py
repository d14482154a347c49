"""Heads are taken out where attention is called, exactly, and nothing is left behind."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dynamo_probe.functional.ablation import Kind, ablate_heads
from dynamo_probe.functional.heads import head_scores
from dynamo_probe.functional.unmeasurable import Unmeasurable

WIDTH, HEADS = 16, 4
SIZE = WIDTH // HEADS


class Attention(nn.Module):
    """Causal attention with its projections, that can be told its pattern."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.by_hand = by_hand

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, length, _ = x.shape
        parts = self.qkv(x).view(batch, length, 3 * HEADS, SIZE).transpose(1, 2)
        return parts.split(HEADS, 1)

    def pattern(self, x: Tensor) -> Tensor:
        q, k, _ = self.split(x)
        scores = q @ k.transpose(2, 3) * SIZE**-0.5
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, float("-inf")).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        if self.by_hand:
            o = self.pattern(x) @ v
        else:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(o.transpose(1, 2).reshape(x.shape))


class Model(nn.Module):
    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, WIDTH)
        self.layers = nn.ModuleList(Attention(by_hand) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return x @ self.embed.weight.T


Replace = Callable[[int, Tensor], Tensor]
"""Takes the layer and the outputs of its heads, [batch, heads, positions, size]."""


def by_definition(
    model: Model, tokens: Tensor, replace: Replace, patterns: list[Tensor] | None = None
) -> Tensor:
    """Run the model from its weights, with the outputs of heads replaced."""
    x = model.embed(tokens)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Attention)
        pattern = layer.pattern(x) if patterns is None else patterns[index]
        o = replace(index, pattern @ layer.split(x)[2])
        x = x + layer.out(o.transpose(1, 2).reshape(x.shape))
    return x @ model.embed.weight.T


def unablated_patterns(model: Model, tokens: Tensor) -> list[Tensor]:
    found, x = [], model.embed(tokens)
    for layer in model.layers:
        assert isinstance(layer, Attention)
        found.append(layer.pattern(x))
        x = x + layer(x)
    return found


def replacing(kind: Kind, heads: list[tuple[int, int]], shift: int = 1) -> Replace:
    def replace(layer: int, o: Tensor) -> Tensor:
        o = o.clone()
        for la, head in heads:
            if la != layer:
                continue
            if kind == "zero":
                o[:, head] = 0
            elif kind == "mean":
                o[:, head] = o[:, head].mean(dim=(0, 1))
            else:
                o[:, head] = o[:, head].roll(shift, 0)
        return o

    return replace


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_an_ablation_is_the_forward_pass_with_the_outputs_replaced(
    by_hand: bool, kind: Kind, freeze: bool, tokens: Tensor
) -> None:
    torch.manual_seed(0)
    model = Model(by_hand).double()
    heads = [(0, 1), (0, 3), (1, 2)]
    with torch.no_grad():
        patterns = unablated_patterns(model, tokens) if freeze else None
        wanted = by_definition(model, tokens, replacing(kind, heads), patterns)
        with ablate_heads(model, heads, kind, freeze):  # a batch of 2 can only be rolled by 1
            found = model(tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, model(tokens))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_zeroing_a_head_is_zeroing_its_columns_of_the_output_projection(
    family: str, implementation: str
) -> None:
    torch.manual_seed(0)
    if family == "gpt2":
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        config = GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=50, **ends)
        model: nn.Module = GPT2LMHeadModel(config)
        columns = model.transformer.h[1].attn.c_proj.weight  # rows of a Conv1D are its inputs
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 50}
        groups = {"num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes, **groups))
        columns = model.model.layers[1].self_attn.o_proj.weight.T
    model.eval().set_attn_implementation(implementation)
    tokens = torch.randint(50, (3, 12))
    with torch.no_grad():
        with ablate_heads(model, [(1, 2)]):
            found = model(tokens).logits
        columns[16:24] = 0
        wanted = model(tokens).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
def test_multi_head_attention_loses_the_head_and_keeps_the_weights_it_returns(
    batch_first: bool,
) -> None:
    torch.manual_seed(0)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.attention(x, x, x, need_weights=True)

    model = Wrapped().double().eval()
    x = torch.randn(5, 5, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        whole, weights = model(x)
        with ablate_heads(model, [("attention", 1)]):
            found, seen = model(x)
        model.attention.out_proj.weight[:, SIZE : 2 * SIZE] = 0
        wanted, _ = model(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen, weights)
    assert not torch.allclose(found, whole)


def test_without_heads_frozen_patterns_change_nothing(tokens: Tensor) -> None:
    model = Model().double()
    with torch.no_grad(), ablate_heads(model, [], freeze_patterns=True):
        found = model(tokens)
    torch.testing.assert_close(found, model(tokens), rtol=1e-12, atol=1e-12)


def test_heads_by_name_and_by_number_are_the_same(tokens: Tensor) -> None:
    model = Model()
    with ablate_heads(model, [(1, 0)]):
        by_number = model(tokens)
    with ablate_heads(model, [("layers.1", 0)]):
        assert torch.equal(model(tokens), by_number)


def test_gradients_flow_around_an_ablated_head(tokens: Tensor) -> None:
    model = Model()
    with ablate_heads(model, [(0, 1)]):
        model(tokens).sum().backward()
    layer = model.layers[0]
    assert isinstance(layer, Attention) and layer.qkv.weight.grad is not None
    values = layer.qkv.weight.grad[2 * WIDTH :].view(HEADS, SIZE, WIDTH)
    assert values[1].abs().max() == 0 and values[0].abs().max() > 0


def test_another_model_that_runs_meanwhile_is_left_alone(tokens: Tensor) -> None:
    model, other = Model(), Model()
    alone = other(tokens)
    with ablate_heads(model, [(0, 0)]):
        assert torch.equal(other(tokens), alone)
        model(tokens)
        assert torch.equal(other(tokens), alone)


def test_scores_inside_an_ablation_are_those_of_the_ablated_model() -> None:
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    whole = head_scores(model, 30, period=10)
    with ablate_heads(model, [(0, head) for head in range(HEADS)]):
        ablated = head_scores(model, 30, period=10)
    assert torch.allclose(ablated.prefix_matching[0], whole.prefix_matching[0], atol=1e-6)
    assert not torch.allclose(ablated.prefix_matching[1], whole.prefix_matching[1], atol=1e-3)


def test_nothing_is_left_behind_also_after_an_exception(tokens: Tensor) -> None:
    model = Model()
    before = model(tokens)
    with pytest.raises(RuntimeError, match="stop"):
        with ablate_heads(model, [(0, 1)], "mean", freeze_patterns=True):
            model(tokens)
            raise RuntimeError("stop")
    assert torch.equal(model(tokens), before)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_a_compiled_model_is_ablated_too(tokens: Tensor) -> None:
    model = Model()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(tokens)
        with ablate_heads(model, [(0, 1)]):
            wanted = model(tokens)
        with ablate_heads(compiled, [(0, 1)]):
            assert torch.equal(compiled(tokens), wanted)
        assert torch.equal(compiled(tokens), model(tokens))


def test_resampling_is_drawn_by_the_generator() -> None:
    model = Model()
    tokens = torch.randint(30, (6, 9))
    found = []
    for seed in (1, 1, 2, 3, 4):
        generator = torch.Generator().manual_seed(seed)
        with ablate_heads(model, [(0, 0)], "resample", generator=generator):
            found.append(model(tokens))
    assert torch.equal(found[0], found[1])
    assert any(not torch.equal(found[0], other) for other in found[2:])


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([(2, 0)], "no layer 2"),
        ([("layers.7", 0)], "no layer 'layers.7'"),
        ([(0, 4)], "has 4 heads; there is no head 4"),
    ],
)
def test_heads_that_are_not_there_are_refused_at_the_forward_pass(
    heads: list[tuple[int, int]], message: str, tokens: Tensor
) -> None:
    model = Model()
    with pytest.raises(ValueError, match=message), ablate_heads(model, heads):
        model(tokens)


def test_what_are_no_heads_is_refused_at_once() -> None:
    for wrong in ([3], [(0, "1")], ["01"]):
        with pytest.raises(TypeError, match="give pairs"), ablate_heads(Model(), wrong):  # type: ignore[arg-type]
            pass
    with pytest.raises(ValueError, match="counted from 0"), ablate_heads(Model(), [(-1, 0)]):
        pass
    with pytest.raises(ValueError, match="give 'zero'"), ablate_heads(Model(), [], "drop"):  # type: ignore[arg-type]
        pass


def test_resampling_needs_another_sequence(tokens: Tensor) -> None:
    model = Model()
    with pytest.raises(ValueError, match="2 or more"), ablate_heads(model, [(0, 0)], "resample"):
        model(tokens[:1])


def test_a_model_without_attention_is_an_error_and_no_unchanged_output() -> None:
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30))
    with pytest.raises(Unmeasurable, match="no call of attention"), ablate_heads(model, [(0, 0)]):
        model(torch.zeros(2, 9, dtype=torch.long))


def test_batch_and_heads_that_cannot_be_told_apart_are_refused(tokens: Tensor) -> None:
    class Merged(Model):
        def forward(self, tokens: Tensor) -> Tensor:
            layer = self.layers[0]
            assert isinstance(layer, Attention)
            q, k, v = (part.flatten(0, 1) for part in layer.split(self.embed(tokens)))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    model = Merged()
    with pytest.raises(Unmeasurable, match="one sequence at a time"):
        with ablate_heads(model, [(0, 0)]):
            model(tokens)
    with ablate_heads(model, [(0, 1)]):
        assert model(tokens[:1])[1].abs().max() == 0
