"""Output matrices and direct paths, spelled in many ways: found, or refused with the reason."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_probe.functional.output_circuit import copying_scores
from dynamo_probe.functional.unmeasurable import Unmeasurable
from tests.output_models import HEADS, SETTINGS, VOCAB, WIDTH, InPlace, Spelled, agree, wanted


class Functional(Spelled):
    def write(self, layer: int, heads: Tensor) -> Tensor:
        x, weight = heads.transpose(1, 2).flatten(2), self.out[layer].weight
        if layer == 0:
            return x @ weight.T + self.out[layer].bias
        flat = x.reshape(-1, WIDTH)
        return torch.addmm(self.out[layer].bias, flat, weight.T).view_as(x)


class LogProbabilities(Spelled):
    def logits(self, x: Tensor) -> Tensor:
        return F.log_softmax(3 * self.head(x) / 7, dim=-1)


class Padded(Spelled):
    """Logits for more tokens than there are, cut to size; a stream that is cut as well."""

    def logits(self, x: Tensor) -> Tensor:
        weight = torch.cat([self.head.weight, self.gain.expand(3, -1)])
        wide = torch.cat([torch.eye(WIDTH), torch.ones(2, WIDTH)]).double()
        return F.linear(F.linear(x, wide)[..., :WIDTH], weight)[:, :, :VOCAB]


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
        Padded,
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


class Repeated(Spelled):
    """The heads are in the input of the matrix twice."""

    def write(self, layer: int, heads: Tensor) -> Tensor:
        flat = heads.transpose(1, 2).flatten(2)
        if layer == 1:
            return self.out[layer](flat)
        return F.linear(torch.cat([flat, flat], dim=-1), self.mixed[0].weight[:32, :].T)


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
        (Repeated, "goes into linear"),
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


class Shifted(Spelled):
    """What is taken off each position is not its mean."""

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x - x.amax(-1, keepdim=True))


class Turned(Spelled):
    """Each position has a factor of its own, of either sign."""

    def logits(self, x: Tensor) -> Tensor:
        signs = 1.0 - 2.0 * (torch.arange(x.shape[1]) % 2)
        return self.head(x * signs[:, None])


class Divided(Spelled):
    def logits(self, x: Tensor) -> Tensor:
        return self.head(torch.div(x.new_ones(()), x))


class SecondNorm(Spelled):
    def logits(self, x: Tensor) -> Tensor:
        return self.head(F.layer_norm(F.rms_norm(x, (WIDTH,)), (WIDTH,)))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Capped, "capped"),
        (Doubled, "in parallel"),
        (Headless, "does not reach the logits"),
        (Shifted, "does not reach the logits"),
        (Turned, "does not reach the logits"),
        (Divided, "does not reach the logits"),
        (SecondNorm, "more than one norm"),
    ],
)
def test_where_no_layer_can_be_scored_it_says_why(kind: type[Spelled], says: str):
    with pytest.raises(Unmeasurable, match=says):
        copying_scores(kind(), **SETTINGS)


def test_attention_over_channels_is_not_scored_though_there_are_as_many_as_tokens():
    class Channels(Spelled):
        def attend(self, layer: int, x: Tensor) -> Tensor:
            if layer == 1:
                return super().attend(layer, x)
            turned = x.transpose(1, 2)[:, None]
            return F.scaled_dot_product_attention(turned, turned, turned)

        def write(self, layer: int, heads: Tensor) -> Tensor:
            return super().write(layer, heads) if layer else heads[:, 0].transpose(1, 2)

    scores = copying_scores(Channels(), VOCAB, period=WIDTH)
    assert scores.layers == ("#2",) and "over channels" in scores.skipped[""]


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
