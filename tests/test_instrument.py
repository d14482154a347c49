"""Copies of instruments: their own settings, the very networks that they were given."""

import copy

import torch

import dynamo_probe as dp
from dynamo_probe.instrument import fresh_copy
from dynamo_probe.integrations.attachment import Attachment
from tests.models import mlp, plant_dead
from tests.training import train


def test_a_copy_has_settings_of_its_own_and_the_very_target_network() -> None:
    target, batch = mlp(4, 8, 2), torch.randn(3, 4)
    redo = dp.ReDo(tau=0.2, mirror=[target])
    copied = fresh_copy(redo)
    assert copied is not redo and copied.mirror[0] is target
    copied._born["0"] = torch.zeros(8)
    assert redo._born == {}
    assert torch.equal(fresh_copy(dp.Rank(batch=batch)).batch.args[0], batch)


def test_a_frameworks_callback_recycles_the_target_network_of_the_loop() -> None:
    torch.manual_seed(0)
    net = mlp(4, 8, 2)
    plant_dead(net[0], 1)
    target = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters())
    redo = dp.ReDo(tau=0.0, every=2, end=2, mirror=target)
    attachment = Attachment([redo], None, (), None, 0, "raise")
    attachment.begin(net, optimizer)
    train(net, optimizer, lambda m: m(torch.randn(16, 4)).square().mean(), 2)
    attachment.close()
    assert torch.equal(target[0].weight[1], net[0].weight[1])
