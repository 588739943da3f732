"""What a device's record says of when it read and inferred."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.devices import activity as module
from cfdist.devices.activity import MAX_BINS, Activity, ActivityRecord

SPANS = st.lists(st.tuples(st.floats(0, 200), st.floats(0, 50)), min_size=1, max_size=20)


@given(SPANS)
def test_bins_hold_all_seconds_and_stay_few(spans):
    record = ActivityRecord()
    now = 0.0
    for pause, seconds in spans:
        record.add(record.inferring, now + pause, now + pause + seconds)
        now += pause + seconds
    assert sum(record.inferring) == pytest.approx(sum(seconds for _, seconds in spans))
    assert len(record.inferring) == len(record.reading) <= MAX_BINS
    assert max(record.inferring) <= record.bin_seconds * (1 + 1e-9)
    assert now <= MAX_BINS * record.bin_seconds


def test_a_span_lies_in_the_bins_of_its_time():
    record = ActivityRecord()
    record.add(record.reading, 0.075, 0.16)
    assert record.reading == pytest.approx([0, 0.025, 0.05, 0.01])
    assert record.inferring == [0.0] * 4


@pytest.fixture
def clock(monkeypatch):
    """Sets the time."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

        def time(self) -> float:
            return 5000.0 + self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_inference_outweighs_reading_and_the_rest_is_idle(clock):
    activity = Activity()
    with activity.doing("reading"):
        clock.now = 100.05
        with activity.doing("inferring"), activity.doing("inferring"):
            clock.now = 100.10
    clock.now = 100.15  # idle
    with activity.doing("reading"):
        clock.now = 100.175
    found = activity.record().to_dict(run_started=5099.0)
    assert found == {
        "start": 1.0,
        "bin_seconds": 0.05,
        "inferring": [0.0, 1.0, 0.0, 0.0],
        "reading": [1.0, 0.0, 0.0, 0.5],
    }


def test_what_is_forgotten_does_not_count(clock):
    activity = Activity()
    with activity.doing("inferring"):
        clock.now += 1
    activity.forget()
    clock.now += 1
    with activity.doing("inferring"):
        clock.now += 0.05
    assert activity.record().to_dict(5102.0) == {
        "start": 0.0, "bin_seconds": 0.05, "inferring": [1.0], "reading": [0.0],
    }  # fmt: skip


def test_a_device_that_did_nothing_has_no_start():
    assert Activity().record().to_dict(0.0)["start"] is None
