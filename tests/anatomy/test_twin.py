"""A twin shares the weights and nothing else."""

import threading

import torch
from torch import nn

from dynamo_probe.anatomy.twin import twin, unwrap
from tests.models import ConvNet, mlp


def test_weights_are_shared_and_gradients_buffers_and_modes_are_not() -> None:
    model = ConvNet()
    copied = twin(model)
    for ours, theirs in zip(model.parameters(), copied.parameters(), strict=True):
        assert ours is not theirs and ours.data_ptr() == theirs.data_ptr()
    copied(torch.randn(4, 2, 10, 10)).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert model.norm.num_batches_tracked == 0 and copied.norm.num_batches_tracked == 1
    copied.eval()
    assert model.training


def test_hooks_that_cannot_be_copied_and_an_optimizer_do_not_get_in_the_way() -> None:
    class Hook:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.calls = 0

        def __call__(self, *_: object) -> None:
            self.calls += 1

    model, hook = mlp(3, 4, 1), Hook()
    model[0].register_forward_hook(hook)
    model.optimizer = torch.optim.Adam(model.parameters())
    copied = twin(model)
    copied(torch.randn(2, 3))
    assert hook.calls == 0
    model(torch.randn(2, 3))
    assert hook.calls == 1
    assert copied.optimizer is model.optimizer


def test_tied_parameters_stay_tied_and_requires_grad_is_the_twins_own() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    copied = twin(model, requires_grad=True)
    assert copied[2].weight is copied[0].weight
    assert copied[0].bias.requires_grad and not model[0].bias.requires_grad


def test_wrappers_are_looked_through() -> None:
    model = mlp(3, 4, 1)
    assert unwrap(nn.DataParallel(torch.compile(model, backend="eager"))) is model
