"""The state of a run: pictures, rates, busy shares, and what is exported of it."""

from __future__ import annotations

import threading

import pytest

from cfdist.monitoring.metrics import METRICS, Recorder
from cfdist.monitoring.monitor import DeviceUsage, Monitor


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorded(Recorder):
    """Keeps what would be exported: (name, labels) -> value, or values of a histogram."""

    def __init__(self) -> None:
        super().__init__("run")
        self.values = {}

    def _record(self, name, how, values, labels):
        key = (name, *labels.values())
        values = [*values]
        if not values:
            return
        if how == "observe":
            self.values[key] = self.values.get(key, []) + values
        else:
            (value,) = values
            self.values[key] = value + (self.values.get(key, 0) if how == "inc" else 0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(Recorder, "held_until", 0.0)  # a session that another test began
    return Recorded()


def play(clock, recorded) -> Monitor:
    """Two devices of 10 and 5 pictures a second, 90 and 50 % busy, for 20 seconds."""
    monitor = Monitor(1000, recorded, clock)
    clock.now += 5
    for number in (0, 1):
        monitor.add_device(f"device:{number}", "host")
    monitor.start(100, failed=3)
    for _ in range(20):
        clock.now += 1
        monitor.add(10, 1, "device:0")
        monitor.note_usage("device:0", DeviceUsage(0.9, 0.1, (90.0, 90.0)))
        monitor.add(5, 0, "device:1")
        monitor.note_usage("device:1", DeviceUsage(0.5, 0.25, ()))
        monitor.note_usage("device:1", None)
    return monitor


def test_the_state_of_a_run(clock, recorded):
    state = play(clock, recorded).snapshot()
    assert (state.total, state.done, state.failed) == (1000, 400, 23)
    assert state.rate == pytest.approx(15)
    assert state.seconds_left == pytest.approx(40)
    assert state.seconds == 25
    first, second = state.devices
    assert (first["name"], first["done"], first["failed"]) == ("device:0", 180, 20)
    assert first["rate"] == pytest.approx(10)
    assert first["busy"] == pytest.approx(0.9)
    assert second["busy"] == pytest.approx(0.5)


def test_what_is_exported_agrees_with_the_state(clock, recorded):
    monitor = play(clock, recorded)
    monitor.add(3, 3)
    monitor.note_depth({"device:0": 4}, 7)
    monitor.note_ap(None)
    monitor.note_ap({"official": {"easy": 0.5}})
    monitor.note_ap(None)
    monitor.publish()
    a, b = ("device:0", "host"), ("device:1", "host")
    assert recorded.values == {
        ("cfdist_pictures_wanted",): 1000,
        ("cfdist_pictures_done", *a): 180,
        ("cfdist_pictures_done", *b): 100,
        ("cfdist_pictures_failed", *a): 20,
        ("cfdist_pictures_failed", "", ""): 3,
        ("cfdist_batch_seconds", *a): [0.09] * 40,
        ("cfdist_device_busy_seconds", *a): pytest.approx(18),
        ("cfdist_device_busy_seconds", *b): pytest.approx(10),
        ("cfdist_device_starved_seconds", *a): pytest.approx(2),
        ("cfdist_device_starved_seconds", *b): pytest.approx(5),
        ("cfdist_device_busy_share", *a): pytest.approx(0.9),
        ("cfdist_device_busy_share", *b): pytest.approx(0.5),
        ("cfdist_device_chunks", *a): 4,
        ("cfdist_device_chunks", *b): 0,
        ("cfdist_reducer_lag_pictures",): 7,
        ("cfdist_ap", "official", "easy"): 0.5,
    }
    assert {key[0] for key in recorded.values} == {one.name for one in METRICS}


def test_what_was_kept_back_is_exported_at_the_end(clock, recorded):
    Recorder.hold()
    monitor = play(clock, recorded)
    monitor.publish()
    done = ("cfdist_pictures_done", "device:0", "host")
    assert done not in recorded.values
    monitor.end()
    assert recorded.values[done] == 180
    assert recorded.values["cfdist_pictures_wanted",] == 1000


def test_without_an_ap_there_is_none(clock, recorded):
    """Simulated devices find nothing, and 0 would be a number that nobody measured."""
    monitor = Monitor(10, recorded, clock)
    monitor.has_ap = False
    monitor.note_ap({"official": {"easy": 0.0}})
    monitor.publish()
    assert monitor.snapshot().ap == {}
    assert not any(key[0] == "cfdist_ap" for key in recorded.values)


def test_chunks_are_counted_seldom(clock):
    monitor = Monitor(10, None, clock)
    assert monitor.is_depth_due()
    monitor.note_depth({}, 0)
    assert not monitor.is_depth_due()
    clock.now += 0.6
    assert monitor.is_depth_due()


def test_the_busy_share_is_that_of_the_last_seconds(clock):
    monitor = Monitor(10, None, clock)
    assert monitor.snapshot().devices == []
    monitor.add_device("device:0", "host")
    assert monitor.snapshot().devices[0]["busy"] is None
    for share in [1.0] * 30 + [0.2] * 20:
        clock.now += 1
        monitor.note_usage("device:0", DeviceUsage(share, 0, ()))
    assert monitor.snapshot().devices[0]["busy"] == pytest.approx(0.2)


def test_it_can_be_looked_at_from_another_thread():
    monitor = Monitor(100_000)
    monitor.start(0)
    ended = threading.Event()
    problems = []

    def look():
        try:
            while not ended.is_set():
                monitor.snapshot()
                monitor.publish()
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(2000):
        monitor.add(1, 0, f"device:{number % 50}")
        monitor.note_usage(f"device:{number % 50}", DeviceUsage(0.1, 0.1, ()))
    ended.set()
    thread.join()
    assert problems == []
    assert monitor.snapshot().done == 2000
