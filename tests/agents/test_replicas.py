"""Replicas: each is the run of its own seed, and none meets another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents import dqn, replicas
from agents.networks import make_network
from agents.replicas import Args, StackedReplay, clip_each, stack, train
from tests.agents.conftest import Corridor

QUICK = Args(
    log_dir=None, progress=False, replicas=3, total_steps=260, learning_starts=100,
    epsilon_steps=100, hidden=(16, 16), target_interval=50,
)  # fmt: skip


def test_a_stacked_network_computes_what_each_of_them_does():
    space = Corridor.observation_space
    single = [make_network(space, 2, (7, 5), seed) for seed in range(4)]
    x = torch.randn(4, 6, 3)
    found = stack(single)(x)
    for index, network in enumerate(single):
        assert torch.allclose(found[index], network(x[index]), atol=1e-6)


@pytest.mark.parametrize("double_q", [False, True])
def test_each_replica_is_the_run_of_its_own_seed(double_q: bool):
    args = replace(QUICK, double_q=double_q, seed=5)
    found = train(args)
    for index in range(3):
        alone = dqn.train(
            dqn.Args(
                log_dir=None,
                progress=False,
                seed=5 + index,
                total_steps=260,
                learning_starts=100,
                epsilon_steps=100,
                hidden=(16, 16),
                target_interval=50,
                double_q=double_q,
            )  # fmt: skip
        )
        expected = list(zip(alone.episode_steps, alone.episode_returns, strict=True))
        assert found.updates == alone.updates == 160
        assert list(found.episodes[index]) == expected
        for name, parameter in alone.network.named_parameters():
            own = found.network.get_parameter(name)[index]
            own = own.T if parameter.dim() == 2 else own.squeeze(0)
            # 160 updates of Adam in float32, with other kernels.
            assert torch.allclose(own, parameter, atol=2e-3), name


def test_gradients_are_clipped_replica_by_replica():
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4, 5), torch.randn(3, 1, 5)]
    gradients[0][1] *= 1e-3
    gradients[1][1] *= 1e-3
    expected = []
    for r in range(3):
        parts = [nn.Parameter(torch.zeros_like(g[r])) for g in gradients]
        for part, gradient in zip(parts, gradients, strict=True):
            part.grad = gradient[r].clone()
        nn.utils.clip_grad_norm_(parts, 2.0)
        expected.append([part.grad for part in parts])
    clip_each(gradients, 2.0)
    for r in range(3):
        for found, wanted in zip(gradients, expected[r], strict=True):
            assert wanted is not None and torch.allclose(found[r], wanted, rtol=1e-5)


def test_replays_do_not_mix_and_forget_the_oldest():
    replay = StackedReplay(4, Corridor.observation_space, seeds=[1, 2])
    for step in range(6):
        here = np.full((2, 3), step, dtype=np.float32) + [[0], [100]]
        replay.add(here, np.array([step, step]), np.zeros(2), here, np.array([True, False]))
    batch = replay.sample(200)
    assert batch.observations.shape == (2, 200, 3) and batch.actions.shape == (2, 200)
    assert set(batch.observations[0, :, 0].tolist()) == {2.0, 3.0, 4.0, 5.0}
    assert set(batch.observations[1, :, 0].tolist()) == {102.0, 103.0, 104.0, 105.0}
    assert (batch.continues[0] == 1).all() and (batch.continues[1] == 0).all()
    assert not torch.equal(batch.actions[0], batch.actions[1])


def test_a_truncated_episode_is_stored_as_one_that_goes_on(monkeypatch: pytest.MonkeyPatch):
    kept: list[StackedReplay] = []

    class Kept(StackedReplay):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            kept.append(self)

    monkeypatch.setattr(replicas, "StackedReplay", Kept)
    train(replace(QUICK, env_id="Corridor-v0", total_steps=16, learning_starts=16, replicas=2))
    # Three steps to a terminal state, then five to a time limit.
    expected = [1, 1, 0, 1, 1, 1, 1, 1] * 2
    assert kept[0].stored.continues[:, :16].tolist() == [expected, expected]


def test_the_probe_reads_each_replica_and_changes_nothing():
    plain = train(QUICK)
    probed = train(replace(QUICK, probe=True, probe_every=20))
    for one, other in zip(plain.network.parameters(), probed.network.parameters(), strict=True):
        assert torch.equal(one, other)
    alone = dqn.train(
        dqn.Args(
            log_dir=None,
            progress=False,
            seed=2,
            total_steps=260,
            learning_starts=100,
            epsilon_steps=100,
            hidden=(16, 16),
            target_interval=50,
            probe=True,
            probe_every=20,
        )  # fmt: skip
    )
    steps, values = probed.readings["dormancy/replica/1/tau=0.1"]
    expected = alone.readings["dormancy/tau=0.1"]
    assert steps.tolist() == expected[0].tolist()
    # A unit at the very threshold may fall to either side.
    assert np.abs(values - expected[1]).max() <= 1.01 / 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicas": 0}, "replicas is 0; give 1 or more"),
        ({"redo": True}, "use agents.dqn for these"),
        ({"env_id": "Lights-v0"}, "replicas are for vectors"),
        ({"env_id": "Pendulum-v1"}, "use sac or ppo"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train(replace(QUICK, **changes))


def test_the_command_line_trains(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    line = "replicas --replicas 2 --total-steps 150 --learning-starts 100 --log-dir None"
    monkeypatch.setattr("sys.argv", line.split())
    replicas.main()
    assert "50 updates of 2 replicas" in capsys.readouterr().out
