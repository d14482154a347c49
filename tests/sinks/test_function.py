"""Log functions as sinks: fakes, the real trackers where installed, and bad ones in a training."""

import contextlib
import contextvars
import errno
import functools
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dynamo_probe as dp
from dynamo_probe.sinks import Courier, LogFunction
from tests.models import mlp
from tests.training import everything, identical, seeded, train


def loss(net: torch.nn.Module) -> torch.Tensor:
    return net(torch.randn(8, 4)).square().mean()


def watched(updates: int = 12, **keywords: Any) -> tuple[dp.Watch, list[Any]]:
    """Train under a watch that reads at every update; return it, and the state of the run."""
    seeded()
    net = mlp(4, 8, 6, 1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    with dp.watch(net, optimizer, dp.Dormancy(every=1), **keywords) as watch:
        train(net, optimizer, loss, updates)
    return watch, everything([net], [optimizer])


def at_update(watch: dp.Watch, step: int) -> dict[str, float]:
    """Return the scalars that the history has of an update."""
    found = {}
    for tag in watch.history.tags():
        steps, values = watch.history.series(tag)
        if not tag.startswith("dormancy/scores/") and step in steps:
            found[tag] = float(values[steps == step][0])
    return found


# --- fakes ----------------------------------------------------------------------------------------


def test_any_callable_gets_the_scalars_of_each_update_in_one_call() -> None:
    calls: list[tuple[dict[str, float], int]] = []
    watch, _ = watched(sinks=[lambda metrics, step: calls.append((metrics, step))])
    assert [step for _, step in calls] == list(range(1, 13))
    assert all(metrics == at_update(watch, step) for metrics, step in calls)
    assert "dormancy/tau=0.1" in calls[0][0]
    assert all(type(value) is float for metrics, _ in calls for value in metrics.values())


def test_a_function_alone_needs_no_list_and_a_class_is_refused() -> None:
    calls: list[int] = []
    watched(3, sinks=lambda metrics, step: calls.append(step))
    assert calls == [1, 2, 3]
    with pytest.raises(TypeError, match=r"wandb\.log"):
        watched(1, sinks=[dict])


def test_an_update_with_nothing_but_vectors_and_events_is_not_logged() -> None:
    calls: list[Any] = []
    sink = LogFunction(lambda metrics, step: calls.append(metrics))
    event = dp.Event(1, "alert", "x")
    sink.write(1, [dp.Reading(1, "scores", np.ones(3))], [event])
    assert calls == []
    sink.write(2, [dp.Reading(2, "scores", np.ones(3)), dp.Reading(2, "x", 0.5)], [event])
    assert calls == [{"x": 0.5}]


def test_the_function_runs_in_the_context_of_the_moment_it_was_handed_over() -> None:
    run: contextvars.ContextVar[str] = contextvars.ContextVar("run", default="no run")
    found: set[tuple[str, bool]] = set()

    def log(metrics: dict[str, float], step: int) -> None:
        found.add((run.get(), threading.current_thread() is threading.main_thread()))

    token = run.set("mine")
    watched(3, sinks=[log])
    run.reset(token)
    assert found == {("mine", False)}


# --- bad ones in a training -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("the server is gone"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_function_that_fails_at_every_third_write_loses_only_those(error: Exception) -> None:
    calls: list[int] = []
    logged: list[int] = []

    def log(metrics: dict[str, float], step: int) -> None:
        calls.append(step)
        if len(calls) % 3 == 0:
            raise error
        logged.append(step)

    _, unwatched = watched(40)
    with pytest.warns(dp.DynamoProbeWarning, match="could not write") as told:
        watch, state = watched(40, sinks=[log])
    assert identical(state, unwatched)
    assert watch.step == 40
    assert watch.history.series("dormancy/tau=0.1")[0].tolist() == list(range(1, 41))
    assert len(told) == 1
    assert [e.kind for e in watch.events] == ["note"]
    # Each failure costs its own update and the one after it; nothing is logged twice or reordered.
    assert logged == [step for step in range(1, 41) if step % 4 in (1, 2)]
    assert any("missed 20 updates and wrote 20" in line for line in watch.doctor().warnings)


def test_a_function_that_never_returns_stops_neither_training_nor_close_nor_other_sinks_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Courier.close, "__defaults__", (0.3,))
    forever, entered = threading.Event(), threading.Event()

    def log(metrics: dict[str, float], step: int) -> None:
        entered.set()
        forever.wait()

    _, unwatched = watched(12)
    try:
        with pytest.warns(dp.DynamoProbeWarning, match="was given up"):
            watch, state = watched(12, sinks=[log])
    finally:
        forever.set()
    assert entered.is_set()
    assert identical(state, unwatched)
    assert watch.step == 12
    assert watch.history.series("dormancy/tau=0.1")[0].tolist() == list(range(1, 13))


def test_what_was_written_before_the_disk_was_full_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    flush = EventFileWriter.flush
    count = 0

    def full_at_6_and_7(self: EventFileWriter) -> None:
        nonlocal count
        count += 1
        if 6 <= count <= 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(self)

    monkeypatch.setattr(EventFileWriter, "flush", full_at_6_and_7)
    with pytest.warns(dp.DynamoProbeWarning, match="No space left"):
        watch, _ = watched(30, log_dir=tmp_path)
    assert watch.history.series("dormancy/tau=0.1")[0].tolist() == list(range(1, 31))
    read = EventAccumulator(str(tmp_path)).Reload()
    steps = [event.step for event in read.Scalars("dormancy/tau=0.1")]
    assert set(range(1, 6)) <= set(steps) and steps[-1] == 30


# --- real ones ------------------------------------------------------------------------------------


def test_wandb_offline_holds_every_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", project="probe", dir=tmp_path)
    watch, _ = watched(5, sinks=[wandb.log])
    run.log({"end": 1}, step=6)  # a row is complete when the next one begins
    summary = dict(run.summary)
    run.finish()
    for tag, value in at_update(watch, 5).items():
        assert summary[tag] == value
    assert list(tmp_path.rglob("*.wandb"))


@pytest.mark.parametrize("bound", [False, True])
def test_mlflow_gets_every_reading_in_the_run_that_was_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: bool
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        log = mlflow.log_metrics
        if bound:
            log = functools.partial(log, run_id=run.info.run_id)
        watch, _ = watched(5, sinks=[log])
    client = mlflow.MlflowClient()
    found = client.get_metric_history(run.info.run_id, "dormancy/tau_0.1")
    steps, values = watch.history.series("dormancy/tau=0.1")
    assert [(m.step, m.value) for m in found] == list(zip(steps, values, strict=True))
    assert len(client.get_run(run.info.run_id).data.metrics) == len(at_update(watch, 5))
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_mlflow_without_an_active_run_is_refused(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    with pytest.raises(ValueError, match="start_run"):
        watched(1, sinks=[mlflow.log_metrics])


def test_trackio_holds_every_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    trackio.init(project="probe", name="one", embed=False)
    watch, _ = watched(5, sinks=[trackio.log])
    trackio.finish()
    [file] = tmp_path.glob("probe*.db")
    with contextlib.closing(sqlite3.connect(file)) as store:
        rows = store.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5]
    assert all(json.loads(metrics) == at_update(watch, step) for step, metrics in rows)
