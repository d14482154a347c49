"""Which weights can be pruned, checked by changing entries and looking at what an output does."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from dynamo_probe.anatomy.weights import Weight, find_weights
from tests.models import GPT, ConvNet, mlp

BIAS = "a bias"


def only(model: nn.Module) -> Weight:
    (weight,) = find_weights(model).found.values()
    return weight


def touched(module: nn.Module, weight: Weight, place: tuple[int, ...], x: Tensor) -> set[int]:
    """Which channels (axis 1) of the output depend on one entry of the weight."""
    with torch.no_grad():
        before = module(x)
        weight.parameter[place] += 1.0
        after = module(x)
        weight.parameter[place] -= 1.0
    moved = (before != after).movedim(1, 0).flatten(1).any(1)
    return set(moved.nonzero().flatten().tolist())


def reads(module: nn.Module, weight: Weight, place: tuple[int, ...], x: Tensor) -> set[int]:
    """Which channels (axis 1) of the input are multiplied with one entry of the weight."""
    found = set()
    with torch.no_grad():
        for channel in range(x.shape[1]):
            silent = torch.zeros_like(x)
            silent[:, channel] = x[:, channel]
            if touched(module, weight, place, silent):
                found.add(channel)
    return found


LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(3, 5), (2, 3)),
    (nn.Conv1d(3, 4, 2), (2, 3, 6)),
    (nn.Conv2d(2, 3, (2, 3)), (2, 2, 5, 5)),
    (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    (nn.Conv2d(4, 6, 2, groups=2), (2, 4, 4, 4)),
    (nn.Conv2d(3, 6, 2, groups=3), (2, 3, 4, 4)),
    (nn.ConvTranspose1d(3, 4, 2), (2, 3, 5)),
    (nn.ConvTranspose2d(2, 3, 2), (2, 2, 4, 4)),
    (nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3)),
    (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 3, 3)),
    (nn.ConvTranspose1d(3, 3, 2, groups=3), (2, 3, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda given: str(given)[:40])
def test_unit_and_input_dimensions_are_those_that_the_layers_output_shows(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    weight = only(layer)
    assert (weight.name, weight.layer, weight.aliases) == ("weight", "", ())
    assert weight.parameter is layer.weight
    assert weight.shape == tuple(layer.weight.shape)  # type: ignore[arg-type]
    groups = getattr(layer, "groups", 1)
    transposed = "Transpose" in type(layer).__name__
    assert weight.groups == (groups if transposed else 1)
    assert weight.units == weight.shape[weight.unit_dim]
    inputs = x.shape[1] // groups
    outputs = layer(x).shape[1] // groups
    for place in [(u, i) for u in range(weight.shape[0]) for i in range(weight.shape[1])]:
        entry = place + (1,) * (len(weight.shape) - 2)
        unit, source = place[weight.unit_dim], place[weight.input_dim]
        if transposed:  # inputs are counted over all groups, units within one
            unit += source // inputs * outputs
        else:  # units are counted over all groups, inputs within one
            source += unit // outputs * inputs
        assert touched(layer, weight, entry, x) == {unit}
        assert reads(layer, weight, entry, x) == {source}


def test_gpt2s_linear_layer_is_transposed() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    layer, x = conv1d(5, 3), torch.randn(4, 3)
    weight = only(layer)
    assert (weight.shape, weight.unit_dim, weight.input_dim, weight.units) == ((3, 5), 1, 0, 5)
    assert touched(layer, weight, (2, 4), x) == {4}
    assert reads(layer, weight, (2, 4), x) == {2}


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_matrices_lead_into_gates_and_come_from_inputs_or_states(kind: Any) -> None:
    torch.manual_seed(0)
    options = {"proj_size": 2} if kind is nn.LSTM else {}
    net = kind(3, 4, num_layers=2, bidirectional=True, **options)
    weights = find_weights(net)
    matrices = {name for name, p in net.named_parameters() if p.dim() == 2}
    assert set(weights.found) == matrices and len(matrices) == (12 if options else 8)
    assert set(weights.left.values()) == {BIAS}
    assert {(w.unit_dim, w.input_dim) for w in weights.found.values()} == {(0, 1)}
    gates = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}[kind]
    assert weights.found["weight_ih_l0"].shape == (gates * 4, 3)
    # The last unit's last gate: no other unit of the first layer can feel it at the first step.
    one = kind(3, 4)
    weight = find_weights(one).found["weight_ih_l0"]
    with torch.no_grad():
        x = torch.randn(1, 1, 3)
        before = one(x)[0]
        weight.parameter[gates * 4 - 1, 1] += 1
        after = one(x)[0]
    assert (before != after).flatten().tolist() == [False, False, False, True]


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_are_recurrent_too(cell: Any) -> None:
    weights = find_weights(cell(3, 4))
    assert list(weights.found) == ["weight_ih", "weight_hh"]
    assert weights.left == {"bias_ih": BIAS, "bias_hh": BIAS}


def test_attentions_projections_lead_into_rows() -> None:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    weights = find_weights(net)
    assert list(weights.found) == ["in_proj_weight", "out_proj.weight"]
    assert set(weights.left) == {"in_proj_bias", "bias_k", "bias_v", "out_proj.bias"}
    assert set(weights.left.values()) == {BIAS}
    assert {(w.unit_dim, w.input_dim) for w in weights.found.values()} == {(0, 1)}
    # Row 9 of the 12 makes value 1 of the first head, and nothing of queries and keys.
    net.out_proj.weight.data = torch.eye(4)
    x = torch.randn(3, 1, 4)
    with torch.no_grad():
        before = net(x, x, x)[0]
        weights.found["in_proj_weight"].parameter[9, 2] += 1
        after = net(x, x, x)[0]
    assert (before != after).flatten(0, 1).any(0).tolist() == [False, True, False, False]
    apart = find_weights(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))
    assert list(apart.found) == [
        "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight",
    ]  # fmt: skip
    assert apart.found["k_proj_weight"].shape == (4, 3)


def test_biases_norms_and_embeddings_stay_whole_and_say_why() -> None:
    weights = find_weights(ConvNet())
    assert list(weights.found) == [
        "conv1.weight", "conv2.weight", "fc.weight", "value.weight", "advantage.weight",
    ]  # fmt: skip
    assert weights.left["norm.weight"] == "it belongs to a norm (BatchNorm2d)"
    assert weights.left["norm.bias"] == weights.left["conv1.bias"] == BIAS
    gpt = find_weights(GPT())
    assert "head.weight" in gpt.found and "blocks.0.qkv.weight" in gpt.found
    assert gpt.left["embed.weight"] == "an embedding, or tied to one"
    assert gpt.left["norm.weight"] == "it belongs to a norm (LayerNorm)"
    others = nn.ModuleList([nn.GroupNorm(1, 2), nn.RMSNorm(3), nn.EmbeddingBag(3, 4), nn.PReLU(4)])
    assert find_weights(others).found == {}
    assert "1 dimensions: no connections" in find_weights(others).left["3.weight"]


def test_every_parameter_is_either_found_or_left() -> None:
    transformer = nn.Transformer(8, 2, 1, 1, 8, batch_first=True)
    for model in (ConvNet(), GPT(gated=True), transformer, nn.LSTM(2, 3)):
        weights = find_weights(model)
        both = [*weights.found, *weights.left]
        assert sorted(both) == sorted(name for name, _ in model.named_parameters())
        in_order = [name for name, _ in model.named_parameters() if name in weights.found]
        assert list(weights.found) == in_order


def test_what_no_known_layer_owns_stays_whole() -> None:
    torch.manual_seed(0)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))
            self.bilinear = nn.Bilinear(2, 3, 4)

    left = find_weights(Own()).left
    assert "it is a table of a Own" in left["table"]
    assert "it is a weight of a Bilinear" in left["bilinear.weight"]


# --- tied ----------------------------------------------------------------------------------------


def test_a_head_tied_to_an_embedding_stays_whole() -> None:
    net = GPT()
    net.head.weight = net.embed.weight
    weights = find_weights(net)
    assert "head.weight" not in weights.found and "embed.weight" not in weights.found
    assert weights.left["embed.weight"] == "an embedding, or tied to one"


def test_tied_linear_weights_are_one_with_two_names() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    weights = find_weights(net)
    assert list(weights.found) == ["0.weight"]
    assert weights.found["0.weight"].aliases == ("2.weight",)
    assert list(find_weights(net, include=["2"]).found) == ["0.weight"]
    assert find_weights(net, exclude=["2.*"]).found == {}
    assert find_weights(net, outputs={"2"}).found == {}


def test_a_module_that_is_used_twice_is_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.again = self.first

    weights = find_weights(Twice())
    assert list(weights.found) == ["first.weight"]
    assert weights.found["first.weight"].aliases == ("again.weight",)
    assert weights.left == {"first.bias": BIAS}


# --- weights that another parameter computes, or that hold no values -----------------------------


def computed(kind: str) -> nn.Module:
    layer = nn.Linear(3, 4)
    if kind == "prune":
        return prune.l1_unstructured(layer, "weight", 0.5)
    if kind == "prune lstm":
        return prune.l1_unstructured(nn.LSTM(3, 4), "weight_ih_l0", 0.5)
    if kind in ("weight_norm", "spectral_norm", "orthogonal"):
        return getattr(parametrizations, kind)(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still in use
        if kind == "old weight_norm":
            return nn.utils.weight_norm(layer)
        if kind == "old weight_norm lstm":
            return nn.utils.weight_norm(nn.LSTM(3, 4), "weight_ih_l0")
        return nn.utils.spectral_norm(layer)


@pytest.mark.parametrize(
    ("kind", "reason", "found"),
    [
        ("prune", "torch.nn.utils.prune computes the weight", []),
        ("prune lstm", "torch.nn.utils.prune computes the weight", ["weight_hh_l0"]),
        ("weight_norm", "another weight is computed from it", []),
        ("spectral_norm", "another weight is computed from it", []),
        ("orthogonal", "another weight is computed from it", []),
        ("old weight_norm", "another weight is computed from it", []),
        ("old weight_norm lstm", "another weight is computed from it", ["weight_hh_l0"]),
        ("old spectral_norm", "another weight is computed from it", []),
    ],
)
def test_weights_from_which_others_are_computed_stay_whole(
    kind: str, reason: str, found: list[str]
) -> None:
    weights = find_weights(computed(kind))
    assert list(weights.found) == found
    sources = [why for name, why in weights.left.items() if "bias" not in name]
    assert sources and all(reason in why for why in sources)


def test_what_torch_prune_has_finished_can_be_pruned_on() -> None:
    layer = computed("prune")
    prune.remove(layer, "weight")
    assert list(find_weights(layer).found) == ["weight"]


def test_lazy_meta_empty_and_frozen_parameters_stay_whole() -> None:
    torch.manual_seed(0)
    lazy = find_weights(nn.Sequential(nn.LazyLinear(3), nn.LazyConv2d(4, 3)))
    assert lazy.found == {}
    assert "a lazy layer that has not run" in lazy.left["1.weight"]
    ran = nn.Sequential(nn.LazyLinear(3))
    ran(torch.randn(2, 5))
    assert find_weights(ran).found["0.weight"].shape == (3, 5)
    assert "meta device" in find_weights(nn.Linear(2, 3, device="meta")).left["weight"]
    frozen = mlp(3, 4, 2)
    frozen[0].requires_grad_(False)
    assert list(find_weights(frozen).found) == ["2.weight"]
    assert "frozen" in find_weights(frozen).left["0.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that it initialises nothing
        empty = nn.Linear(0, 3)
    assert find_weights(empty).left["weight"] == "it is empty"


def test_integers_complex_numbers_and_sparse_tensors_are_not_pruned() -> None:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.int8), requires_grad=False)
    assert "torch.int8: quantized or complex" in find_weights(layer).left["weight"]
    layer.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))
    assert "torch.complex64" in find_weights(layer).left["weight"]
    layer.weight = nn.Parameter(torch.eye(4, 3).to_sparse())
    assert "stored as torch.sparse_coo" in find_weights(layer).left["weight"]
    layer.weight = nn.Parameter(torch.eye(4, 3).bfloat16())
    assert list(find_weights(layer).found) == ["weight"]


def test_only_what_an_optimizer_holds_is_found_when_there_are_optimizers() -> None:
    net = mlp(3, 4, 4, 2)
    first = torch.optim.SGD(net[0].parameters(), 0.1)
    last = torch.optim.Adam([{"params": [net[4].weight]}, {"params": [net[4].bias]}], 0.1)
    weights = find_weights(net, [first, last])
    assert list(weights.found) == ["0.weight", "4.weight"]
    assert weights.left["2.weight"] == "none of the watch's optimizers holds it"
    assert find_weights(net, []).found == {}
    assert len(find_weights(net).found) == 3


# --- what the user chose --------------------------------------------------------------------------


def test_patterns_name_weights_or_layers() -> None:
    net = GPT(depth=2)
    assert list(find_weights(net, include=["blocks.1.up"]).found) == ["blocks.1.up.weight"]
    assert list(find_weights(net, include=["blocks.?.qkv.weight", "head"]).found) == [
        "blocks.0.qkv.weight", "blocks.1.qkv.weight", "head.weight",
    ]  # fmt: skip
    some = find_weights(net, include=["blocks.*"], exclude=["*.[uq]*"])
    assert list(some.found) == [
        f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("out", "down")
    ]
    assert some.left["blocks.0.up.weight"] == "a pattern of exclude= names it"
    assert some.left["head.weight"] == "no pattern of include= names it"


def test_output_layers_stay_whole_unless_they_are_named() -> None:
    net = mlp(3, 4, 2)
    weights = find_weights(net, outputs={"2"})
    assert list(weights.found) == ["0.weight"]
    assert "an output layer" in weights.left["2.weight"]
    assert list(find_weights(net, outputs={"2"}, include=["*"]).found) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("types", [nn.Conv2d, (nn.Conv2d,), [nn.Conv2d]])
def test_types_are_classes_of_layers_one_or_several(types: Any) -> None:
    weights = find_weights(ConvNet(), types=types)
    assert list(weights.found) == ["conv1.weight", "conv2.weight"]
    assert weights.left["fc.weight"] == "Linear is not among the types chosen (Conv2d)"


@pytest.mark.parametrize("keyword", ["include", "exclude"])
def test_a_pattern_that_names_nothing_is_refused(keyword: str) -> None:
    with pytest.raises(ValueError, match="the pattern 'fc9' names no parameter and no lay.*0.wei"):
        find_weights(mlp(3, 4, 2), **{keyword: ["0", "fc9"]})  # type: ignore[arg-type]
