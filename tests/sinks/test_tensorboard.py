"""What TensorBoard reads back is what was written: read with its own accumulator and loader."""

import errno
import io
import logging
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.tensorflow_stub.io import gfile
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.sinks import Courier, Sink, TensorBoard
from dynamo_probe.sinks.heatmap import draw

with warnings.catch_warnings():
    # TensorBoard's copy of html5lib warns that it is deprecated.
    warnings.filterwarnings("ignore", "html5lib's sanitizer is deprecated", DeprecationWarning)
    from tensorboard.plugin_util import markdown_to_safe_html

EVERYTHING = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)


def read(path) -> EventAccumulator:
    return EventAccumulator(str(path), size_guidance=EVERYTHING).Reload()


def records(path) -> list:
    """Return every record that has a summary, file by file."""
    return [
        record
        for file in sorted(Path(path).glob("*tfevents*"))
        for record in LegacyEventFileLoader(str(file)).Load()
        if record.HasField("summary")
    ]


def scalars(path, tag) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(path).Scalars(tag)]


def served(path, tag) -> list[tuple[int, float]]:
    """Return a scalar series as TensorBoard's web server loads it, which is another loader."""
    guidance = {plugin_event_accumulator.TENSORS: 0}
    loader = plugin_event_accumulator.EventAccumulator(str(path), size_guidance=guidance)
    return [(p.step, p.tensor_proto.float_val[0]) for p in loader.Reload().Tensors(tag)]


def texts(path, tag) -> list[tuple[int, str]]:
    points = read(path).Tensors(f"{tag}/text_summary")
    return [(point.step, point.tensor_proto.string_val[0].decode()) for point in points]


def age(path) -> None:
    """Give the event files an older date, as in a run that was taken up again another day."""
    for file in Path(path).glob("*tfevents*"):
        file.rename(file.with_name(re.sub(r"tfevents\.\d{10}", "tfevents.0000000001", file.name)))


def dormancy(step: int, *, layers=3, taus=("0.025", "0.1"), share=0.5) -> list[Reading]:
    pooled = [Reading(step, f"dormancy/tau={tau}", share, 64) for tau in taus]
    each = [
        Reading(step, f"dormancy/layer/fc{n}/tau={tau}", share + n / 100, 64)
        for n in range(layers)
        for tau in taus
    ]
    return pooled + each


def test_every_scalar_comes_back_exactly_as_32_bits(tmp_path):
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=50), "dormancy/tau=0.1": rng.random(50)}
    sink = TensorBoard(tmp_path)
    assert isinstance(sink, Sink)
    for index in range(50):
        readings = [Reading(index * 10, tag, float(v[index])) for tag, v in values.items()]
        sink.write(index * 10, readings, [])
    sink.close()
    assert sorted(read(tmp_path).Tags()["scalars"]) == sorted(values)
    for tag, series in values.items():
        expected = [(index * 10, float(np.float32(v))) for index, v in enumerate(series)]
        assert scalars(tmp_path, tag) == expected


def test_values_that_are_not_finite_stay_what_they_are(tmp_path):
    sink = TensorBoard(tmp_path)
    odd = [float("nan"), float("inf"), float("-inf"), -0.0, 1e-45]
    for step, value in enumerate(odd):
        sink.write(step, [Reading(step, "a", value)], [])
    sink.close()
    got = [value for _, value in scalars(tmp_path, "a")]
    np.testing.assert_array_equal(got, np.array(odd, dtype=np.float32))
    assert np.signbit(got[3])


def test_an_update_is_one_record_whatever_is_in_it(tmp_path):
    sink = TensorBoard(tmp_path)
    for step in range(1, 22):
        scores = [Reading(step, "dormancy/scores/fc0", np.ones(4))]
        sink.write(step, dormancy(step) + scores, [Event(step, "recycled", "fc0", {"units": 2})])
    sink.close()
    # The last picture was written at update 20, so that closing adds one more.
    assert [record.step for record in records(tmp_path)] == [*range(1, 22), 21]
    tags = [value.tag for value in records(tmp_path)[-1].summary.value]
    assert tags == ["dormancy/heatmap", "dynamo_probe/log"]
    assert (
        len(records(tmp_path)[1].summary.value) == 8 + 1 + 1 + 1
    )  # scalars, scores, text, picture


def test_an_update_without_anything_to_show_leaves_no_file(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write(1, [], [])
    sink.write(2, [Reading(2, "weights", np.ones(3))], [])
    sink.close()
    sink.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="closed; make a new one"):
        sink.write(3, [], [])


def test_what_is_written_can_be_read_before_the_run_ends(tmp_path):
    sink = TensorBoard(tmp_path)
    for step in range(5):
        sink.write(step, [Reading(step, "a", step)], [])
        assert len(scalars(tmp_path, "a")) == step + 1
    sink.close()


def test_scores_of_all_layers_are_one_histogram(tmp_path):
    scores = {"fc1": np.array([0.0, 0.5, 2.5], np.float32), "fc2": np.array([1.0, np.nan, np.inf])}
    sink = TensorBoard(tmp_path)
    sink.write(7, [Reading(7, f"dormancy/scores/{k}", v) for k, v in scores.items()], [])
    sink.write(8, [Reading(8, "dormancy/scores/fc1", np.zeros(5))], [])
    sink.write(9, [Reading(9, "dormancy/scores/fc1", np.full(5, np.nan))], [])
    sink.write(10, [Reading(10, "dormancy/scores/fc1", np.full(5, 1e-40))], [])
    sink.close()
    assert read(tmp_path).Tags()["histograms"] == ["dormancy/scores"]
    first, zero, tiny = read(tmp_path).Histograms("dormancy/scores")
    assert [point.step for point in (first, zero, tiny)] == [7, 8, 10]
    proto = first.histogram_value
    assert (proto.min, proto.max, proto.num, proto.sum) == (0.0, 2.5, 4, 4.0)
    counts, edges = np.histogram([0.0, 0.5, 2.5, 1.0], bins=64, range=(0.0, 2.5))
    shown = dict(zip(proto.bucket_limit, proto.bucket, strict=True))
    assert {limit: count for limit, count in shown.items() if count} == {
        limit: count for limit, count in zip(edges[1:], counts, strict=True) if count
    }
    for point in (zero, tiny):
        assert sum(point.histogram_value.bucket) == 5
        assert (np.diff(point.histogram_value.bucket_limit) > 0).all()


def test_a_network_of_many_layers_stays_within_the_tags_and_says_so_once(tmp_path, caplog):
    sink = TensorBoard(tmp_path)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            sink.write(step, dormancy(step, layers=200), [])
        sink.write(4, [Reading(4, "redo/recycled", 3.0)], [])
    sink.close()
    tags = read(tmp_path).Tags()["scalars"]
    assert len(tags) == 76
    assert {"dormancy/tau=0.1", "dormancy/tau=0.025", "redo/recycled"} <= set(tags)
    assert all(len(scalars(tmp_path, tag)) == 3 for tag in tags if tag != "redo/recycled")
    assert len(caplog.records) == 1
    assert "327 scalar tags" in caplog.text  # 402 less 75
    ((step, text),) = texts(tmp_path, "events/note")
    assert step == 1
    html = markdown_to_safe_html(text)
    assert "327 scalar tags, such as dormancy/layer/fc0/tau=0.025, are beyond" in html


def test_max_scalar_tags_is_kept(tmp_path):
    sink = TensorBoard(tmp_path, max_scalar_tags=3)
    sink.write(1, dormancy(1), [])
    sink.close()
    tags = read(tmp_path).Tags()["scalars"]
    assert sorted(tags) == ["dormancy/layer/fc0/tau=0.1", "dormancy/tau=0.025", "dormancy/tau=0.1"]


@pytest.mark.parametrize("mark", [12, 30])
def test_a_resumed_run_hides_what_came_after_the_checkpoint(tmp_path, mark):
    first = TensorBoard(tmp_path)
    for step in range(1, 31):
        first.write(step, [Reading(step, "a", 1.0), *dormancy(step)], [])
    first.close()
    age(tmp_path)
    second = TensorBoard(tmp_path)
    second.resume(mark)
    for step in range(mark + 1, 36):
        second.write(step, [Reading(step, "a", 2.0)], [])
    second.close()
    expected = [(n, 1.0) for n in range(1, mark + 1)] + [(n, 2.0) for n in range(mark + 1, 36)]
    assert scalars(tmp_path, "a") == served(tmp_path, "a") == expected
    assert max(image.step for image in read(tmp_path).Images("dormancy/heatmap")) <= mark


def test_without_resume_the_later_steps_would_be_there_twice(tmp_path):
    for value in (1.0, 2.0):
        sink = TensorBoard(tmp_path)
        sink.write(5, [Reading(5, "a", value)], [])
        sink.close()
        age(tmp_path)
    assert len(scalars(tmp_path, "a")) == len(served(tmp_path, "a")) == 2


def test_a_run_rewound_in_one_process_hides_what_came_after(tmp_path):
    sink = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        sink.write(step, [Reading(step, "a", 1.0), *dormancy(step)], [])
    sink.resume(1)
    for step in (2, 3):
        sink.write(step, [Reading(step, "a", 2.0), *dormancy(step, share=0.75)], [])
    sink.close()
    assert scalars(tmp_path, "a") == served(tmp_path, "a") == [(1, 1.0), (2, 2.0), (3, 2.0)]
    assert len(list(tmp_path.iterdir())) == 1
    image = read(tmp_path).Images("dormancy/heatmap")[-1]
    shares = [[0.5, 0.75, 0.75], [0.51, 0.76, 0.76], [0.52, 0.77, 0.77]]
    title = "Dormant fraction by layer (tau = 0.1), updates 1 to 3"
    expected = draw(np.array(shares), ["fc0", "fc1", "fc2"], [1, 2, 3], title)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), expected.pixels
    )


def test_a_run_rewound_to_its_start_has_no_picture_left(tmp_path):
    sink = TensorBoard(tmp_path)
    for step in (8, 9, 10):
        sink.write(step, dormancy(step), [])
    sink.write(11, [Reading(11, "dormancy/layer/fc0/tau=0.1", 0.5)], [])
    sink.resume(5)
    sink.close()
    assert len(read(tmp_path).Images("dormancy/heatmap")) == 2  # of updates 8 and 10


def test_a_given_writer_is_shared_and_flushed_and_never_closed(tmp_path, monkeypatch):
    writer = SummaryWriter(tmp_path)
    calls, flush = [], writer.flush
    monkeypatch.setattr(writer, "flush", lambda: (calls.append("flush"), flush()))
    monkeypatch.setattr(writer, "close", lambda: calls.append("close"))
    writer.add_scalar("loss", 0.5, 1000)
    sink = TensorBoard(writer=writer)
    sink.resume(0)  # its owner's steps may count something else: nothing of theirs is hidden
    sink.write(1, dormancy(1), [])
    sink.close()
    assert calls == ["flush"]
    assert scalars(tmp_path, "dormancy/tau=0.1") == [(1, 0.5)]
    writer.add_scalar("loss", 0.25, 2000)
    writer.flush()
    assert scalars(tmp_path, "loss") == [(1000, 0.5), (2000, 0.25)]
    assert len(list(tmp_path.iterdir())) == 1
    # The owner's charts would be replaced by ours: a run has one layout.
    assert "custom_scalars__config__" not in read(tmp_path).Tags()["tensors"]
    assert repr(sink) == f"TensorBoard({str(tmp_path)!r})"
    monkeypatch.undo()
    writer.close()


class FullDisk:
    """Makes TensorBoard's file system tear a record after some bytes and refuse all others."""

    def __init__(self, monkeypatch):
        self.full = False
        for name, mode in (("write", "wb"), ("append", "ab")):
            monkeypatch.setattr(gfile.LocalFileSystem, name, self.method(mode))

    def method(self, mode):
        def put(_, filename, content, binary_mode=False):
            with open(filename, mode) as file:
                file.write(content[: len(content) // 2] if self.full else content)
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

        return put


# TensorBoard's own writer thread ends with the error, and pytest notices.
dying_writer = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@dying_writer
def test_a_full_disk_loses_nothing_written_before_and_writing_goes_on_after(
    tmp_path, monkeypatch, caplog
):
    disk = FullDisk(monkeypatch)
    sink = TensorBoard(tmp_path, max_scalar_tags=3)
    sink.write(1, [Reading(1, "a", 1.0)], [])
    disk.full = True
    for step in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            sink.write(step, [Reading(step, "a", 1.0), *dormancy(step)], [])
    assert caplog.text == ""
    age(tmp_path)
    disk.full = False
    sink.write(4, [Reading(4, "a", 1.0), *dormancy(4)], [])
    sink.write(5, [Reading(5, "a", 1.0)], [])
    sink.close()
    assert scalars(tmp_path, "a") == [(1, 1.0), (4, 1.0), (5, 1.0)]
    assert [step for step, _ in texts(tmp_path, "events/note")] == [4]
    (image,) = read(tmp_path).Images("dormancy/heatmap")
    assert image.step == 4
    assert "beyond max_scalar_tags=3" in caplog.text


@dying_writer
def test_a_resumption_on_a_full_disk_is_made_up_for(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch)
    sink = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        sink.write(step, [Reading(step, "a", 1.0)], [])
    sink.resume(1)
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        sink.write(2, [Reading(2, "a", 2.0)], [])
    age(tmp_path)
    disk.full = False
    sink.write(3, [Reading(3, "a", 2.0)], [])
    sink.close()
    assert scalars(tmp_path, "a") == served(tmp_path, "a") == [(1, 1.0), (3, 2.0)]


@dying_writer
def test_behind_a_courier_a_full_disk_is_told_once_and_left_behind(tmp_path, monkeypatch):
    disk, told = FullDisk(monkeypatch), []
    courier = Courier([TensorBoard(tmp_path)], lambda *trouble: told.append(trouble))
    for step in range(1, 31):
        disk.full = 11 <= step <= 14
        courier.send(step, [Reading(step, "a", step)], [])
        assert courier.flush(60)
        if step == 14:
            age(tmp_path)
    assert courier.close(60)
    # 11 fails: 12 is passed over. 13 fails: 14 and 15 are. 16 works.
    assert [n for n, _ in scalars(tmp_path, "a")] == [*range(1, 11), *range(16, 31)]
    assert len(told) == 1 and "No space left" in told[0][1]


def test_the_heatmap_shows_the_primary_threshold_of_every_layer(tmp_path):
    sink = TensorBoard(tmp_path, max_scalar_tags=1)
    rng = np.random.default_rng(0)
    shares = rng.random((6, 4))
    for column in range(4):
        step = 100 * (column + 1)
        readings = [
            Reading(step, f"dormancy/layer/fc{row}/tau={tau}", value, 8)
            for row in range(6)
            for tau, value in (("0.1", shares[row, column]), ("0.5", 1.0))
        ]
        sink.write(step, readings, [])
    sink.close()
    image = read(tmp_path).Images("dormancy/heatmap")[-1]
    assert image.step == 400
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (image.height, image.width, 3)
    title = "Dormant fraction by layer (tau = 0.1), updates 100 to 400"
    expected = draw(shares, [f"fc{row}" for row in range(6)], [100, 200, 300, 400], title)
    np.testing.assert_array_equal(pixels, expected.pixels)


def test_pictures_are_few_and_the_last_one_is_of_the_end(tmp_path):
    sink = TensorBoard(tmp_path)
    for step in range(1, 2001):
        sink.write(step, [Reading(step, "dormancy/layer/fc/tau=0.1", 0.5)], [])
    sink.close()
    steps = [image.step for image in read(tmp_path).Images("dormancy/heatmap")]
    assert len(steps) <= 40
    assert steps[0] == 1 and steps[-1] == 2000
    assert steps == sorted(set(steps))


def test_events_are_texts_at_their_update_and_many_are_collapsed(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write(3, [], [Event(3, "recycled", "fc1", {"units": 2, "tau": 0.1})])
    many = [Event(4, "skipped", f"layer{n}", {"why": "x" * 1000}) for n in range(1000)]
    sink.write(4, [], [*many, Event(4, "alert", "fc1")])
    sink.close()
    ((step, text),) = texts(tmp_path, "events/recycled")
    assert step == 3
    assert "<strong>fc1</strong>: units: 2, tau: 0.1</li>" in markdown_to_safe_html(text)
    ((step, text),) = texts(tmp_path, "events/skipped")
    assert step == 4
    html = markdown_to_safe_html(text)
    assert html.count("<li>") == 25 and "and 976 more" in html
    assert len(text) < 10_000
    assert texts(tmp_path, "events/alert") == [(4, "- **fc1**")]
    *_, last = records(tmp_path)
    assert [value.tag for value in last.summary.value] == ["dynamo_probe/log"]
    assert len(records(tmp_path)) == 3


def test_a_text_shows_what_was_written_whatever_it_holds(tmp_path):
    nasty = "1. *a* _b_ `c` [d](http://e) <img src=x> <em>e</em> & | # + - ! \\ {f} &lt; ü"
    sink = TensorBoard(tmp_path)
    sink.write(1, [], [Event(1, "alert", nasty, {"cause": nasty + "\n\n# title\n- item"})])
    sink.close()
    html = markdown_to_safe_html(texts(tmp_path, "events/alert")[0][1])
    entity = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    shown = "".join(entity.get(sign, sign) for sign in nasty)
    flat = re.sub(r"&#124;", "|", html)
    assert f"<strong>{shown}</strong>: cause: {shown} # title - item</li>" in flat
    assert set(re.findall(r"<(\w+)", html)) == {"ul", "li", "strong"}


def test_the_charts_are_laid_out_once_and_their_expressions_match_the_tags(tmp_path):
    sink = TensorBoard(tmp_path)
    for step in (1, 2):
        sink.write(step, dormancy(step), [])
    sink.close()
    (point,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(point.tensor_proto.string_val[0])
    charts = {c.title: list(c.multiline.tag) for c in layout.category[0].chart}
    tags = [
        "dormancy/tau=0.1", "dormancy/tau=0.025", "dormancy/layer/fc1/tau=0.1",
        "dormancy/layer/fc1/tau=0.025", "redo/recycled", "redo/layer/fc1/recycled", "rank/fc1",
    ]  # fmt: skip
    # The plugin shows a tag where re.match finds the expression at its start.
    shown = {
        title: [tag for tag in tags if any(re.match(e, tag) for e in expressions)]
        for title, expressions in charts.items()
    }
    assert shown == {
        "dormant fraction": ["dormancy/tau=0.1", "dormancy/tau=0.025"],
        "dormant fraction by layer": ["dormancy/layer/fc1/tau=0.1"],
        "recycled units": ["redo/recycled"],
        "rank": ["rank/fc1"],
    }


@pytest.mark.parametrize("below", ["", "run", "a/b/c"])
def test_a_directory_that_cannot_be_written_to_is_refused_at_once(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to log_dir .* give a directory that can be"):
        TensorBoard(tmp_path / "file" / below)


def test_mistakes_in_the_call_say_the_fix(tmp_path):
    with SummaryWriter(tmp_path / "a") as writer:
        with pytest.raises(ValueError, match="both given; leave out log_dir"):
            TensorBoard(tmp_path / "b", writer=writer)
    with pytest.raises(ValueError, match="max_scalar_tags is 0; give 1 or more"):
        TensorBoard(tmp_path, max_scalar_tags=0)


def test_without_a_directory_the_run_gets_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sink = TensorBoard()
    sink.write(1, [Reading(1, "a", 1.0)], [])
    sink.close()
    (run,) = (tmp_path / "runs").iterdir()
    assert scalars(run, "a") == [(1, 1.0)]


def test_random_states_are_untouched(tmp_path):
    def states() -> tuple:
        kind, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()

    before = states()
    courier = Courier([TensorBoard(tmp_path)])
    scores = [Reading(1, "dormancy/scores/fc0", np.ones(3))]
    courier.send(1, dormancy(1) + scores, [Event(1, "recycled", "fc0")])
    assert courier.close(60)
    assert read(tmp_path).Tags()["images"]
    assert states() == before


def test_tensorboard_is_imported_by_those_who_use_it_and_tensorflow_by_nobody(tmp_path):
    code = f"""
import sys
import dynamo_probe.sinks as sinks
from dynamo_probe.instrument import Reading
assert not any(name.split(".")[0] == "tensorboard" for name in sys.modules)
sink = sinks.TensorBoard({str(tmp_path)!r})
sink.write(1, [Reading(1, "dormancy/layer/fc/tau=0.1", 0.5)], [])
sink.close()
assert "tensorboard" in sys.modules
assert "tensorflow" not in sys.modules
assert "matplotlib" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
