"""Where a command's time goes, phase by phase."""

from __future__ import annotations

import time

# The phases before the first picture of a run.
START_UP = ("imports", "checks", "ray", "pictures", "devices")


class Phases:
    """Consecutive phases of a run, each from the end of the one before.

    Attributes:
        seconds: Phase -> how long it took, in order.
    """

    def __init__(self, started: float) -> None:
        """Begin the first phase.

        Args:
            started: When, seconds since the epoch.
        """
        self.seconds: dict[str, float] = {}
        self._since = started

    def end(self, name: str) -> None:
        """End a phase; the next one begins."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
