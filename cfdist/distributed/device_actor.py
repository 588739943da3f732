"""What a device actor does, in a process of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

import pyarrow as pa

from cfdist.detections import arrow_without_pandas, packed, to_arrow
from cfdist.devices.base import ChunkReport, Device, DeviceReport, SteppingDevice
from cfdist.devices.reader import Size
from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE, Place, settle
from cfdist.distributed.work import Slice, letterbox_items, sources_of
from cfdist.machine import reset_peak_memory
from cfdist.monitoring.monitor import DeviceUsage
from cfdist.widerface.manifest import WorkItem

_USAGE_SECONDS = 0.5  # how often a device says what it has done, at most

Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """What a device actor returns: the result of a call, and now and then what it has done.

    Attributes:
        at: When, seconds since the epoch by the clock of the device's machine.
    """

    result: Result
    usage: DeviceUsage | None = None
    at: float = field(default_factory=time.time)


class DeviceActor:
    """Hosts a device in a process of its own; in a sweep, one after the other."""

    def __init__(self, name: str = "device:0", kind: str = "cpu") -> None:
        """Take a name that says what it is, in Ray's lists of actors."""
        arrow_without_pandas()
        self._text = actor_text(name, kind)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Such as "device NPU 0 on host"."""
        return self._text

    def settle(self, kind: str) -> Place:
        """Take the accelerator that Ray gave; returns where the device is.

        Raises:
            UserError: Ray gave it no accelerator of its own.
        """
        self._place = settle(kind)
        return self._place

    def warm_up(self, device: Device, place: Place, is_reduced: bool) -> Place:
        """Load a device where it has settled, see `Device.warm_up`.

        If a reducer gathers its detections, each chunk gives a report and their table.

        Returns:
            `place`.

        Raises:
            UserError: the device refuses the model.
        """
        reset_peak_memory()
        self._device = device
        self._told, self._told_at = DeviceReport(), 0.0
        self._is_reduced = is_reduced
        device.warm_up()
        to_arrow([])  # imports pyarrow before the first chunk
        return place

    def process(
        self, slices: Sequence[Slice], *blocks: pa.Table
    ) -> tuple[Answer[Any], bytes | None]:
        """`Device.process` for rows of blocks; a slice and its block have the same position.

        Returns:
            The device's result, or a `ChunkReport` and the `packed` detections for the reducer.
        """
        found = self._device.process(sources_of(slices, blocks))
        if not self._is_reduced:
            return Answer(found, self._usage()), None
        sound = [one for one in found if not one.is_doubtful]
        report = ChunkReport(
            tuple(one.id for one in sound if one.error is None),
            tuple((one.id, one.error) for one in sound if one.error is not None),
            tuple((one.id, one.error) for one in found if one.is_doubtful),
        )
        return Answer(report, self._usage()), packed(to_arrow(sound))

    def _usage(self, is_last: bool = False) -> DeviceUsage | None:
        """What the device has done since it last said so; `None`: it has just said it."""
        with self._lock:
            now = time.monotonic()
            if now - self._told_at < _USAGE_SECONDS and not is_last:
                return None
            before, report = self._told, replace(self._device.report())
            report.batch_ms = [*report.batch_ms]
            self._told, self._told_at = report, now
        return DeviceUsage(
            report.busy_seconds - before.busy_seconds,
            report.starved_seconds - before.starved_seconds,
            tuple(report.batch_ms[len(before.batch_ms) :]),
        )

    def letterbox(self, items: Sequence[WorkItem], size: Size, threads: int) -> pa.Table:
        """A block of the items' letterboxed pictures, see `letterbox`."""
        return letterbox_items(items, size, threads)

    def process_directly(self, chunk: Any) -> Any:
        """`Device.process` for a chunk that is not rows of blocks."""
        return self._device.process(chunk)

    def steps(self) -> int:
        """How much a `SteppingDevice` has done so far."""
        return cast(SteppingDevice, self._device).steps

    def close(self) -> Answer[DeviceReport]:
        """Give the device back; returns what it has done."""
        report, usage = self._device.report(), self._usage(is_last=True)
        self._device.close()
        del self._device
        return Answer(replace(report, host=self._place.host, chip=self._place.chip), usage)


def by_our_clock(answer: Answer[DeviceReport]) -> DeviceReport:
    """A report that has just arrived; what another machine did, by this one's clock.

    That is as exact as the answer's way was short, milliseconds.
    """
    report = answer.result
    if report.host != socket.gethostname():
        activity = replace(report.activity)
        activity.started += time.time() - answer.at
        report = replace(report, activity=activity)
    return report


def actor_text(name: str, kind: str) -> str:
    """What a device is, in this process: "device NPU 0 on host"; a CPU has the device's number."""
    import ray

    resource = ACCELERATOR_RESOURCE[kind]
    ids = ray.get_runtime_context().get_accelerator_ids().get(resource or "", [])
    number = ids[0] if ids else name.partition(":")[2]
    return f"device {resource or 'CPU'} {number} on {socket.gethostname()}"
