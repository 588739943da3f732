"""Devices of any speeds end about together, and every row is dealt out once."""

from __future__ import annotations

import heapq
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.devices.base import MAX_CHUNK, largest_chunk
from cfdist.distributed.scheduler import Scheduler, chunk_for_rate
from cfdist.distributed.work import Slice, Work


def rows_of(count: int) -> Work:
    """Rows that need no Ray: one block without content."""
    return Work([Slice(None, 0, count)], count)


def size_of(chunk: list[Slice]) -> int:
    return sum(map(len, chunk))


@pytest.mark.parametrize(
    ("items", "chunk", "streams", "batch", "expected"),
    [
        (100, 16, 2, 1, [13, 11, 10, 9, 8, 7, 6, 5, 4, 4, 3, 3, 3, 2, 2, 2, *[1] * 8]),
        (8, 8, 4, 1, [1] * 8),
        (3, 8, 4, 1, [1, 1, 1]),
        (40, 16, 1, 4, [12, 8, 8, 4, 4, 4]),
        (40, 16, 2, 16, [16, 16, 8]),
        (9, 16, 2, 4, [4, 4, 1]),
        (48, 4, 2, 1, [*[4] * 6, 3, 3, 3, 2, 2, 2, 2, *[1] * 7]),
    ],
)
def test_lanes_end_with_small_chunks(items, chunk, streams, batch, expected):
    scheduler = Scheduler(rows_of(items), ["device"], streams, batch)
    chunks = []
    while found := scheduler.next_chunk("device", chunk):
        chunks.append(found)
    assert [size_of(one) for one in chunks] == expected
    rows = [row for one in chunks for part in one for row in range(part.start, part.stop)]
    assert rows == list(range(items))


def finish_times(
    seconds: list[float], items: int, unit: int, chunk: int, max_in_flight: int
) -> tuple[list[float], list[int]]:
    """Plays a round: devices that take so many seconds an item, one chunk after the other.

    Returns:
        When each device had nothing left to do, and how many items it did.
    """
    scheduler = Scheduler(rows_of(items), map(str, range(len(seconds))), 1, unit)
    ends, done = [0.0] * len(seconds), [0] * len(seconds)
    running: list[tuple[float, int, int]] = []  # a heap of (end, device, items)

    def hand_out(device: int, now: float) -> None:
        count = size_of(scheduler.next_chunk(str(device), chunk))
        if count:
            # A part of a unit takes as long as a whole one.
            work = -(-count // unit) * unit * seconds[device]
            ends[device] = max(now, ends[device]) + work
            heapq.heappush(running, (ends[device], device, count))

    for _ in range(max_in_flight):
        for device in range(len(seconds)):
            hand_out(device, 0.0)
    while running:
        now, device, count = heapq.heappop(running)
        done[device] += count
        scheduler.give_back(str(device), count, is_finished=True)
        hand_out(device, now)
    return ends, done


@given(
    devices=st.integers(1, 16),
    items=st.integers(1, 3000),
    unit=st.integers(1, 16),
    units=st.integers(1, 4),
    max_in_flight=st.integers(1, 4),
)
def test_equal_devices_end_together(devices, items, unit, units, max_in_flight):
    ends, done = finish_times([1.0] * devices, items, unit, unit * units, max_in_flight)
    assert sum(done) == items
    fewest_units = ceil(ceil(items / unit) / devices)
    assert max(ends) <= (fewest_units + 1) * unit


@pytest.mark.slow
@given(
    seconds=st.lists(st.floats(0.1, 10), min_size=2, max_size=8),
    units=st.integers(1, 4),
    max_in_flight=st.integers(2, 4),
)
def test_devices_of_any_speeds_end_about_together(seconds, units, max_in_flight):
    items = 4000
    ends, done = finish_times(seconds, items, 4, 4 * units, max_in_flight)
    assert sum(done) == items
    ideal = items / sum(1 / each for each in seconds)
    # What a device is given before its speed is known may be too much.
    before = 4 * (1 + units * max_in_flight) * max(seconds)
    assert max(ends) <= max(ideal * 1.02 + 3 * 4 * max(seconds), before)


def test_what_failed_does_not_count_as_finished():
    scheduler = Scheduler(rows_of(40), "ab", 1, 1)
    lost = scheduler.next_chunk("a", 8)
    assert [size_of(lost), size_of(scheduler.next_chunk("b", 8))] == [5, 5]
    scheduler.give_back("a", size_of(lost), is_finished=False)
    # "b" is as fast as "a" as far as is known: of 35 that are not finished, each has half.
    assert size_of(scheduler.next_chunk("a", 100)) == ceil(30 / 8)
    assert size_of(scheduler.next_chunk("b", 100)) == ceil(26 / 8)


@given(batch=st.integers(1, 200), group=st.integers(1, 4), rate=st.floats(0, 1e6, allow_nan=False))
def test_chunks_are_whole_batches_that_fit_the_buffers(batch, group, rate):
    chunk = batch * group
    size = chunk_for_rate(chunk, rate)
    assert size % batch == 0
    assert batch * group <= chunk <= size <= largest_chunk(chunk)
    assert chunk_for_rate(chunk, 0.0) == chunk
    assert largest_chunk(chunk) <= max(chunk, MAX_CHUNK)


def test_a_device_that_joins_gets_work_and_one_that_was_left_out_stays_out():
    scheduler = Scheduler(rows_of(64), ["first", "out"], 1, 4)
    scheduler.leave_out("out")
    for name in ("first", "out", "late"):
        scheduler.add(name)
    assert size_of(scheduler.next_chunk("first", 8)) == 8
    assert size_of(scheduler.next_chunk("late", 8)) == 8
    assert "out" not in scheduler._finished
