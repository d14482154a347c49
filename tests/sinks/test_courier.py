"""The courier never keeps the sender waiting, loses nothing silently and leaves nothing behind.

Nothing here depends on how long anything takes: sinks are held and released by hand. The timeouts
only bound how long a broken courier would hang.
"""

import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch

from dynamo_probe.instrument import Event, Reading
from dynamo_probe.sinks import Courier

PATIENCE = 60.0


class Notebook:
    """Keeps what it is given; raises at the updates in `fails`."""

    def __init__(self, fails=()):
        self.fails = fails
        self.tried: list[int] = []
        self.calls: list[tuple] = []
        self.threads: set[threading.Thread] = set()
        self.closed = 0

    @property
    def steps(self) -> list[int]:
        return [call[1] for call in self.calls if call[0] == "write"]

    def resume(self, step):
        self.calls.append(("resume", step))

    def write(self, step, readings, events):
        self.threads.add(threading.current_thread())
        self.tried.append(step)
        if step in self.fails:
            raise OSError(28, "No space left on device")
        self.calls.append(("write", step, tuple(readings), tuple(events)))

    def close(self):
        self.closed += 1


class Gate(Notebook):
    """Holds the courier's thread inside the first write until it is opened."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Event()
        self.opened = threading.Event()

    def write(self, step, readings, events):
        self.entered.set()
        self.opened.wait()
        super().write(step, readings, events)


def test_everything_arrives_once_in_order_and_on_another_thread():
    sinks = [Notebook(), Notebook()]
    courier = Courier(sinks)
    event = Event(3, "recycled", "fc1", {"units": 2})
    for step in range(1, 501):
        courier.send(step, [Reading(step, "a", step / 3, 9)], [event] if step == 3 else [])
    assert courier.flush(PATIENCE)
    for sink in sinks:
        assert sink.steps == list(range(1, 501))
        assert sink.calls[2] == ("write", 3, (Reading(3, "a", 1.0, 9),), (event,))
        assert threading.current_thread() not in sink.threads
    assert courier.close(PATIENCE)
    assert [sink.closed for sink in sinks] == [1, 1]
    assert courier.lost == 0 and courier.report() == []


def test_there_is_no_thread_before_the_first_send_and_none_after_close():
    before = set(threading.enumerate())
    sink = Notebook()
    courier = Courier([sink])
    assert set(threading.enumerate()) == before
    courier.send(1, [], [])
    assert len(set(threading.enumerate()) - before) == 1
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)
    assert courier.close(PATIENCE)
    assert set(threading.enumerate()) == before
    assert courier.close(PATIENCE) and sink.closed == 1


def test_without_sinks_nothing_ever_starts():
    before = set(threading.enumerate())
    courier = Courier([])
    courier.send(1, [Reading(1, "a", 1.0)], [])
    courier.resume(1)
    assert courier.flush() and courier.close()
    assert set(threading.enumerate()) == before


def test_a_sink_that_was_never_written_to_is_closed_too():
    sink = Notebook()
    assert Courier([sink]).close(PATIENCE)
    assert sink.closed == 1 and sink.steps == []


def test_values_are_copied_before_they_cross():
    gate = Gate()
    courier = Courier([gate])
    value, detail = np.zeros(3), {"units": torch.tensor([1])}
    courier.send(1, [Reading(1, "a", value)], [Event(1, "recycled", "fc1", detail)])
    value[:] = 7
    detail["units"] += 7
    gate.opened.set()
    assert courier.close(PATIENCE)
    (_, _, (reading,), (event,)) = gate.calls[0]
    assert reading.value.tolist() == [0, 0, 0]
    assert event.detail == {"units": [1]}


def test_a_tensor_is_refused_where_it_was_sent():
    courier = Courier([Notebook()])
    with pytest.raises(TypeError, match="'a' holds a Tensor"):
        courier.send(1, [Reading(1, "a", torch.ones(1))], [])
    assert courier.close(PATIENCE)


def test_a_full_queue_never_keeps_the_sender_waiting_and_drops_the_oldest():
    gate, told = Gate(), []
    courier = Courier([gate], lambda *trouble: told.append(trouble), waiting=10)
    courier.send(0, [], [])
    assert gate.entered.wait(PATIENCE)  # update 0 has left the queue and is held in the sink

    def send() -> None:
        for step in range(1, 101):
            courier.send(step, [Reading(step, "a", 1.0)], [])

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    sender.join(PATIENCE)
    assert not sender.is_alive()
    assert courier.lost == 90
    assert len(told) == 1
    name, message = told[0]
    assert name == "Gate" and "10 updates wait" in message
    gate.opened.set()
    assert courier.close(PATIENCE)
    assert gate.steps == [0, *range(91, 101)]
    assert courier.report() == ["90 updates reached no sink: they were too slow, or closed"]


def test_a_resumption_is_not_dropped_and_keeps_its_place():
    gate = Gate()
    courier = Courier([gate], waiting=3)
    courier.send(0, [], [])
    assert gate.entered.wait(PATIENCE)
    courier.send(1, [], [])
    courier.resume(40)
    for step in range(41, 51):
        courier.send(step, [], [])
    gate.opened.set()
    assert courier.close(PATIENCE)
    assert [call[:2] for call in gate.calls] == [
        ("write", 0), ("resume", 40), ("write", 49), ("write", 50),
    ]  # fmt: skip


def test_resume_reaches_a_sink_before_its_first_write_and_is_optional():
    class Plain:
        def __init__(self):
            self.steps = []

        def write(self, step, readings, events):
            self.steps.append(step)

        def close(self): ...

    sinks = [Plain(), Notebook()]
    courier = Courier(sinks)
    courier.resume(12)
    courier.send(13, [], [])
    assert courier.close(PATIENCE)
    assert sinks[0].steps == [13]
    assert [call[:2] for call in sinks[1].calls] == [("resume", 12), ("write", 13)]


def test_a_sink_that_raises_is_told_once_and_the_others_go_on():
    broken, sound, told = Notebook(fails=range(1000)), Notebook(), []
    courier = Courier([broken, sound], lambda *trouble: told.append(trouble))
    for step in range(200):
        courier.send(step, [], [])
    assert courier.close(PATIENCE)
    assert sound.steps == list(range(200))
    assert len(told) == 1
    assert told[0][0] == "Notebook"
    assert "could not write update 0 (OSError: [Errno 28] No space left" in told[0][1]
    # After a failure 1, 2, 4, ..., 64 updates are passed over; then always 64.
    assert broken.tried == [0, 2, 5, 10, 19, 36, 69, 134, 199]
    assert broken.closed == 1
    (line,) = courier.report()
    assert line.startswith("Notebook missed 200 updates and wrote 0: OSError: [Errno 28]")


def test_a_sink_that_recovers_is_written_to_again_and_its_pause_starts_anew():
    sink, told = Notebook(fails={3, 5, 20}), []
    courier = Courier([sink], lambda *trouble: told.append(trouble))
    for step in range(1, 31):
        courier.send(step, [], [])
    assert courier.close(PATIENCE)
    # 3 fails: 4 is passed over. 5 fails again: 6 and 7. 8 works. 20 fails: only 21.
    missed = {3, 4, 5, 6, 7, 20, 21}
    assert sink.steps == [step for step in range(1, 31) if step not in missed]
    assert len(told) == 1


def test_a_resumption_that_fails_is_made_up_for_before_the_next_write():
    class Late(Notebook):
        refusals = 1

        def resume(self, step):
            if self.refusals:
                self.refusals -= 1
                raise OSError("not yet")
            super().resume(step)

    sink = Late()
    courier = Courier([sink])
    courier.resume(5)
    for step in (6, 7, 8):
        courier.send(step, [], [])
    assert courier.close(PATIENCE)
    assert [call[:2] for call in sink.calls] == [("resume", 5), ("write", 8)]


def test_trouble_in_on_trouble_and_in_close_stays_there():
    class Stubborn(Notebook):
        def close(self):
            raise RuntimeError("will not")

    told = []

    def on_trouble(name, message):
        told.append(message)
        raise ZeroDivisionError

    sinks = [Stubborn(fails={1}), Notebook()]
    courier = Courier(sinks, on_trouble)
    courier.send(1, [], [])
    courier.send(2, [], [])
    assert courier.close(PATIENCE)
    assert sinks[1].steps == [1, 2] and sinks[1].closed == 1
    assert len(told) == 2 and told[1] == "could not be closed (RuntimeError: will not)"


def test_close_gives_up_a_sink_that_blocks_and_says_what_is_lost():
    gate, told = Gate(), []
    courier = Courier([gate], lambda *trouble: told.append(trouble))
    for step in range(5):
        courier.send(step, [], [])
    assert gate.entered.wait(PATIENCE)
    assert not courier.flush(timeout=0)
    assert not courier.close(timeout=0)
    assert not courier.close(PATIENCE)  # at once: it was given up
    assert not courier.flush(PATIENCE)
    assert told == [
        (
            "Gate",
            "did not come back within 0 s and was given up; 4 waiting updates were not written",
        )
    ]
    gate.opened.set()
    courier._thread.join(PATIENCE)
    assert not courier._thread.is_alive()
    assert gate.steps == [0] and gate.closed == 1  # what was said to be lost is not written


def test_what_is_sent_after_close_is_counted_as_lost():
    sink = Notebook()
    courier = Courier([sink])
    assert courier.close(PATIENCE)
    courier.send(1, [], [])
    assert courier.lost == 1 and sink.steps == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_never_writes_and_never_starts_a_thread():
    running, idle = Notebook(), Notebook()
    couriers = [Courier([running]), Courier([idle])]
    couriers[0].send(1, [], [])
    assert couriers[0].flush(PATIENCE)
    with warnings.catch_warnings():
        # Python 3.12 warns of what is tested here: a fork with a second thread.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        fine = True
        for courier in couriers:
            courier.send(2, [Reading(2, "a", 1.0)], [])
            courier.resume(2)
            fine = courier.flush(5) and courier.close(5) and fine
        fine = fine and threading.active_count() == 1 and running.steps == [1]
        os._exit(0 if fine and not (idle.steps or idle.closed or running.closed) else 1)
    assert os.waitpid(child, 0)[1] == 0
    for courier in couriers:
        courier.send(3, [], [])
        assert courier.close(PATIENCE)
    assert running.steps == [1, 3] and idle.steps == [3]
    assert running.closed == idle.closed == 1


SCRIPT = """
import threading
from dynamo_probe.instrument import Reading
from dynamo_probe.sinks import Courier

entered = threading.Event()

class Paper:
    def write(self, step, readings, events):
        entered.set()
        {body}
        print(step, flush=True)

    def close(self):
        print("closed", flush=True)

courier = Courier([Paper()])
for step in range(3):
    courier.send(step, [Reading(step, "a", 1.0)], [])
{end}
"""


def run(body: str, end: str) -> str:
    code = SCRIPT.format(body=body, end=end)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_a_script_that_forgets_to_close_loses_nothing():
    assert run("pass", "").split() == ["0", "1", "2", "closed"]


def test_a_sink_that_blocks_for_ever_does_not_keep_python_from_ending():
    end = "assert entered.wait(60) and not courier.close(timeout=0)"
    assert run("threading.Event().wait()", end) == ""


def test_mistakes_in_the_call_say_the_fix():
    with pytest.raises(TypeError, match=r"is not a sink; give an object with write"):
        Courier([object()])
    with pytest.raises(ValueError, match="waiting is 0 updates; give 1 or more"):
        Courier([], waiting=0)
