"""When the pictures of a run were finished, and the rates that follow from it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

MIN_STEADY_SECONDS = 1.0


@dataclass
class Timeline:
    """When chunks were finished, for rates.

    Attributes:
        streams: Chunks that a device infers at the same time.
        started: When the first work was handed out, seconds on the monotonic clock.
        points: (seconds on the same clock, pictures finished until then), one a chunk.
        chunks: Device name -> (seconds on the same clock, pictures) of each of its chunks.
    """

    streams: int
    started: float = 0.0
    points: list[tuple[float, int]] = field(default_factory=list)
    chunks: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def add(self, device: str, pictures: int) -> None:
        """Note that a device has finished a chunk now."""
        now = time.perf_counter()
        total = self.points[-1][1] if self.points else 0
        self.points.append((now, total + pictures))
        self.chunks.setdefault(device, []).append((now, pictures))

    @property
    def seconds(self) -> float:
        """From the first work handed out to the last picture finished."""
        return self.points[-1][0] - self.started if self.points else 0.0

    @property
    def first_seconds(self) -> float | None:
        """From the first work handed out to the first chunk finished."""
        return self.points[0][0] - self.started if self.points else None

    @property
    def steady_rate(self) -> float | None:
        """Pictures a second, without the first chunk of each stream of each device.

        `None` if the rest is less than half of the pictures, or takes less than a second.

        A device's time counts from the mean end of its first chunks to the end of the run, so that
        no work counts without its time.
        """
        if not self.points:
            return None
        end, total = self.points[-1]
        rate, pictures, latest = 0.0, 0, self.started
        for chunks in self.chunks.values():
            first, rest = chunks[: self.streams], chunks[self.streams :]
            start = sum(seconds for seconds, _ in first) / len(first)
            done = sum(count for _, count in rest)
            if done:
                rate += done / (end - start)
                pictures += done
                latest = max(latest, start)
        if pictures < total / 2 or end - latest < MIN_STEADY_SECONDS:
            return None
        return rate
