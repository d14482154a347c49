"""What crosses to the sinks shares nothing with the run."""

import numpy as np
import pytest
import torch

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.sinks import Sink
from dynamo_probe.sinks.sink import settled, settled_event


def test_a_settled_array_is_a_read_only_copy():
    value = np.arange(3, dtype=np.float32)
    reading = settled(Reading(7, "a", value, samples=5))
    value[:] = -1
    assert isinstance(reading.value, np.ndarray)
    assert reading.value.tolist() == [0, 1, 2]
    assert reading.value.dtype == np.float32
    assert (reading.step, reading.tag, reading.samples) == (7, "a", 5)
    with pytest.raises(ValueError, match="read-only"):
        reading.value[0] = 1


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), np.array(2, dtype=np.int8)]
)
def test_every_real_number_settles_to_a_float(value):
    reading = settled(Reading(1, "a", value))
    assert type(reading.value) is float
    assert reading.value == 2.0
    assert reading.scalar


@pytest.mark.parametrize(
    "value", [torch.zeros(2), torch.tensor(1.0), "1", None, 1j, np.array(["a"]), np.zeros(2, "c16")]
)
def test_what_is_not_a_real_number_is_refused_with_its_tag_and_the_fix(value):
    with pytest.raises(TypeError, match=r"'redo/recycled' holds a .*; emit a float or a NumPy"):
        settled(Reading(1, "redo/recycled", value))


def test_the_detail_of_a_settled_event_is_plain_and_no_longer_changes():
    units = torch.tensor([1, 2])
    names = ["a"]
    detail = {
        "units": units,
        "names": names,
        "mean": np.float64(0.5),
        "shape": (1, np.int64(2)),
        "nested": {"x": np.zeros(2)},
        "kind": slice(1),
        "flag": True,
        "nothing": None,
    }
    event = settled_event(Event(3, "recycled", "fc1", detail))
    units += 10
    names.append("b")
    assert event.detail == {
        "units": [1, 2],
        "names": ["a"],
        "mean": 0.5,
        "shape": [1, 2],
        "nested": {"x": [0.0, 0.0]},
        "kind": "slice(None, 1, None)",
        "flag": True,
        "nothing": None,
    }


def test_two_methods_make_a_sink():
    class Two:
        def write(self, step, readings, events): ...

        def close(self): ...

    assert isinstance(Two(), Sink)
    assert not isinstance(object(), Sink)
