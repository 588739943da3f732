"""How long a device may take, from what it has done so far."""

from __future__ import annotations

import time

# A device may take this many times as long as its slowest work so far.
_TIMES = 10

# The least limit, seconds: a disk or a busy machine may stand still for a while.
_LEAST_SECONDS = 60.0

# The longest step of the clock, seconds.
_MOST_STEP = 5.0


class Clock:
    """A clock that stands still while this process does: Ctrl-Z ends no device.

    Attributes:
        now: Seconds.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self.now = 0.0
        self._seen = time.monotonic()

    def tick(self) -> None:
        """Let `now` go on."""
        seen = time.monotonic()
        self.now += min(seen - self._seen, _MOST_STEP)
        self._seen = seen


class TimeLimits:
    """The limits of the devices of a run, from each device's own history.

    Attributes:
        opening: Seconds that loading the model may take.
    """

    def __init__(self, timeout: float | None, first_seconds: float) -> None:
        """Begin without history.

        Args:
            timeout: Seconds, the limit for everything; `None`: the limits come from history.
            first_seconds: What loading, or a device's first work, may take.
        """
        self._timeout = timeout
        self._first = first_seconds
        self.opening = timeout or first_seconds
        self._slowest: dict[str, float] = {}  # device -> seconds a batch

    def limit(self, device: str, batches: int) -> float:
        """Seconds that a device may take for what it holds, so many batches."""
        if self._timeout is not None:
            return self._timeout
        if device not in self._slowest:
            return self._first
        least = min(_LEAST_SECONDS, self._first)
        return max(least, _TIMES * self._slowest[device] * batches)

    def note(self, device: str, batches: int, seconds: float) -> None:
        """Note how long a device took for what it held."""
        self._slowest[device] = max(self._slowest.get(device, 0.0), seconds / batches)
