"""Which layers are read, where, and why the others are left out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from dynamo_probe.anatomy.neurons import find_neurons
from tests.models import GPT, ConvNet, mlp


class Written(nn.Module):
    """A network whose forward is given as a function of itself and its input."""

    def __init__(self, forward, **modules) -> None:
        super().__init__()
        self.written = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def two(forward, **more) -> Written:
    return Written(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 2), **more)


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def taps(model: nn.Module, x: Tensor = X) -> dict[str, str]:
    return {name: str(layer.tap) for name, layer in find_neurons(model, (x,)).layers.items()}


def skipped(model: nn.Module, x: Tensor = X) -> dict[str, str]:
    return dict(find_neurons(model, (x,)).skipped)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), "output of 1"),
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)), "output of 1"),
        (nn.Sequential(nn.Linear(6, 5), nn.PReLU(), nn.Linear(5, 2)), "output of 1"),
        (two(lambda m, x: m.b(F.relu(m.a(x)))), "input of b"),
        (two(lambda m, x: m.b(F.prelu(m.a(x), m.w)), w=nn.Parameter(torch.ones(1))), "input of b"),
        (two(lambda m, x: m.b(F.relu(m.a(x) + m.w)), w=nn.Parameter(torch.ones(5))), "input of b"),
        (two(lambda m, x: m.b(F.dropout(F.relu(m.a(x))))), "relu(output of a)"),
        (two(lambda m, x: m.b(m.d(F.relu(m.a(x)))), d=nn.Dropout()), "input of d"),
        (two(lambda m, x: m.b(F.relu(F.dropout(m.a(x))))), "input of b"),
        (two(lambda m, x: m.b(F.relu(m.n(m.a(x)))), n=nn.LayerNorm(5)), "input of b"),
        (two(lambda m, x: m.b(F.relu(m.a(x)) * 2)), "relu(output of a)"),
        (two(lambda m, x: (m.b(F.relu(m.a(x))), m.a.weight.norm())[0]), "input of b"),
        (nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2)), "output of 1"),
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), spectral_norm(nn.Linear(5, 2))), "output of 1"),
    ],
)
def test_the_simplest_exact_tap_is_chosen(model: nn.Module, expected: str) -> None:
    assert list(taps(model).values()) == [expected]


def logged(m: Written, x: Tensor) -> Tensor:
    h = m.a(x)
    m.level = h.detach().abs().mean()
    h = F.relu(h)
    m.zeros = (h == 0).float().mean()
    return m.b(h)


def test_side_computations_that_lead_nowhere_do_not_hide_a_layer() -> None:
    assert taps(two(logged)) == {"a": "input of b"}


def decoded(m: Written, x: Tensor) -> Tensor:
    return F.linear(F.relu(m.a(x)), m.a.weight.t())


def test_a_tied_decoder_reads_the_units_of_its_encoder() -> None:
    assert taps(Written(decoded, a=nn.Linear(6, 5))) == {"a": "relu(output of a)"}


def overwritten(m: Written, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, 0].zero_()
    return m.b(m.d(F.relu(h).view(8, 5, 1).squeeze(-1)))


@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [
        (two(lambda m, x: m.b(m.a(x))), "a", "no activation function follows"),
        (two(lambda m, x: m.b(F.softmax(m.a(x), -1))), "a", "goes to softmax"),
        (two(lambda m, x: m.b(F.relu(m.a(x)))), "b", "an output layer"),
        (two(lambda m, x: m.b(x[:, :5] + m.a(x))), "a", "residual stream"),
        (
            Written(lambda m, x: m.b(F.glu(m.a(x))), a=nn.Linear(6, 10), b=nn.Linear(5, 2)),
            "a",
            "split",
        ),
        (
            Written(
                lambda m, x: m.b(F.relu(m.a(F.relu(m.a(x))))), a=nn.Linear(6, 6), b=nn.Linear(6, 2)
            ),
            "a",
            "called 2 times",
        ),
        (
            Written(
                lambda m, x: m.b((lambda h: torch.cat([F.relu(h), F.relu(-h)], -1))(m.a(x))),
                a=nn.Linear(6, 5),
                b=nn.Linear(10, 2),
            ),
            "a",
            "joined with others",
        ),
        (two(lambda m, x: m.b(F.relu(m.l(x)[0])), l=nn.LSTM(6, 5)), "l", "inside one fused call"),
        (two(lambda m, x: m.b(F.relu(x[:, :5]))), "a", "not called by itself"),
    ],
)
def test_a_layer_that_cannot_be_read_is_left_out_with_the_reason(
    model: nn.Module, layer: str, reason: str
) -> None:
    assert layer not in taps(model)
    assert reason in skipped(model)[layer]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_is_named_as_closed() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.ReLU()))
    assert "scripted" in skipped(nn.Sequential(scripted, nn.Linear(5, 2)))["0"]


def test_units_that_are_changed_through_a_view_are_refused() -> None:
    # The layer's output is changed through a view, behind the back of any record.
    model = two(overwritten, d=nn.Dropout(0.0))
    for bias in (-9.0, 9.0):  # whether or not the change can be seen in the numbers
        with torch.no_grad():
            model.a.bias.fill_(bias)
        assert taps(model) == {}
        assert "through a view" in skipped(model)["a"]


def test_squeeze_and_excitation_and_depthwise_layers_do_not_mislead() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        h = F.relu(m.a(x))
        gate = torch.sigmoid(m.e2(F.relu(m.e1(h.mean((2, 3))))))
        return m.fc((h * gate[:, :, None, None]).flatten(1))

    model = Written(
        forward,
        a=nn.Conv2d(1, 4, 3),
        e1=nn.Linear(4, 2),
        e2=nn.Linear(2, 4),
        fc=nn.Linear(64, 3),
    )
    anatomy = find_neurons(model, (torch.randn(2, 1, 6, 6),))
    found = {name: (la.units, la.activation, la.partner) for name, la in anatomy.layers.items()}
    assert found == {
        "a": (4, "relu", None),
        "e1": (2, "relu", None),
        "e2": (4, "sigmoid", None),
    }


def test_a_gated_unit_is_the_product_of_two_layers() -> None:
    anatomy = find_neurons(GPT(gated=True, depth=1), (torch.randint(11, (2, 5)),))
    (layer,) = anatomy.layers.values()
    assert (layer.name, layer.partner) == ("blocks.0.gate", "blocks.0.up")
    assert str(layer.tap) == "input of blocks.0.down"
    assert "together with blocks.0.gate" in anatomy.skipped["blocks.0.up"]


@pytest.mark.parametrize("training", [True, False])
def test_the_layers_of_torchs_transformer_are_found_in_either_mode(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 1)).train(training)
    anatomy = find_neurons(model, (torch.randn(2, 4, 8),))
    assert list(anatomy.layers) == ["0.layers.0.linear1", "0.layers.1.linear1"]
    assert "fused call" in anatomy.skipped["0.layers.0.self_attn"]


def test_looking_changes_nothing_of_the_model() -> None:
    model = ConvNet()
    seen = []
    model.conv1.register_forward_hook(lambda *_: seen.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_neurons(model, (torch.randn(4, 2, 10, 10),))
    assert model.training and not seen
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_looking_does_not_consume_random_numbers() -> None:
    model, x = ConvNet(), torch.randn(4, 2, 10, 10)
    random = torch.get_rng_state()
    find_neurons(model, (x,))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_that_cannot_be_copied_is_said_to_be_so() -> None:
    class Locked:
        def __deepcopy__(self, memo: dict) -> None:
            raise TypeError("cannot copy a lock")

    model = mlp(6, 5, 2)
    model.lock = Locked()
    with pytest.raises(RuntimeError, match="cannot copy a lock"):
        find_neurons(model, (X,))
