"""Fitting fresh targets, against torch's own Adam, a closed form and networks that cannot learn."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dynamo_probe.functional import trainability
from dynamo_probe.functional.fresh import own_copy, record_distributions
from dynamo_probe.functional.trainability import area
from tests.models import GPT, ConvNet, mlp
from tests.training import everything, identical, seeded


def torch_adam(
    net: nn.Module, x: Tensor, targets: Tensor, updates: int, rate: float
) -> list[float]:
    """The same fit in the plainest way."""
    copied = own_copy(net)
    optimizer = torch.optim.Adam(copied.parameters(), rate)
    losses = []
    for _ in range(updates):
        loss = F.mse_loss(copied(x), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*losses, F.mse_loss(copied(x), targets).item()]


def targets_of(generator_seed: int, shape: tuple[int, ...]) -> Tensor:
    """The N(0, 1) numbers that a fit draws: after one number for its seed."""
    generator = torch.Generator().manual_seed(generator_seed)
    torch.randint(2**62, (), generator=generator)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("centred", [False, True])
def test_the_curve_is_that_of_torchs_adam_on_standard_normal_targets(centred: bool) -> None:
    torch.manual_seed(0)
    net, x = mlp(4, 16, 3), torch.randn(20, 4)
    with torch.no_grad():
        net[2].bias.add_(5)
    report = trainability(
        net, x, updates=30, learning_rate=1e-2, centred=centred,
        generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    targets = targets_of(7, (20, 3)) + (net(x).mean().detach() if centred else 0)
    expected = torch_adam(net, x, targets, 30, 1e-2)
    assert report.losses.tolist() == pytest.approx(expected, rel=1e-4)
    assert len(report.fresh_losses) == 31 and report.samples == 20
    assert report.ratio == report.losses[-1].item() / report.fresh_losses[-1].item()


def test_a_network_that_passes_nothing_on_only_learns_its_output_bias() -> None:
    torch.manual_seed(0)
    net, x = mlp(4, 16, 1), torch.randn(64, 4)
    with torch.no_grad():
        net[0].bias.fill_(-99)
    report = trainability(net, x, updates=400, learning_rate=0.03, centred=False)
    seed0 = targets_of(0, (64, 1))
    # The best constant leaves the variance of the targets.
    assert report.losses[-1].item() == pytest.approx(seed0.var(correction=0).item(), rel=1e-4)
    assert report.fresh_losses[-1] < 0.7 * report.losses[-1]
    assert report.ratio > 1.4


def test_a_fresh_network_and_a_fresh_network_are_alike() -> None:
    torch.manual_seed(1)
    ratios = [
        trainability(mlp(4, 32, 32, 1), torch.randn(64, 4), updates=60, learning_rate=1e-2).ratio
        for _ in range(5)
    ]
    assert 0.7 < sum(ratios) / 5 < 1.4


def test_an_offset_of_the_predictions_counts_only_when_targets_are_not_centred() -> None:
    torch.manual_seed(0)
    net, x = mlp(4, 32, 1), torch.randn(32, 4)
    with torch.no_grad():
        net[2].bias.fill_(100.0)
    centred = trainability(net, x, updates=20)
    plain = trainability(net, x, updates=20, centred=False)
    assert plain.ratio > 1000
    assert 0.5 < centred.ratio < 2


def test_random_labels_are_fitted_by_cross_entropy_on_the_last_axis() -> None:
    torch.manual_seed(0)
    net, tokens = GPT(), torch.randint(11, (4, 6))
    net.drop.p = 0.0
    report = trainability(
        net, tokens, updates=3, targets="labels", generator=torch.Generator().manual_seed(5)
    )
    generator = torch.Generator().manual_seed(5)
    torch.randint(2**62, (), generator=generator)
    labels = torch.randint(11, (4, 6), generator=generator)
    expected = F.cross_entropy(net(tokens).flatten(0, 1), labels.flatten())
    assert report.losses[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert report.losses[-1] < report.losses[0]


def test_every_floating_output_is_fitted_whatever_it_is_wrapped_in() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(3, 8, 4)

        def forward(self, x: Tensor, twice: bool = False) -> dict[str, Tensor]:
            y = self.net(x)
            return {"a": y[:, :1], "index": y.argmax(1), "b": y[:, 1:] * (2 if twice else 1)}

    torch.manual_seed(0)
    net, x = Wrapped(), torch.randn(9, 3)
    report = trainability(net, {"x": x, "twice": True}, updates=1, centred=False)
    generator = torch.Generator().manual_seed(0)
    torch.randint(2**62, (), generator=generator)
    a, b = (torch.randn(9, n, generator=generator) for n in (1, 3))
    y = net(x, True)
    error = (y["a"] - a).square().sum() + (y["b"] - b).square().sum()
    assert report.losses[0].item() == pytest.approx(error.item() / 36, rel=1e-6)


def test_nothing_of_the_model_its_gradients_inputs_or_random_states_changes() -> None:
    class Careless(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.add_(1))

    seeded()
    net, x = Careless(), torch.randn(3, 2, 10, 10)
    optimizer = torch.optim.Adam(net.parameters())
    net(x).sum().backward()
    given = x.clone()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    before = everything([net], [optimizer])
    modes = [module.training for module in net.modules()]
    with torch.inference_mode():
        trainability(net, x, updates=3)
    assert identical(before, everything([net], [optimizer]))
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, net.parameters(), strict=True))  # type: ignore[arg-type]
    assert torch.equal(x, given)
    assert modes == [module.training for module in net.modules()]


def test_it_is_the_same_every_time_even_with_dropout() -> None:
    torch.manual_seed(0)
    net, x = ConvNet(), torch.randn(3, 2, 10, 10)
    first, second = (trainability(net, x, updates=4) for _ in range(2))
    torch.manual_seed(9)
    third = trainability(net, x, updates=4)
    for other in (second, third):
        assert torch.equal(first.losses, other.losses)
        assert torch.equal(first.fresh_losses, other.fresh_losses)


def test_whoever_listens_to_all_optimizers_hears_nothing() -> None:
    heard: list[object] = []
    handle = register_optimizer_step_post_hook(
        lambda optimizer, args, kwargs: heard.append(optimizer)
    )
    try:
        trainability(mlp(3, 4, 1), torch.randn(5, 3), updates=2)
    finally:
        handle.remove()
    assert heard == []


def test_frozen_parameters_stay_frozen_in_the_fit() -> None:
    torch.manual_seed(0)
    net, x = mlp(3, 4, 1), torch.randn(5, 3)
    net[0].requires_grad_(False)
    free = trainability(mlp(3, 4, 1), x, updates=50, learning_rate=0.03)
    net[2].requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        trainability(net, x, updates=2)
    assert free.losses[-1] < free.losses[0]


def test_the_area_is_the_mean_height_of_the_curve() -> None:
    assert area(torch.tensor([3.0, 1.0])) == 2.0
    assert area(torch.tensor([4.0, 0.0, 4.0])) == 2.0


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table


def test_what_cannot_be_initialised_needs_a_recorded_distribution() -> None:
    torch.manual_seed(0)
    net, x = Table(), torch.randn(5, 3)
    with pytest.raises(ValueError, match="nothing initialises table"):
        trainability(net, x)
    report = trainability(net, x, updates=2, recorded=record_distributions(net))
    assert report.drawn == ("table",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"updates": 0}, "updates is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"targets": "noise"}, "give 'regression' or 'labels'"),
    ],
)
def test_mistakes_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainability(mlp(3, 4, 1), torch.randn(5, 3), **arguments)  # type: ignore[arg-type]
