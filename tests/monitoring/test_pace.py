"""The rate and the time left, while pictures are done."""

from __future__ import annotations

import pytest

from cfdist.monitoring.pace import WINDOW_SECONDS, Pace


class Clock:
    """A clock that a test sets, seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_before_the_first_picture_nothing_can_be_said(clock):
    pace = Pace(clock)
    clock.now += 30
    pace.add(0)
    assert pace.rate is None
    assert pace.seconds_left(100) is None


def test_the_first_chunks_of_several_devices_are_no_pace(clock):
    pace = Pace(clock)
    clock.now += 1.0
    pace.add(8)
    assert pace.seconds_left(1000) is None
    clock.now += 0.01  # another device's; from these two alone it would be 800 a second
    pace.add(8)
    assert pace.rate == pytest.approx(16 / 1.01)
    assert pace.seconds_left(1000) is None


def test_the_time_left_is_that_of_the_pictures_left(clock):
    pace = Pace(clock)
    for _ in range(10):
        clock.now += 1
        pace.add(20)
    assert pace.rate == pytest.approx(20)
    assert pace.seconds_left(400) == pytest.approx(20)
    assert pace.seconds_left(0) == 0


def test_the_rate_is_that_of_the_last_seconds(clock):
    pace = Pace(clock)
    for pictures in [1] * 100 + [10] * int(WINDOW_SECONDS):
        clock.now += 1
        pace.add(pictures)
    assert pace.rate == pytest.approx(10, rel=0.1)


def test_at_a_standstill_no_time_is_given_and_the_rate_falls(clock):
    pace = Pace(clock)
    for _ in range(10):
        clock.now += 1
        pace.add(20)
    clock.now += 9
    assert pace.rate == pytest.approx(200 / 19)
    assert pace.seconds_left(100) == pytest.approx(9.5)
    clock.now += 2
    assert pace.seconds_left(100) is None
    clock.now += 1000
    assert pace.rate < 1


def test_slow_chunks_are_no_standstill(clock):
    pace = Pace(clock)
    for _ in range(3):
        clock.now += 30
        pace.add(32)
    clock.now += 80
    assert pace.rate == pytest.approx(96 / 170)
    assert pace.seconds_left(32) is not None
