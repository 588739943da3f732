"""When a device reads and infers, in as few numbers as a chart needs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Doing = Literal["reading", "inferring"]

# A chart has no more pixels for a device than a few hundred.
MAX_BINS = 120
_FIRST_BIN_SECONDS = 0.05


@dataclass
class ActivityRecord:
    """What a device did, in bins of equal length.

    Attributes:
        started: When the first bin begins, seconds since the epoch by the clock of its machine.
        bin_seconds: The length of a bin.
        inferring: Seconds in each bin in which at least one batch was inferred.
        reading: Seconds in each bin in which pictures were read and no batch was inferred. What is
            left of a bin the device was idle.
    """

    started: float = 0.0
    bin_seconds: float = _FIRST_BIN_SECONDS
    inferring: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)

    def add(self, seconds: list[float], start: float, end: float) -> None:
        """Add a span, seconds since the first bin, to the bins of `inferring` or `reading`."""
        while end > MAX_BINS * self.bin_seconds:
            self.bin_seconds *= 2
            for bins in (self.inferring, self.reading):
                bins[:] = [sum(bins[i : i + 2]) for i in range(0, len(bins), 2)]
        first, last = int(start / self.bin_seconds), int(end / self.bin_seconds)
        last = min(last, MAX_BINS - 1)  # rounding
        for bins in (self.inferring, self.reading):
            bins += [0.0] * (last + 1 - len(bins))
        for i in range(first, last + 1):
            from_, to = max(start, i * self.bin_seconds), min(end, (i + 1) * self.bin_seconds)
            seconds[i] += max(0.0, to - from_)

    def to_dict(self, run_started: float) -> dict[str, Any]:
        """For the results: when it began, seconds after the run, and the shares of each bin."""

        def shares(bins: list[float]) -> list[float]:
            return [round(min(1.0, one / self.bin_seconds), 3) for one in bins]

        return {
            "start": round(self.started - run_started, 3) if self.inferring else None,
            "bin_seconds": self.bin_seconds,
            "inferring": shares(self.inferring),
            "reading": shares(self.reading),
        }


class Activity:
    """Keeps the record of a device, whose threads read and infer at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._record = ActivityRecord()
        self._counts = {"reading": 0, "inferring": 0}
        self._begun = self._last = 0.0

    @contextlib.contextmanager
    def doing(self, what: Doing) -> Iterator[None]:
        """Note that the device does this for the `with` block; several may do the same."""
        self._change(what, 1)
        try:
            yield
        finally:
            self._change(what, -1)

    def _change(self, what: Doing, by: int) -> None:
        with self._lock:
            now = time.monotonic()
            if not self._begun:
                self._begun = self._last = now
                self._record.started = time.time()
            record, start, end = self._record, self._last - self._begun, now - self._begun
            if self._counts["inferring"]:
                record.add(record.inferring, start, end)
            elif self._counts["reading"]:
                record.add(record.reading, start, end)
            self._last = now
            self._counts[what] += by

    def forget(self) -> None:
        """Begin a new record."""
        with self._lock:
            self._record, self._begun = ActivityRecord(), 0.0

    def record(self) -> ActivityRecord:
        """What the device has done so far."""
        with self._lock:
            return self._record
