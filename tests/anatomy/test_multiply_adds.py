"""Multiply-adds against torch's counter, against ones that are added up, and what is refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynamo_probe.anatomy.multiply_adds import find_uses
from tests.models import GPT, ConvNet, mlp
from tests.training import everything, identical


class Tied(nn.Module):
    """One weight in two layers, and once more outside of any."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.second(self.first(x)), self.first.weight)


class Transposed(nn.Module):
    """The linear layer of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 7)), nn.Parameter(torch.zeros(7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 4), self.weight)


class Attention(nn.Module):
    """Attention over another sequence, with keys and values of other widths."""

    def __init__(self, **widths: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **widths)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attention(x, key, value)[0]


CASES: dict[str, tuple[Callable[[], nn.Module], list[Tensor]]] = {
    "mlp": (lambda: mlp(4, 9, 3), [torch.randn(6, 4)]),
    "conv net": (ConvNet, [torch.randn(3, 2, 10, 10)]),
    "gpt with swiglu": (lambda: GPT(gated=True), [torch.randint(11, (2, 7))]),
    "strides, groups and dilation": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1),
            nn.Conv2d(6, 12, (3, 2), groups=6, dilation=(1, 2)),
        ),
        [torch.randn(2, 4, 11, 12)],
    ),
    "transposed convolutions": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.ConvTranspose2d(6, 2, 2, padding=1)
        ),
        [torch.randn(2, 4, 5, 5)],
    ),
    "one dimension and three": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.Unflatten(2, (1, 2, 3)), nn.Conv3d(4, 3, (1, 2, 2))
        ),
        [torch.randn(2, 2, 8)],
    ),
    "tied": (Tied, [torch.randn(3, 5)]),
    "transposed linear": (Transposed, [torch.randn(3, 2, 4)]),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        [torch.randn(3, 5, 8)],
    ),
    "cross attention": (
        Attention,
        [torch.randn(2, 3, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 8)],
    ),
    "cross attention of other widths": (
        lambda: Attention(kdim=3, vdim=5),
        [torch.randn(2, 3, 8), torch.randn(2, 7, 3), torch.randn(2, 7, 5)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_dense_multiply_adds_are_half_the_flops_that_torch_counts(case: str) -> None:
    torch.manual_seed(0)
    make, inputs = CASES[case]
    net = make().eval()
    # Of attention's own products, which torch counts as well, no weight is a part.
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    counts = counter.get_flop_counts()["Global"]
    flops = sum(
        n for op, n in counts.items() if "bmm" not in str(op) and "attention" not in str(op)
    )
    uses = find_uses(net, tuple(inputs), {})
    assert uses.uncounted == {}
    assert uses.samples == len(inputs[0])
    sparse, dense = uses.total({})
    assert sparse == dense == flops / 2 / len(inputs[0])


def drawn_layer(draw: Callable[..., int]) -> nn.Module:
    groups, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    before, after = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    stride, dims = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    if dims == 0:
        return nn.Linear(before, after, bias=False)
    kind = [nn.Conv1d, nn.Conv2d][dims - 1]
    if draw(st.booleans()):
        kind = [nn.ConvTranspose1d, nn.ConvTranspose2d][dims - 1]
    return kind(before, after, kernel, stride, groups=groups, bias=False)


@given(data=st.data(), density=st.floats(0, 1))
def test_sparse_multiply_adds_are_what_ones_add_up_to_through_the_mask(data, density) -> None:
    layer = drawn_layer(data.draw)
    weight = layer.get_parameter("weight")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    mask = torch.rand(weight.shape, generator=generator) < density
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # type: ignore
    shape = (4, inputs) if isinstance(layer, nn.Linear) else (2, inputs, *[5] * (mask.dim() - 2))
    with torch.no_grad():
        weight.copy_(mask)
        counted = layer.double()(torch.ones(shape, dtype=torch.float64)).sum().item()
    layer.float()
    uses = find_uses(layer, (torch.ones(shape),), {})
    assert uses.sparse("weight", mask.flatten(1).sum(1)) == counted / shape[0]


def test_a_packed_attention_weight_is_counted_by_query_key_and_value() -> None:
    net = Attention()
    mask = torch.zeros(24, 8)
    mask[3], mask[9, :5], mask[20, 2:4] = 1, 1, 1
    uses = find_uses(net, (torch.randn(2, 3, 8), *torch.randn(2, 2, 7, 8)), {})
    # 3 queries, 7 keys and 7 values a sample.
    found = uses.sparse("attention.in_proj_weight", mask.sum(1).long())
    assert found == 3 * 8 + 7 * 5 + 7 * 2


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_apply_every_weight_once_at_each_step(kind, packed: bool) -> None:
    net, gates = kind(3, 5, 2, bidirectional=True), {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    x = torch.randn(6, 2, 3)
    lengths = torch.tensor([6, 4] if packed else [6, 6])
    steps = int(lengths.sum())
    given = nn.utils.rnn.pack_padded_sequence(x, lengths) if packed else x
    uses = find_uses(net, (given,), {})
    assert uses.uncounted == {}
    # By direction: 3 and then 10 inputs, and the hidden state each time.
    weights = gates * 5 * (2 * (3 + 5) + 2 * (10 + 5))
    total = uses.total({})[1]
    assert total is not None and uses.samples is not None
    assert total * uses.samples == steps * weights


def test_recurrent_cells_and_projections() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.other = nn.LSTMCell(3, 4), nn.GRUCell(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            state, hidden = None, None
            for _ in range(3):
                state = self.cell(x, state)
                hidden = self.other(state[0], hidden)
            assert hidden is not None
            return hidden

    uses = find_uses(Cells(), (torch.randn(5, 3),), {})
    assert uses.total({})[1] == 3 * (4 * 4 * (3 + 4) + 3 * 2 * (4 + 2))


class Computed(nn.Module):
    """Reads weights in ways that are no plain layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.how = nn.Linear(4, 4, bias=False), how
        if how == "parametrized":
            nn.utils.parametrizations.weight_norm(self.fc)
        if how == "scripted":
            self.fc = torch.jit.script(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        if self.how in ("parametrized", "scripted"):
            return self.fc(x)
        weight = self.fc.weight
        if self.how == "view":
            return x @ weight.t()
        if self.how == "einsum":
            return torch.einsum("bi,oi->bo", x, weight)
        if self.how == "hidden":
            return Hidden.apply(x, weight)  # type: ignore
        return F.linear(x, weight * 2)


class Hidden(torch.autograd.Function):
    """What no torch function mode sees."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() @ weight.detach().numpy().T)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[None, None]:
        return None, None


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")
@pytest.mark.parametrize(
    "how", ["times two", "view", "einsum", "parametrized", "hidden", "scripted"]
)
def test_what_cannot_be_counted_is_named_and_no_zero(how: str) -> None:
    uses = find_uses(Computed(how), (torch.randn(3, 4),), {})
    assert uses.total({}) == (None, None)
    names = [name for name in uses.uncounted if name.startswith("fc")]
    assert names
    assert all(uses.dense(name) is None for name in names)


def test_a_weight_that_the_pass_does_not_read_takes_nothing() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.embed = nn.Linear(3, 2), nn.Linear(9, 9), nn.Embedding(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.embed(x))

    uses = find_uses(Spare(), (torch.tensor([0, 1, 4]),), {})
    assert uses.uncounted == {}
    assert (uses.dense("used.weight"), uses.dense("spare.weight")) == (6, 0)
    assert uses.total({}) == (6, 6)


def test_inputs_without_samples_have_no_multiply_adds_for_one() -> None:
    uses = find_uses(mlp(3, 2), (torch.randn(0, 3),), {})
    assert uses.total({}) == (None, None)
    assert "the inputs" in uses.uncounted


def test_the_model_and_random_states_stay_as_they_are() -> None:
    torch.manual_seed(0)
    net, x = ConvNet().train(), torch.randn(3, 2, 10, 10)
    before, modes = everything([net], []), [m.training for m in net.modules()]
    find_uses(net, (x,), {})
    assert identical(before, everything([net], []))
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
