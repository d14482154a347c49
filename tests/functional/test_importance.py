"""What a connection is worth, against autograd, finite differences and the Hessian in full."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dynamo_probe.functional import grasp_scores, magnitude_scores
from dynamo_probe.functional.importance import magnitude, saliency


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 2)
        self.fc = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.conv(x)).flatten(1))


@pytest.fixture
def net() -> Small:
    torch.manual_seed(0)
    return Small().double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 2, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(2, (7,), generator=generator)


def test_magnitude_is_the_absolute_value_in_float32_or_better() -> None:
    weights = {
        "half": torch.tensor([[-2.5, 0.0], [1.0, -0.0]], dtype=torch.float16),
        "brain": torch.tensor([-3.0], dtype=torch.bfloat16),
        "single": nn.Parameter(torch.tensor([-0.1])),
        "double": torch.tensor([-0.1], dtype=torch.float64),
    }
    scores = magnitude_scores(weights)
    assert scores["half"].tolist() == [[2.5, 0.0], [1.0, 0.0]]
    assert [score.dtype for score in scores.values()] == [torch.float32] * 3 + [torch.float64]
    assert scores["double"].item() == 0.1
    assert not scores["single"].requires_grad
    assert weights["half"][0, 0] == -2.5


def test_saliency_is_what_the_loss_changes_by_to_first_order(net: Small, batch) -> None:  # noqa: ANN001
    x, y = batch
    F.cross_entropy(net(x), y).backward()
    weight = net.fc.weight
    assert weight.grad is not None
    scores = saliency(weight, weight.grad)
    for place in [(0, 0), (1, 5), (0, 8)]:
        # d loss / d m of a mask that multiplies one weight, by central differences.
        losses = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            changed = weight.detach().clone()
            changed[place] *= factor
            out = functional_call(net, {"fc.weight": changed}, (x,))
            losses.append(F.cross_entropy(out, y).item())
        slope = (losses[0] - losses[1]) / 2e-5
        assert scores[place].item() == pytest.approx(abs(slope), rel=1e-4, abs=1e-10)
    assert bool((scores >= 0).all())


def test_saliency_of_half_precision_does_not_underflow() -> None:
    weight, gradient = (torch.tensor([1e-4], dtype=torch.float16) for _ in range(2))
    assert saliency(weight, gradient).item() == pytest.approx(1e-8, rel=1e-2)
    assert magnitude(weight).dtype == torch.float32


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient(net: Small, batch) -> None:  # noqa: ANN001
    x, y = batch
    names = ["conv.weight", "fc.weight"]
    parameters = dict(net.named_parameters())
    sizes = [parameters[name].numel() for name in names]

    def loss_of(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        own = {n: part.view_as(parameters[n]) for n, part in zip(names, parts, strict=True)}
        return F.cross_entropy(functional_call(net, own, (x,)), y)

    flat = torch.cat([parameters[name].detach().flatten() for name in names])
    hessian = torch.autograd.functional.hessian(loss_of, flat)
    gradient = torch.autograd.functional.jacobian(loss_of, flat)
    assert isinstance(hessian, Tensor) and isinstance(gradient, Tensor)
    expected = flat * (hessian @ gradient)

    calls = []

    def loss() -> Tensor:
        calls.append(1)
        return F.cross_entropy(net(x), y)

    with torch.no_grad():
        scores = grasp_scores({name: parameters[name] for name in names}, loss)
    assert len(calls) == 1
    assert list(scores) == names
    assert {n: s.shape for n, s in scores.items()} == {n: parameters[n].shape for n in names}
    found = torch.cat([score.flatten() for score in scores.values()])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)
    assert all(p.grad is None for p in net.parameters())


def test_grasp_by_hand_on_a_quadratic_loss() -> None:
    # loss = (a x)^2 / 2 + (b y)^2 / 2 with curvatures x^2 and y^2: g = a x^2, H g = a x^4.
    a, b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
    scores = grasp_scores({"a": a, "b": b}, lambda: (3 * a) ** 2 / 2 + b**2 / 2)
    assert scores["a"].item() == pytest.approx(81.0)
    assert scores["b"].item() == pytest.approx(1.0)


def test_grasp_is_zero_where_no_gradient_depends_on_the_weights() -> None:
    weight, other = nn.Parameter(torch.tensor([2.0, -1.0])), nn.Parameter(torch.tensor([3.0]))
    assert grasp_scores({"w": weight}, lambda: weight.sum())["w"].tolist() == [0.0, 0.0]
    both = grasp_scores({"w": weight, "v": other}, lambda: weight.sum() + (other**2).sum() / 2)
    assert both["w"].tolist() == [0.0, 0.0]
    assert both["v"].tolist() == [9.0]


def test_grasp_refuses_a_weight_that_the_loss_does_not_see(net: Small, batch) -> None:  # noqa: ANN001
    alone = nn.Linear(2, 2)
    weights = {"fc.weight": net.fc.weight, "alone.weight": alone.weight}
    with pytest.raises(ValueError, match="the loss does not depend on alone.weight"):
        grasp_scores(weights, lambda: F.cross_entropy(net(batch[0]), batch[1]))
