"""One actor per device: files in, detections out; reading, inference and sending overlap."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist import backends
from cfdist.backends.base import Backend, DeviceSettings
from cfdist.decode import PEAK_VALUES, HeadMaps, Peaks, decode_boxes, nms, select_peaks
from cfdist.detections import Detections, to_arrow
from cfdist.distributed.memory import memory_as_user_error
from cfdist.distributed.picture_cache import KeptPictures, KeptRow, Place, resolve_places
from cfdist.machine import SWITCH_SECONDS, peak_memory
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract, PictureError, read_into, to_model_input
from cfdist.widerface.manifest import WorkItem


@dataclass(frozen=True)
class PeaksBatch:
    """The peaks of some pictures, and the pictures that failed.

    Attributes:
        ids: n keys of work items.
        sizes: (n, 2) int32 picture width and height, pixels.
        peaks: Of n pictures.
        failures: (key, reason) of pictures that could not be used.
    """

    ids: tuple[str, ...]
    sizes: NDArray[np.int32]
    peaks: Peaks
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pictures:
    """Pictures that were read, in a buffer that is reused.

    Attributes:
        read: Which n of the chunk's items they are.
        ids: Their keys.
        sizes: (n, 2) int32 width and height before letterboxing, pixels.
        warped: (n, H, W, 3) u8, BGR, letterboxed.
        failures: (key, reason) of pictures that could not be used.
    """

    read: tuple[int, ...]
    ids: tuple[str, ...]
    sizes: NDArray[np.int32]
    warped: NDArray[np.uint8]
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ChunkReport:
    """What one `process` call did, for the driver's progress and clock.

    Attributes:
        done: Pictures whose detections are on disk.
        failed: Pictures that could not be used.
        kept: Row by row of the pictures to keep, which of the items it is.
    """

    done: int
    failed: int
    kept: tuple[int, ...] = ()


@dataclass
class DeviceReport:
    """A device's share of a run.

    Attributes:
        pictures: Pictures inferred.
        decoded: Picture files read and decoded; the others were kept from an earlier run, or
            failed.
        busy_seconds: Time inside inference, summed over batches and divided by the slots.
        batch_ms: Host-visible time of each full batch, milliseconds; without the first one in
            each slot where it still takes memory.
        device_ms: The device's own time of each batch, where it tells.
        peak_memory: Most resident memory that the process had, bytes.
    """

    pictures: int = 0
    decoded: int = 0
    busy_seconds: float = 0.0
    batch_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    peak_memory: int = 0


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
        sys.setswitchinterval(SWITCH_SECONDS)
        self._load = (backend, spec, settings)
        self._spec = spec
        self._feeder_count = feeders
        self._feeders = ThreadPoolExecutor(feeders, thread_name_prefix="feeder")
        self._buffers: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        # Of each contract that is not the warped pictures themselves.
        self._inputs: dict[InputContract, queue.SimpleQueue[NDArray]] = {}
        self._report = DeviceReport()
        self._report_lock = threading.Lock()
        self._cold = 0  # whole batches, one a slot, that are yet to come and no measurement
        self._reducer = None

    def warm_up(self, chunk: int, buffers: int, reducer=None) -> None:
        """Load the model, make the buffers, and run each slot once.

        Raises:
            UserError: the model does not fit the device or the run.
        """
        with memory_as_user_error(self._spec.batch):
            backend = self._backend = backends.create(*self._load)
            self._slots = threading.BoundedSemaphore(backend.streams)
            self._reducer = reducer
            shape = (self._spec.height, self._spec.width, 3)
            for _ in range(buffers):
                self._buffers.put(np.zeros((chunk, *shape), np.uint8))
            self._make_inputs(backend, chunk)
            count = self._warm_up_pictures()
            is_cold = count < self._spec.batch or backend.capabilities.learns_shape
            self._cold = backend.streams if is_cold else 0
            zeros = np.zeros((count, *shape), np.uint8)
            inputs = to_model_input(zeros, backend.contract)
            with ThreadPoolExecutor(backend.streams) as pool:
                list(pool.map(lambda _: backend.infer(inputs), range(backend.streams)))
        to_arrow([])  # what it imports is there before the first chunk
        self._backend.device_times_ms()  # the warm-up's are forgotten

    def _make_inputs(self, backend: Backend, chunk: int) -> None:
        """Room for what the backend takes: a chunk for each slot, and one that is being made."""
        contract = backend.contract
        if contract.is_warped_bytes or contract in self._inputs:
            return
        room = self._inputs[contract] = queue.SimpleQueue()
        for _ in range(backend.streams + 1):
            room.put(np.empty(contract.shape(chunk), contract.dtype))

    def _warm_up_pictures(self) -> int:
        """How many pictures each slot begins with.

        On a CPU one will do: a whole batch would take as long as the first chunk, which no steady
        figure counts (for the five batch sizes of the published table 4 s on 2 cores).
        """
        backend = self._backend
        is_cpu = backend.device_kind(self._load[2].options) == "cpu"
        can = backend.capabilities
        is_any_size = not (can.has_fixed_batch or can.learns_shape)
        return 1 if is_cpu and is_any_size else self._spec.batch

    def process(
        self,
        items: Sequence[WorkItem],
        places: Sequence[Place | None] = (),
        keep: Sequence[int] = (),
    ) -> ChunkReport | tuple[ChunkReport, KeptPictures]:
        """Read, infer, decode and deliver a chunk; returns once the reducer has it on disk.

        Args:
            items: The pictures.
            places: For each the place of its picture in the object store, `None` where it is to be
                read; empty where all are.
            keep: Which of the items' letterboxed pictures to return as well, for a further pass or
                run.
        """
        import ray

        kept = resolve_places(places) if places else None
        # Where all are to be kept, they are read into what is returned, else copied there.
        keep_all = len(keep) == len(items)
        with self._read(items, kept, keep=keep_all) as pictures:
            result = self._peaks(pictures)
            rows = [row for row, item in enumerate(pictures.read) if item in set(keep)]
            warped = pictures.warped if keep_all else pictures.warped[rows]
        detections = to_arrow(decode_detections(result, self._spec))
        ray.get(self._reducer.add.remote(detections))
        kept_items = tuple(pictures.read[row] for row in rows)
        report = ChunkReport(len(result.ids), len(result.failures), kept_items)
        return (report, KeptPictures(pictures.sizes[rows], warped)) if keep else report

    def find_peaks(self, items: Sequence[WorkItem]) -> PeaksBatch:
        """Read and infer a chunk of at most the buffers' length."""
        with self._read(items) as pictures:
            return self._peaks(pictures)

    def _peaks(self, pictures: Pictures) -> PeaksBatch:
        results = self._infer(self._backend, pictures.warped)
        peaks = join_peaks([self._peaks_of(result) for result in results], self._spec)
        return PeaksBatch(pictures.ids, pictures.sizes, peaks, pictures.failures)

    @contextlib.contextmanager
    def _read(
        self,
        items: Sequence[WorkItem],
        kept: Sequence[KeptRow | None] | None = None,
        keep: bool = False,
    ) -> Iterator[Pictures]:
        """The items' pictures, in a buffer that is the caller's for the `with` block.

        With `keep` it is the caller's for good.
        """
        buffer = self._buffers.get()
        target = np.empty_like(buffer[: len(items)]) if keep else buffer
        try:
            outcomes = self._fill(items, kept or [None] * len(items), target)
            read = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, tuple)]
            _close_gaps(target, read)
            yield Pictures(
                tuple(read),
                tuple(items[i].key for i in read),
                np.array([outcomes[i] for i in read], np.int32).reshape(-1, 2),
                target[: len(read)],
                tuple((items[i].key, o) for i, o in enumerate(outcomes) if isinstance(o, str)),
            )
        finally:
            self._buffers.put(buffer)

    def _fill(
        self,
        items: Sequence[WorkItem],
        kept: Sequence[KeptRow | None],
        rows: NDArray[np.uint8],
    ) -> list[tuple[int, int] | str]:
        """Each picture into its row, by all feeders; returns its size, or why it failed."""
        outcomes: list[Any] = [None] * len(items)
        # Each feeder takes the next picture when it has done one: `next` is atomic.
        numbers = iter(range(len(items)))

        def feed() -> int:
            decoded = 0
            for i in numbers:
                if kept[i] is None:
                    outcomes[i] = _read_row(items[i], rows[i])
                    decoded += isinstance(outcomes[i], tuple)
                else:
                    outcomes[i] = kept[i].copy_into(rows[i])
            return decoded

        feeders = [self._feeders.submit(feed) for _ in range(min(self._feeder_count, len(items)))]
        # All of them: the buffer goes to another chunk after this, also if one has failed.
        wait(feeders)
        with self._report_lock:
            self._report.decoded += sum(feeder.result() for feeder in feeders)
        return outcomes

    def _infer(self, backend: Backend, warped: NDArray[np.uint8]) -> list[HeadMaps | Peaks]:
        """Results of (n, H, W, 3) warped pictures, one entry a batch."""
        size = self._spec.batch
        if not len(warped):
            return []
        with self._model_input(warped, backend.contract) as inputs:
            batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
            with self._slots, memory_as_user_error(size):
                results, seconds = _run_timed(backend, batches)
        with self._report_lock:
            self._report.pictures += len(warped)
            self._report.busy_seconds += sum(seconds) / self._backend.streams
            is_first = self._cold > 0 and len(warped) >= size
            self._cold -= is_first
            # A part of a batch is no batch, unless it costs as much.
            self._report.batch_ms += [
                1000 * each
                for batch, each in zip(batches, seconds, strict=True)
                if not is_first and (backend.capabilities.has_fixed_batch or len(batch) == size)
            ]
        return results

    @contextlib.contextmanager
    def _model_input(self, warped: NDArray[np.uint8], contract: InputContract) -> Iterator[NDArray]:
        """Warped pictures as the contract wants them; they are there for the `with` block."""
        if contract.is_warped_bytes:
            yield warped
            return
        room = self._inputs[contract].get()
        try:
            yield to_model_input(warped, contract, room[: len(warped)])
        finally:
            self._inputs[contract].put(room)

    def _peaks_of(self, result: HeadMaps | Peaks) -> Peaks:
        return result if isinstance(result, Peaks) else select_peaks(result, self._spec.top_k)

    def report(self) -> DeviceReport:
        """What the device has done so far."""
        with self._report_lock:
            self._report.device_ms += self._backend.device_times_ms()
            self._report.peak_memory = peak_memory()
            return self._report

    def close(self) -> None:
        """Give the device and the threads back."""
        self._feeders.shutdown()
        self._backend.close()


def decode_detections(result: PeaksBatch, spec: ModelSpec) -> list[Detections]:
    """Peaks as detections in picture pixels, suppression included; failed pictures at the end."""
    # The columns past the last peak of any picture hold nothing.
    count = int(np.count_nonzero(result.peaks.score > 0, axis=1).max(initial=0))
    peaks = Peaks(
        result.peaks.score[:, :count],
        result.peaks.cell[:, :count],
        result.peaks.values[:, :count],
        result.peaks.map_width,
    )
    decoded = decode_boxes(peaks, spec.convention, result.sizes, (spec.width, spec.height))
    detections = []
    for i, id in enumerate(result.ids):
        scores = peaks.score[i]
        keep = scores > 0
        width, height = map(int, result.sizes[i])
        if not keep.any():
            detections.append(Detections(id, width=width, height=height))
            continue
        if not np.isfinite(decoded.boxes[i][keep]).all():
            detections.append(Detections(id, error="the model's outputs are not finite numbers"))
            continue
        if spec.nms is not None:
            keep = nms(decoded.boxes[i], scores, spec.nms)
        detections.append(
            Detections(
                id, decoded.boxes[i][keep], scores[keep], decoded.landmarks[i][keep], width, height
            )
        )
    detections += [Detections(id, error=reason) for id, reason in result.failures]
    return detections


def _run_timed(
    backend: Backend, batches: Sequence[NDArray]
) -> tuple[list[HeadMaps | Peaks], list[float]]:
    """The batches' results, and the host-visible seconds of each.

    Where a backend overlaps several batches, each counts as their time divided by their number.
    """
    together = 1 if backend.capabilities.group == 1 else len(batches)
    results: list[HeadMaps | Peaks] = []
    seconds: list[float] = []
    for first in range(0, len(batches), together):
        some = batches[first : first + together]
        start = time.perf_counter()
        results += backend.infer_many(some)
        seconds += [(time.perf_counter() - start) / len(some)] * len(some)
    return results, seconds


def _read_row(item: WorkItem, row: NDArray[np.uint8]) -> tuple[int, int] | str:
    """The picture's width and height, or why it failed."""
    try:
        return read_into(item.path, row)
    except PictureError as error:
        return str(error)
    except MemoryError:
        return "does not fit into memory"


def _close_gaps(rows: NDArray[np.uint8], read: list[int]) -> None:
    """Move the rows that were read to the front."""
    for target, source in enumerate(read):
        if target != source:
            rows[target] = rows[source]


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
