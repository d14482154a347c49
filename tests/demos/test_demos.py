"""The demos write logs that show what they promise."""

import importlib
import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dynamo_probe.demos import DEMOS
from dynamo_probe.warning import DynamoProbeWarning


def logs(directory: Path) -> dict[str, EventAccumulator]:
    return {one.name: EventAccumulator(str(one)).Reload() for one in sorted(directory.iterdir())}


def scalars(log: EventAccumulator, tag: str) -> list[float]:
    return [event.value for event in log.Scalars(tag)]


def run(name: str, log_dir: Path, updates: int) -> list[int]:
    """Train, and return what progress was told."""
    told: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynamoProbeWarning)
        DEMOS[name].run(log_dir, updates=updates, progress=told.append)
    return told


def test_dormancy_has_two_runs_and_only_one_recycles(tmp_path: Path) -> None:
    run("dormancy", tmp_path, 600)
    found = logs(tmp_path)
    assert list(found) == ["plain", "redo"]
    for log in found.values():
        tags = log.Tags()["scalars"]
        layers = {f"dormancy/layer/hidden{number}/tau=0.1" for number in (1, 2, 3)}
        assert layers | {"dormancy/tau=0.1", "accuracy"} <= set(tags)
        assert scalars(log, "accuracy")[0] > 0.8  # the first task is learned
    assert sum(scalars(found["redo"], "redo/recycled")) > 0
    assert not [tag for tag in found["plain"].Tags()["scalars"] if tag.startswith("redo")]
    # Until the first recycling both are the same run.
    plain, redo = (scalars(log, "dormancy/tau=0.1")[:4] for log in found.values())
    assert plain == redo


def test_sparsity_ends_at_its_density_and_has_the_curve_with_control_and_rate(
    tmp_path: Path,
) -> None:
    run("sparsity", tmp_path, 60)
    (log,) = logs(tmp_path).values()
    density, target = scalars(log, "sparsity/density"), scalars(log, "sparsity/target")
    weights = 20 * 128 + 128 * 128 + 128 * 64  # the output layer stays whole
    assert density == pytest.approx(target, abs=1 / weights)
    assert density[0] == pytest.approx(0.5, abs=1e-4)
    assert density[-1] == pytest.approx(0.1, abs=1e-4)
    assert max(scalars(log, "topology/turnover")) > 0.05
    rates = scalars(log, "pruning_plasticity/lr")
    assert [rates[0], rates[-1]] == pytest.approx([0.1, 0.001])
    tags = log.Tags()["scalars"]
    for tag in ("control", "before", "rate=0.98/plasticity", "rate=0.98/after"):
        assert len(scalars(log, f"pruning_plasticity/{tag}")) == 12, tags


def test_heads_sees_half_of_the_tokens_repeated_in_one_run_and_none_in_the_other(
    tmp_path: Path,
) -> None:
    run("heads", tmp_path, 20)
    found = logs(tmp_path)
    assert list(found) == ["fresh", "repeated"]
    assert max(scalars(found["fresh"], "repetition/fraction")) < 0.01
    # Of 640 positions 320 are repeats of 80 samples, the first of each is not: 240 of 640.
    shares = scalars(found["repeated"], "repetition/fraction")
    assert sum(shares) / len(shares) == pytest.approx(240 / 640, abs=0.01)
    for log in found.values():
        assert {"induction/top", "induction/chance", "induction/copy_loss"} <= set(
            log.Tags()["scalars"]
        )


@pytest.mark.parametrize("name", list(DEMOS))
def test_progress_goes_up_to_the_total(name: str, tmp_path: Path) -> None:
    told = run(name, tmp_path, 3)
    assert told == sorted(told) and told[-1] == DEMOS[name].runs * 3


@pytest.mark.parametrize("name", list(DEMOS))
def test_the_seed_decides_everything(name: str, tmp_path: Path) -> None:
    for number in range(2):
        torch.manual_seed(number)  # which is not theirs
        run(name, tmp_path / str(number), 3)
    first, second = (logs(tmp_path / str(number)) for number in range(2))
    for run_name, log in first.items():
        tags = log.Tags()["scalars"]
        assert tags == second[run_name].Tags()["scalars"]
        for tag in tags:
            np.testing.assert_array_equal(scalars(log, tag), scalars(second[run_name], tag))


@pytest.mark.parametrize("name", list(DEMOS))
def test_one_update_is_enough_and_none_is_refused(name: str, tmp_path: Path) -> None:
    run(name, tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == DEMOS[name].runs
    with pytest.raises(ValueError, match="give 1 or more"):
        DEMOS[name].run(tmp_path, updates=0)


@pytest.mark.parametrize("name", list(DEMOS))
def test_the_registry_says_what_the_files_do(name: str) -> None:
    signature = inspect.signature(importlib.import_module(f"dynamo_probe.demos.{name}").run)
    assert signature.parameters["updates"].default == DEMOS[name].updates
