"""The state of a run while it goes on: pictures, rates, devices, and the AP so far."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cfdist.monitoring.metrics import Recorder
from cfdist.monitoring.pace import Pace

# A device's busy share is that of the last seconds, or of its last reports where these come seldom.
_WINDOW_SECONDS, _WINDOW_REPORTS = 10.0, 4

_DEPTH_SECONDS = 0.5  # how often the pool says how many chunks are in hand

AP = dict[str, dict[str, float]]  # protocol name -> difficulty -> AP, a fraction


@dataclass(frozen=True)
class DeviceUsage:
    """What a device has done since it last said so.

    Attributes:
        busy_seconds: Time inside of inference, the mean of its streams.
        starved_seconds: Time without a batch to infer, the mean of its streams.
        batch_ms: Host-visible time of each full batch, milliseconds.
    """

    busy_seconds: float
    starved_seconds: float
    batch_ms: tuple[float, ...]


@dataclass
class DeviceState:
    """What a device has done in this run.

    Attributes:
        done: Pictures with a result.
        failed: Pictures that failed.
        chunks: Chunks that it has in hand.
    """

    name: str
    pace: Pace
    host: str = ""
    done: int = 0
    failed: int = 0
    chunks: int = 0
    _busy_seconds: float = 0.0
    _reports: deque[tuple[float, float]] = field(default_factory=deque)

    def add_busy(self, now: float, seconds: float) -> None:
        """Note that so many more seconds were spent inside of inference until now."""
        self._busy_seconds += seconds
        self._reports.append((now, self._busy_seconds))
        while len(self._reports) > _WINDOW_REPORTS and now - self._reports[1][0] > _WINDOW_SECONDS:
            self._reports.popleft()

    @property
    def busy(self) -> float | None:
        """The share of the last seconds that it spent inside of inference; `None`: not known."""
        if len(self._reports) < 2:
            return None
        (start, before), (end, after) = self._reports[0], self._reports[-1]
        return min(1.0, (after - before) / (end - start)) if end > start else None


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at a moment.

    Attributes:
        is_ready: Whether the devices have their model.
        seconds: Since the run began.
        total: Pictures to do, in all passes.
        done: Those that are done or have failed, in this run or an earlier one.
        failed: Those of them that have failed.
        rate: Pictures a second; `None` while none is done.
        seconds_left: `None` if it cannot be said.
        devices: One entry a device: name, done, failed, rate and busy.
        ap: The AP of the pictures so far; empty if it is not known.
    """

    is_ready: bool
    seconds: float
    total: int
    done: int
    failed: int
    rate: float | None
    seconds_left: float | None
    devices: list[dict[str, Any]]
    ap: AP


class Monitor:
    """Takes what the devices, the pool and the reducer report; gives it to the screen and to Ray.

    Its methods may be called from any thread.

    Attributes:
        has_ap: Whether the detections are a model's: simulated devices find nothing.
    """

    def __init__(
        self,
        total: int = 0,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to watch a run over so many pictures; the recorder exports the metrics."""
        self.has_ap = True
        self._total = total
        self._recorder = recorder or Recorder(None)
        self._clock = clock
        self._lock = threading.RLock()
        self._began = clock()
        self._pace: Pace | None = None
        self._done = self._failed = 0
        self._devices: dict[str, DeviceState] = {}
        self._lag = 0
        self._ap: AP = {}
        self._looked = 0.0

    def start(self, done: int, failed: int = 0) -> None:
        """Start the clock: the devices are ready.

        Args:
            done: Pictures that were done before, or have failed.
            failed: Those of them that have failed.
        """
        with self._lock:
            self._done, self._failed = done, failed
            self._pace = Pace(self._clock)

    def add_device(self, name: str, host: str) -> None:
        """Note a device that is ready, or ready again."""
        with self._lock:
            self._device(name).host = host

    def add(self, pictures: int, failed: int, device: str = "") -> None:
        """Count finished pictures, and those of them that failed; "": of no device."""
        with self._lock:
            self._done += pictures
            self._failed += failed
            if self._pace:
                self._pace.add(pictures)
            host = ""
            if device:
                state = self._device(device)
                state.done += pictures - failed
                state.failed += failed
                state.pace.add(pictures)
                host = state.host
            labels = {"device": device, "host": host}
            self._recorder.count("cfdist_pictures_done", pictures - failed, labels)
            self._recorder.count("cfdist_pictures_failed", failed, labels)

    def note_usage(self, device: str, usage: DeviceUsage | None) -> None:
        """Note what a device reports of itself, beyond what it has reported before."""
        if usage is None:
            return
        with self._lock:
            state = self._device(device)
            state.add_busy(self._clock(), usage.busy_seconds)
            labels = {"device": device, "host": state.host}
            self._recorder.count("cfdist_device_busy_seconds", usage.busy_seconds, labels)
            self._recorder.count("cfdist_device_starved_seconds", usage.starved_seconds, labels)
            seconds = [milliseconds / 1000 for milliseconds in usage.batch_ms]
            self._recorder.observe("cfdist_batch_seconds", seconds, labels)

    def is_depth_due(self) -> bool:
        """Whether `note_depth` should be called: counting chunks takes time."""
        return self._clock() - self._looked >= _DEPTH_SECONDS

    def note_depth(self, chunks: Mapping[str, int], lag: int) -> None:
        """Note how many chunks each device has in hand, and the pictures on their way to disk."""
        with self._lock:
            self._looked, self._lag = self._clock(), lag
            for name, state in self._devices.items():
                state.chunks = chunks.get(name, 0)

    def note_ap(self, ap: AP | None) -> None:
        """Note the AP of the pictures that are done, if it was computed."""
        with self._lock:
            if ap and self.has_ap:
                self._ap = ap

    def snapshot(self) -> Snapshot:
        """The state now."""
        with self._lock:
            pace = self._pace
            devices = [
                {
                    "name": one.name,
                    "done": one.done,
                    "failed": one.failed,
                    "rate": one.pace.rate,
                    "busy": one.busy,
                }
                for one in self._devices.values()
            ]
            return Snapshot(
                pace is not None,
                self._clock() - self._began,
                self._total,
                self._done,
                self._failed,
                pace.rate if pace else None,
                pace.seconds_left(self._total - self._done) if pace else None,
                devices,
                self._ap,
            )

    def publish(self) -> None:
        """Export what is a state and no count; Ray forgets it if it is not told again."""
        with self._lock:
            record = self._recorder.set
            record("cfdist_pictures_wanted", self._total, {})
            record("cfdist_reducer_lag_pictures", self._lag, {})
            for one in self._devices.values():
                labels = {"device": one.name, "host": one.host}
                record("cfdist_device_chunks", one.chunks, labels)
                if one.busy is not None:
                    record("cfdist_device_busy_share", one.busy, labels)
            for protocol, values in self._ap.items():
                for difficulty, value in values.items():
                    labels = {"protocol": protocol, "difficulty": difficulty}
                    record("cfdist_ap", value, labels)

    def end(self) -> None:
        """Export the last state, and what was kept back of the counts."""
        self.publish()
        with self._lock:
            self._recorder.release()

    def _device(self, name: str) -> DeviceState:
        if name not in self._devices:
            self._devices[name] = DeviceState(name, Pace(self._clock))
        return self._devices[name]
