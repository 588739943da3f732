"""How fast pictures are done while they are, and how long the others will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

# The rate is that of the last seconds, or of the last reports where these come seldom.
WINDOW_SECONDS, WINDOW_REPORTS = 60.0, 8

# Before, the time left would be that of devices that have only begun.
_LEAST_SECONDS, _LEAST_REPORTS = 3.0, 2

# A pause that is this much longer than any before it, and at least so long, is a standstill.
_STANDSTILL, _STANDSTILL_SECONDS = 3.0, 10.0


class Pace:
    """The pace of a run from its start, or from where it goes on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin now, by a clock in seconds."""
        self._clock = clock
        self._start = self._last = clock()
        self._before = self._start  # the end of the report before the window
        self._reports: deque[tuple[float, int]] = deque()  # in the window: its end, its pictures
        self._count = 0
        self._longest = 0.0  # the longest pause between two reports

    def add(self, pictures: int) -> None:
        """Note that pictures are done now."""
        if pictures:
            now = self._clock()
            self._longest = max(self._longest, now - self._last)
            self._last = now
            self._count += 1
            self._reports.append((now, pictures))

    @property
    def rate(self) -> float | None:
        """Pictures a second, the time since the last one counted; `None` while none is done."""
        now = self._clock()
        while len(self._reports) > WINDOW_REPORTS and now - self._reports[0][0] > WINDOW_SECONDS:
            self._before = self._reports.popleft()[0]
        seconds = now - self._before
        pictures = sum(pictures for _, pictures in self._reports)
        return pictures / seconds if pictures and seconds > 0 else None

    def seconds_left(self, pictures: int) -> float | None:
        """How long so many more pictures take; `None` while that cannot be said.

        That is at the start, and when nothing comes any more.
        """
        now, rate = self._clock(), self.rate
        is_early = self._count < _LEAST_REPORTS or now - self._start < _LEAST_SECONDS
        pause = max(_STANDSTILL * self._longest, _STANDSTILL_SECONDS)
        if pictures == 0:
            return 0.0
        if rate is None or is_early or now - self._last > pause:
            return None
        return pictures / rate
