"""One actor per device: files in, peaks out; reading, inference and sending overlap."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist import backends
from cfdist.backends.base import Backend, DeviceSettings
from cfdist.decode import PEAK_VALUES, HeadMaps, Peaks, select_peaks
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
class Pictures:
    """Pictures that were read, in a buffer that is reused.

    Attributes:
        ids: n picture ids.
        sizes: (n, 2) int32 width and height before letterboxing, pixels.
        warped: (n, H, W, 3) u8, BGR, letterboxed.
        failures: (id, reason) of pictures that could not be used.
    """

    ids: tuple[str, ...]
    sizes: NDArray[np.int32]
    warped: NDArray[np.uint8]
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
        device_ms: The device's own time of each batch, where it tells.
    """

    pictures: int = 0
    busy_seconds: float = 0.0
    batch_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)


class Device:
    """A model on a device, with threads that read pictures ahead.

    `process` is called by several threads at once (a Ray actor's `max_concurrency`): while one
    chunk is on the device, the next is being read and the last one is on its way to the reducer.
    """

    def __init__(
        self, backend: str, spec: ModelSpec, settings: DeviceSettings, feeders: int
    ) -> None:
        """Remember what to load; `warm_up` loads it, so that its errors reach the driver."""
        cv2.setNumThreads(1)  # the feeders are the parallelism; OpenCV's pool would fight them
        self._load = (backend, spec, settings)
        self._spec = spec
        self._feeders = ThreadPoolExecutor(feeders, thread_name_prefix="feeder")
        self._buffers: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        self._report = DeviceReport()
        self._report_lock = threading.Lock()
        self._reducer = None

    def warm_up(self, chunk: int, buffers: int, reducer=None) -> None:
        """Load the model, make the buffers, and run each slot once.

        The first batch then costs like any other.

        Raises:
            UserError: the model does not fit the device or the run.
        """
        self._backend = backends.create(*self._load)
        self._slots = threading.BoundedSemaphore(self._backend.slots)
        self._reducer = reducer
        for _ in range(buffers):
            self._buffers.put(np.zeros((chunk, self._spec.height, self._spec.width, 3), np.uint8))
        zeros = np.zeros((self._spec.batch, self._spec.height, self._spec.width, 3), np.uint8)
        inputs = to_model_input(zeros, self._backend.contract)
        with ThreadPoolExecutor(self._backend.slots) as pool:
            list(pool.map(lambda _: self._backend.infer(inputs), range(self._backend.slots)))
        self._backend.device_times_ms()  # the warm-up's are forgotten

    def process(self, items: Sequence[WorkItem]) -> ChunkReport:
        """Read, infer and deliver a chunk; returns once the reducer has it on disk."""
        import ray

        result = self.find_peaks(items)
        ray.get(self._reducer.add.remote(result))
        return ChunkReport(len(result.ids), len(result.failures))

    def find_peaks(self, items: Sequence[WorkItem]) -> PeaksBatch:
        """Read and infer a chunk of at most the buffers' length."""
        with self._read(items) as pictures:
            results = self._infer(self._backend, pictures.warped)
            peaks = join_peaks([self._peaks_of(result) for result in results], self._spec)
        return PeaksBatch(pictures.ids, pictures.sizes, peaks, pictures.failures)

    @contextlib.contextmanager
    def _read(self, items: Sequence[WorkItem]) -> Iterator[Pictures]:
        """The items' pictures in a buffer that is the caller's for the `with` block."""
        buffer = self._buffers.get()
        try:
            outcomes = list(self._feeders.map(_read_row, items, buffer[: len(items)]))
            read = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, tuple)]
            _close_gaps(buffer, read)
            yield Pictures(
                tuple(items[i].id for i in read),
                np.array([outcomes[i] for i in read], np.int32).reshape(-1, 2),
                buffer[: len(read)],
                tuple((items[i].id, o) for i, o in enumerate(outcomes) if isinstance(o, str)),
            )
        finally:
            self._buffers.put(buffer)

    def _infer(self, backend: Backend, warped: NDArray[np.uint8]) -> list[HeadMaps | Peaks]:
        """Results of (n, H, W, 3) warped pictures, one entry a batch."""
        size = self._spec.batch
        batches = [
            to_model_input(warped[start : start + size], backend.contract)
            for start in range(0, len(warped), size)
        ]
        if not batches:
            return []
        with self._slots:
            start = time.perf_counter()
            results = backend.infer_many(batches)
            seconds = time.perf_counter() - start
        with self._report_lock:
            self._report.pictures += len(warped)
            self._report.busy_seconds += seconds / self._backend.slots
            # A part of a batch is no batch, unless it costs as much.
            if backend.has_fixed_batch or len(warped) % size == 0:
                self._report.batch_ms += [seconds * 1000 / len(batches)] * len(batches)
        return results

    def _peaks_of(self, result: HeadMaps | Peaks) -> Peaks:
        return result if isinstance(result, Peaks) else select_peaks(result, self._spec.top_k)

    def report(self) -> DeviceReport:
        """What the device has done so far."""
        with self._report_lock:
            self._report.device_ms += self._backend.device_times_ms()
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


def join_peaks(found: Sequence[Peaks], spec: ModelSpec) -> Peaks:
    """The peaks of several batches as those of one."""
    if not found:
        shape = (0, spec.top_k)
        values = np.zeros((*shape, PEAK_VALUES), np.float32)
        return Peaks(np.zeros(shape, np.float32), np.zeros(shape, np.int32), values, 1)
    return Peaks(
        np.concatenate([peaks.score for peaks in found]),
        np.concatenate([peaks.cell for peaks in found]),
        np.concatenate([peaks.values for peaks in found]),
        found[0].map_width,
    )
