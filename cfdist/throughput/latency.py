"""One picture after another on one device: how long each takes, from its file to its faces."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.detections import Detections
from cfdist.devices.base import DeviceReport, device_name
from cfdist.devices.detector import decode_pictures, load
from cfdist.distributed.plan import DevicePlan
from cfdist.throughput.device import on_each_device
from cfdist.throughput.host import Failure
from cfdist.throughput.sampling import Sample
from cfdist.widerface.manifest import WorkItem

# What is done with a picture, in this order.
STEPS = ("reading", "inference", "finding faces")

# Pictures that a 99th percentile takes at least: one is slower.
LEAST_PICTURES = 100

_WARM_UP = 3  # pictures; ONNX Runtime lays out its memory in the first and takes it in the second


@dataclass(frozen=True)
class Latencies:
    """What became of pictures, one after another.

    Attributes:
        ms: (n, steps) float64: how long each step of each picture took, milliseconds; of very many
            pictures those of a part, see `Sample`.
        pictures: How many pictures were measured.
        seconds: From the first picture's begin to the last one's end.
        failures: The pictures that failed; they are not among the n.
        damaged: (id, what is wrong with the file) of the damaged ones, whether they failed or not.
        runs_on: What the backend computes on, see `Backend.runs_on`.
    """

    ms: NDArray[np.float64]
    pictures: int
    seconds: float
    failures: tuple[Failure, ...]
    damaged: tuple[Failure, ...]
    runs_on: str

    @property
    def whole_ms(self) -> NDArray[np.float64]:
        """(n,) float64: how long each picture took."""
        whole: NDArray[np.float64] = self.ms.sum(axis=1)
        return whole

    @property
    def missing_seconds(self) -> float | None:
        """How long a run with enough pictures takes; `None` if this one has enough."""
        if self.pictures >= LEAST_PICTURES:
            return None
        return self.seconds / max(1, self.pictures) * LEAST_PICTURES


class SingleStreamDevice:
    """Takes one picture after another; a `SteppingDevice`. A chunk is all pictures."""

    def __init__(
        self, model: BackendModel, settings: DeviceSettings, pictures: int, min_seconds: float
    ) -> None:
        """Remember what to load, and for how many pictures and seconds to go on at least."""
        self._model = model
        self._settings = settings
        self._least = (pictures, min_seconds)
        self.steps = 0

    def warm_up(self) -> None:
        """Load the model and run it.

        Raises:
            UserError: the model does not fit the device.
        """
        self._runner, self._reader = load(self._model, self._settings, readers=1)
        self._runner.warm_up()

    def process(self, chunk: Sequence[WorkItem]) -> Latencies:
        """Take these pictures, again and again if they are too few."""
        for item in chunk[:_WARM_UP]:
            self._take(item)
        (pictures, min_seconds), failed, damaged = self._least, dict[str, str](), dict[str, str]()
        steps = Sample(len(STEPS))
        start = now = time.perf_counter()
        for item in itertools.cycle(chunk):
            is_enough = steps.count >= pictures and now - start >= min_seconds
            if len(failed) == len(chunk) or is_enough:
                break
            if item.key not in failed:
                ends, found = self._take(item)
                now = ends[-1]
                if found.damage is not None:
                    damaged[item.key] = found.damage
                if found.error is None:
                    steps.add(*(1000 * np.diff(ends)))
                else:
                    failed[item.key] = found.error
        bad = tuple(failed.items()), tuple(damaged.items())
        runs_on = self._runner.backend.runs_on
        return Latencies(steps.rows(), steps.count, now - start, *bad, runs_on)

    def _take(self, item: WorkItem) -> tuple[list[float], Detections]:
        """The times before, between and after the steps, and what was found."""
        times = [time.perf_counter()]
        for pictures in self._reader.portions([item]):  # of one picture there is one
            times.append(time.perf_counter())
            inferred = self._runner.infer(pictures.letterboxed)
            times.append(time.perf_counter())
            (found,) = decode_pictures(pictures, inferred, self._model.spec)
            times.append(time.perf_counter())
        self.steps += 1
        return times, found

    def report(self) -> DeviceReport:
        """See `Device.report`."""
        return self._runner.report()

    def close(self) -> None:
        """See `Device.close`."""
        self._reader.close()
        self._runner.close()


def measure_latency(
    model: BackendModel,
    plan: DevicePlan,
    items: Sequence[WorkItem],
    pictures: int,
    min_seconds: float,
) -> Latencies:
    """Take one picture after another on a device.

    Args:
        model: The model, of batch 1, and its backend.
        plan: The one device.
        items: The pictures, each once; they are repeated.
        pictures: How many to take at least.
        min_seconds: How long to go on at least.

    Raises:
        UserError: the model does not fit the device.
        StoppedError: the device failed, or took too long.
    """
    reports = on_each_device(
        plan,
        lambda settings: SingleStreamDevice(model, settings, pictures, min_seconds),
        model,
        list(items),
    )
    found: Latencies = reports[device_name(0)]
    return found
