"""One actor per device: files in, peaks out; reading, inference and sending overlap."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist import backends
from cfdist.backends.base import DeviceSettings
from cfdist.decode import HeadMaps, Peaks, select_peaks
from cfdist.model import ModelSpec
from cfdist.preprocess import PictureError, read_into, to_model_input
from cfdist.widerface.manifest import WorkItem


@dataclass(frozen=True)
class PeaksBatch:
    """What leaves a device: the peaks of some pictures, and the pictures that failed.

    Attributes:
        ids: n picture ids.
        sizes: (n, 2) int32 picture width and height, pixels.
        peaks: Of n pictures.
        failures: (id, reason) of pictures that could not be used.
    """

    ids: tuple[str, ...]
    sizes: NDArray[np.int32]
    peaks: Peaks
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ChunkReport:
    """What one `process` call did, for the driver's progress and clock."""

    done: int
    failed: int


@dataclass
class DeviceReport:
    """A device's share of a run.

    Attributes:
        pictures: Pictures inferred.
        busy_seconds: Time inside inference, summed over batches and divided by the slots.
        batch_ms: Host-visible time of each full batch, milliseconds.
    """

    pictures: int = 0
    busy_seconds: float = 0.0
    batch_ms: list[float] = field(default_factory=list)


class Device:
    """A model on a device, with threads that read pictures ahead.

    `process` is called by several threads at once (a Ray actor's `max_concurrency`): while one
    chunk is on the device, the next is being read and the last one is on its way to the reducer.
    """

    def __init__(
        self, backend: str, spec: ModelSpec, settings: DeviceSettings, feeders: int
    ) -> None:
        cv2.setNumThreads(1)  # the feeders are the parallelism; OpenCV's pool would fight them
        self._backend = backends.create(backend, spec, settings)
        self._spec = spec
        self._feeders = ThreadPoolExecutor(feeders, thread_name_prefix="feeder")
        self._slots = threading.BoundedSemaphore(self._backend.slots)
        self._buffers: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        self._report = DeviceReport()
        self._report_lock = threading.Lock()
        self._reducer = None

    def warm_up(self, chunk: int, buffers: int, reducer=None) -> None:
        """Make the buffers and run each slot once, so that the first batch costs like any other."""
        self._reducer = reducer
        for _ in range(buffers):
            self._buffers.put(np.zeros((chunk, self._spec.height, self._spec.width, 3), np.uint8))
        zeros = np.zeros((self._spec.batch, self._spec.height, self._spec.width, 3), np.uint8)
        inputs = to_model_input(zeros, self._backend.contract)
        with ThreadPoolExecutor(self._backend.slots) as pool:
            list(pool.map(lambda _: self._backend.infer(inputs), range(self._backend.slots)))

    def process(self, items: Sequence[WorkItem]) -> ChunkReport:
        """Read, infer and deliver a chunk; returns once the reducer has it on disk."""
        import ray

        result = self.find_peaks(items)
        ray.get(self._reducer.add.remote(result))
        return ChunkReport(len(result.ids), len(result.failures))

    def find_peaks(self, items: Sequence[WorkItem]) -> PeaksBatch:
        """Read and infer a chunk of at most the buffers' length."""
        buffer = self._buffers.get()
        try:
            outcomes = list(self._feeders.map(_read_row, items, buffer[: len(items)], chunksize=1))
            read = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, tuple)]
            if len(read) < len(items):
                _close_gaps(buffer, read)
            peaks = self._infer(buffer[: len(read)])
        finally:
            self._buffers.put(buffer)
        return PeaksBatch(
            tuple(items[i].id for i in read),
            np.array([outcomes[i] for i in read], np.int32).reshape(-1, 2),
            peaks,
            tuple((items[i].id, o) for i, o in enumerate(outcomes) if isinstance(o, str)),
        )

    def _infer(self, warped: NDArray[np.uint8]) -> Peaks:
        """Peaks of (n, H, W, 3) warped pictures, batch by batch."""
        size = self._spec.batch
        found = [
            select_peaks(self._infer_batch(warped[start : start + size]), self._spec.top_k)
            for start in range(0, len(warped), size)
        ]
        if not found:
            return _no_peaks(self._spec)
        return Peaks(
            np.concatenate([p.score for p in found]),
            np.concatenate([p.cell for p in found]),
            np.concatenate([p.values for p in found]),
            found[0].map_width,
        )

    def _infer_batch(self, warped: NDArray[np.uint8]) -> HeadMaps:
        inputs = to_model_input(warped, self._backend.contract)
        with self._slots:
            start = time.perf_counter()
            heads = self._backend.infer(inputs)
            seconds = time.perf_counter() - start
        with self._report_lock:
            self._report.pictures += len(warped)
            self._report.busy_seconds += seconds / self._backend.slots
            if len(warped) == self._spec.batch:
                self._report.batch_ms.append(seconds * 1000)
        return heads

    def report(self) -> DeviceReport:
        """What the device has done so far."""
        with self._report_lock:
            return self._report

    def close(self) -> None:
        """Give the device and the threads back."""
        self._feeders.shutdown()
        self._backend.close()


def _read_row(item: WorkItem, row: NDArray[np.uint8]) -> tuple[int, int] | str:
    """The picture's width and height, or why it failed."""
    try:
        return read_into(item.path, row)
    except PictureError as error:
        return str(error)
    except MemoryError:
        return "does not fit into memory"


def _close_gaps(buffer: NDArray[np.uint8], read: list[int]) -> None:
    """Move the rows that were read to the front."""
    for target, source in enumerate(read):
        if target != source:
            buffer[target] = buffer[source]


def _no_peaks(spec: ModelSpec) -> Peaks:
    return Peaks(
        np.zeros((0, spec.top_k), np.float32),
        np.zeros((0, spec.top_k), np.int32),
        np.zeros((0, spec.top_k, 14), np.float32),
        1,
    )
