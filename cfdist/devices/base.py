"""The protocol that every device class keeps, and what a device reports of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cfdist.backends.base import DeviceSettings
from cfdist.devices.activity import ActivityRecord

# Chunks that a device holds beyond those in inference: one is being read, one is being sent away.
AHEAD = 2

# Ray takes one or two milliseconds of processor time a chunk, over all its processes. A fast
# device therefore gets several batches in one chunk, up to this number of pictures.
MAX_CHUNK = 32


def largest_chunk(least: int) -> int:
    """The most pictures that a device is given in one chunk.

    It is a multiple of `least`, the pictures of the batches that the device takes at once, and at
    most `MAX_CHUNK` unless `least` is more.
    """
    return least * max(1, MAX_CHUNK // least)


@dataclass
class DeviceReport:
    """A device's share of a run.

    Attributes:
        decoded: Picture files that were read and decoded for the device in this run.
        busy_seconds: Time inside inference, summed over batches and divided by the streams.
        batch_ms: Host-visible time of each full batch, milliseconds. A backend whose first batch
            lays out its memory leaves the first one of each stream out.
        device_ms: The device's own time of each batch, milliseconds, if it measures one.
        peak_memory: Most resident memory that the process had, bytes.
        host: Name of the machine.
        chip: The accelerator's number on that machine, or its UUID; `None` on a CPU.
        runs_on: What the backend computes on, see `Backend.runs_on`.
        activity: When it read and inferred.
        starved_seconds: Time between the first and the last inference without a batch to infer, the
            mean of the streams.
    """

    pictures: int = 0
    decoded: int = 0
    busy_seconds: float = 0.0
    batch_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    peak_memory: int = 0
    host: str = ""
    chip: str | None = None
    runs_on: str = ""
    activity: ActivityRecord = field(default_factory=ActivityRecord)
    starved_seconds: float = 0.0


Reasons = tuple[tuple[str, str], ...]  # (key, reason) of pictures


@dataclass(frozen=True)
class ChunkReport:
    """What became of a chunk.

    Attributes:
        done: Keys of the work items that have a result.
        failures: (key, reason) of those that failed.
        doubtful: (key, reason) of those for which the device may be the reason, as outputs that
            are not finite and files that it cannot read; they are tried again.
    """

    done: tuple[str, ...]
    failures: tuple[tuple[str, str], ...] = ()
    doubtful: tuple[tuple[str, str], ...] = ()

    def judged(self, failures: Reasons, doubtful: Reasons) -> ChunkReport:
        """The same with other doubtful pictures, some of which have failed instead."""
        return replace(self, failures=self.failures + failures, doubtful=doubtful)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the work items that are done or have failed."""
        return (*self.done, *(key for key, _ in self.failures))


class Device(Protocol):
    """A model on a device: made on the driver as plain data, loaded where it runs.

    `process` is called by several threads at once: while one chunk is being inferred, the next
    one is read and the last one is sent away.
    """

    def warm_up(self) -> None:
        """Load the model, take all memory, and run each stream once.

        Raises:
            UserError: the model does not fit the device or the run.
        """

    def process(self, chunk: Any) -> Any:
        """Do one chunk of work.

        Raises:
            UserError: the device refuses the chunk; it would refuse every other one, too.
        """

    def report(self) -> DeviceReport:
        """What the device has done so far."""

    def close(self) -> None:
        """Give the device, its threads and its memory back."""


class SteppingDevice(Device, Protocol):
    """A device whose one chunk may take hours.

    Attributes:
        steps: How many batches or pictures it has done so far.
    """

    steps: int


# Makes the device with some settings.
MakeDevice = Callable[[DeviceSettings], Device]


def device_name(number: int) -> str:
    """The name of a device in messages, results and Ray, from its number in the run."""
    return f"device:{number}"
