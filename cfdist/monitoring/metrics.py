"""The metrics of a run, which Ray exports to Prometheus under these names after "ray_".

The driver records all of them, of what devices and reducer report with each chunk: a device that
is started again goes on with its counts, and what is exported is what the results will say.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

log = logging.getLogger(__name__)

# Longer than it takes, on a machine that is not busy, until the agent is found.
_HOLD_SECONDS = 8.0

_OF_DEVICE = ("device", "host")

# Upper ends of the buckets of batch times, seconds: from a fast chip's to a slow CPU's.
_SECONDS = [m * 10.0**e for e in range(-4, 2) for m in (1, 2.5, 5)]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        unit: Of its values; counters have "_total" after their names in Prometheus.
        labels: Beside `run`, the name of the run's folder.
        text: What it says.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    text: str

    @property
    def exported(self) -> str:
        """Its name in Prometheus; a histogram has `_bucket`, `_sum` and `_count` after it."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


METRICS = (
    Metric("cfdist_pictures_wanted", "gauge", "pictures", (), "pictures to do, in all passes"),
    Metric(
        *("cfdist_pictures_done", "counter", "pictures", _OF_DEVICE),
        "pictures with a result on the disk, in this run",
    ),
    Metric(
        *("cfdist_pictures_failed", "counter", "pictures", _OF_DEVICE),
        "pictures that failed; without a device if several have failed on them",
    ),
    Metric(
        *("cfdist_batch_seconds", "histogram", "seconds", _OF_DEVICE),
        "host-visible time of each full batch",
    ),
    Metric(
        *("cfdist_device_busy_seconds", "counter", "seconds", _OF_DEVICE),
        "time inside of inference, the mean of the streams",
    ),
    Metric(
        *("cfdist_device_busy_share", "gauge", "0 to 1", _OF_DEVICE),
        "the same as a share of the last ten seconds or four reports",
    ),
    Metric(
        *("cfdist_device_starved_seconds", "counter", "seconds", _OF_DEVICE),
        "time between first and last batch without a batch to infer, the mean of the streams",
    ),
    Metric(
        *("cfdist_device_chunks", "gauge", "chunks", _OF_DEVICE),
        "chunks that the device has in hand: those in inference and those that wait for it",
    ),
    Metric(
        *("cfdist_reducer_lag_pictures", "gauge", "pictures", ()),
        "pictures that a device has finished and the journal does not hold yet",
    ),
    Metric(
        *("cfdist_ap", "gauge", "0 to 1", ("protocol", "difficulty")),
        "AP of the pictures so far; the first after ten seconds, at the end that of all",
    ),
)


def run_label(output_dir: str | Path) -> str:
    """What tells a run's metrics from another's: its folder's name, in a sweep also the sweep's."""
    path = Path(output_dir)
    return f"{path.parent.name}/{path.name}" if path.name.isdecimal() else path.name


class Recorder:
    """Records the metrics of a run, as far as Ray takes them; a fault of Ray's is logged once.

    Attributes:
        held_until: Until when (`time.monotonic`) counts are kept back. A process finds Ray's agent
            some seconds after it has connected, and Ray drops what is counted before.
    """

    held_until: ClassVar[float] = 0.0

    @classmethod
    def hold(cls) -> None:
        """Keep back what is counted from now on until the agent is found, as a rule."""
        cls.held_until = time.monotonic() + _HOLD_SECONDS

    def __init__(self, run: str | None) -> None:
        """Name the run; `None` records nothing, and so does a process without Ray."""
        self._run = run
        self._made: dict[str, Any] = {}
        self._held: list[tuple[str, str, list[float], Mapping[str, str]]] = []

    def count(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter."""
        if value > 0:
            self._add(name, "inc", [value], labels)

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""
        if time.monotonic() >= self.held_until:
            self.release()
        self._record(name, "set", [value], labels)

    def observe(self, name: str, values: Iterable[float], labels: Mapping[str, str]) -> None:
        """Add to a histogram."""
        self._add(name, "observe", values, labels)

    def release(self) -> None:
        """Record what was kept back."""
        held, self._held = self._held, []
        for one in held:
            self._record(*one)

    def _add(self, name: str, how: str, values: Iterable[float], labels: Mapping[str, str]) -> None:
        if time.monotonic() < self.held_until and self._run is not None:
            self._held.append((name, how, [*values], labels))
            return
        self.release()
        self._record(name, how, values, labels)

    def _record(
        self, name: str, how: str, values: Iterable[float], labels: Mapping[str, str]
    ) -> None:
        if self._run is None or not _is_connected():
            return
        try:
            if not self._made:
                self._made = _make()
            record, tags = getattr(self._made[name], how), {"run": self._run, **labels}
            for value in values:
                record(value, tags)
        except Exception:
            log.warning("no metrics of this run: Ray does not take them", exc_info=True)
            self._run = None


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _make() -> dict[str, Any]:
    """Ray's objects of all metrics, by name."""
    from ray.util.metrics import Counter, Gauge, Histogram

    made: dict[str, Any] = {}
    for one in METRICS:
        keys = ("run", *one.labels)
        if one.kind == "histogram":
            made[one.name] = Histogram(one.name, one.text, _SECONDS, keys)
        else:
            made[one.name] = {"counter": Counter, "gauge": Gauge}[one.kind](
                one.name, one.text, keys
            )
    return made
