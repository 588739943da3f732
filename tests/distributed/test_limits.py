"""Time limits from a device's own history, on a clock that knows when this process stood still."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cfdist.distributed.limits import Clock, TimeLimits


def test_the_clock_stands_still_while_the_process_does(monkeypatch):
    times = iter([100.0, 101.0, 101.5, 4000.0, 4001.0])
    monkeypatch.setattr("cfdist.distributed.limits.time.monotonic", lambda: next(times))
    clock, seen = Clock(), []
    for _ in range(4):
        clock.tick()
        seen.append(clock.now)
    assert seen == [1.0, 1.5, 6.5, 7.5]


def test_a_given_limit_is_the_limit():
    limits = TimeLimits(7.0, 600.0)
    limits.note("a", 1, 100.0)
    assert (limits.opening, limits.limit("a", 5), limits.limit("b", 1)) == (7.0, 7.0, 7.0)


def test_the_first_work_may_take_long_and_further_work_ten_times_the_slowest():
    limits = TimeLimits(None, 600.0)
    assert (limits.opening, limits.limit("a", 3)) == (600.0, 600.0)
    limits.note("a", 2, 1.0)
    assert limits.limit("a", 3) == 60.0  # never less
    limits.note("a", 2, 60.0)
    limits.note("a", 4, 1.0)
    assert limits.limit("a", 3) == 10 * 30.0 * 3
    assert limits.limit("b", 3) == 600.0  # another device's history says nothing
    assert TimeLimits(None, 21.0).limit("a", 1) == 21.0


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.001, 1000)), min_size=1))
def test_what_a_device_has_done_before_it_may_do_again(history):
    limits = TimeLimits(None, 600.0)
    for batches, seconds in history:
        limits.note("a", batches, seconds)
    assert all(seconds < limits.limit("a", batches) for batches, seconds in history)
