"""Rates of a run, from when its chunks ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.distributed.timeline import Timeline


def timeline_of(streams: int, *chunks: tuple[float, str, int]) -> Timeline:
    """A run that began at 0: (seconds, device, pictures) of each chunk, as they ended."""
    timeline = Timeline(streams)
    with pytest.MonkeyPatch.context() as patch:
        for seconds, device, pictures in chunks:
            patch.setattr("cfdist.distributed.timeline.time.perf_counter", lambda now=seconds: now)
            timeline.add(device, pictures)
    return timeline


def test_the_steady_rate_leaves_out_each_device_s_first_chunk():
    # Two devices of 8 pictures a second each, of which one begins late.
    chunks = [(1.0, "a", 8), (1.7, "b", 8), (2.0, "a", 8), (2.7, "b", 8), (3.0, "a", 8)]
    chunks += [(3.7, "b", 8), (4.0, "a", 8), (4.7, "b", 8), (5.0, "a", 8)]
    timeline = timeline_of(1, *chunks)
    assert timeline.seconds == 5.0
    assert timeline.first_seconds == 1.0
    # "b" had a chunk under way at the end, which does not count in part.
    assert timeline.steady_rate == pytest.approx(32 / 4 + 24 / 3.3)


def test_a_device_s_streams_begin_together():
    chunks = [(1.0, "a", 4), (1.5, "a", 4), (3.0, "a", 4), (3.5, "a", 4), (5.0, "a", 4)]
    assert timeline_of(2, *chunks).steady_rate == pytest.approx(12 / (5.0 - 1.25))


@given(
    seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    starts=st.lists(st.floats(0, 20), min_size=6, max_size=6),
)
def test_the_steady_rate_is_never_more_than_the_devices_can(seconds, starts):
    ends = [
        (start + each * (i + 1), str(device), 4)
        for device, (each, start) in enumerate(zip(seconds, starts, strict=False))
        for i in range(int(60 / each))
    ]
    rate = timeline_of(1, *sorted(ends)).steady_rate
    assert rate is None or rate <= sum(4 / each for each in seconds) * (1 + 1e-9)


def test_there_is_no_steady_rate_of_too_little():
    assert timeline_of(1, (5.0, "a", 8), (5.1, "b", 8), (7.1, "a", 8)).steady_rate is None
    assert timeline_of(1, (5.0, "a", 8), (5.1, "a", 32)).steady_rate is None  # too short
    assert timeline_of(1).steady_rate is None
    assert timeline_of(1).seconds == 0.0
