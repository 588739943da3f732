"""A model on a device: input tensors in, checked and timed outputs back."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.decode import Outputs, finite_pictures
from cfdist.devices.activity import Activity
from cfdist.devices.base import DeviceReport
from cfdist.devices.memory import memory_as_user_error
from cfdist.machine import peak_memory
from cfdist.preprocess import to_model_input


@dataclass(frozen=True)
class Inferred:
    """What a model gave for n pictures.

    Attributes:
        outputs: Head maps or peaks, one entry a batch.
        is_finite: (n,) bool: the picture's outputs hold no NaN and no infinite value.
        error: What is wrong with the others.
    """

    outputs: list[Outputs]
    is_finite: NDArray[np.bool_]
    error: str


class Runner:
    """A loaded model, `backend`: makes input tensors, runs batches, checks and times them.

    Attributes:
        activity: When it infers; whatever reads for it may note that there, too.
    """

    def __init__(self, model: BackendModel, settings: DeviceSettings, chunk: int) -> None:
        """Load the model; `infer` is given at most `chunk` pictures at once.

        Raises:
            UserError: the model does not fit the device or the run.
        """
        self._spec = model.spec
        self._kind = model.kind
        with memory_as_user_error(self._spec.batch):
            self.backend = model.load(settings)
            self._streams = threading.BoundedSemaphore(self.backend.streams)
            # Memory for input tensors: a chunk for each stream, and one that is being made.
            self._rooms: queue.SimpleQueue[NDArray[np.generic]] = queue.SimpleQueue()
            contract = self.backend.contract
            if not contract.is_letterboxed_bytes:
                for _ in range(self.backend.streams + 1):
                    self._rooms.put(np.empty(prod(contract.shape(chunk)), contract.dtype))
        self.activity = Activity()
        self._report = DeviceReport()
        self._lock = threading.Lock()
        self._active = 0  # streams that infer
        self._since: float | None = None  # when their number last changed
        self._cold = 0  # whole batches to come, one a stream, that are no measurement

    def warm_up(self) -> None:
        """Run each stream once, on black pictures.

        On a CPU one picture will do: a whole batch would take as long as the first chunk, which no
        steady figure counts (for the five batch sizes of the published table 4 s on 2 cores).

        Raises:
            UserError: a batch does not fit the device's memory.
        """
        spec, capabilities = self._spec, self.backend.capabilities
        takes_any_size = not (capabilities.has_fixed_batch or capabilities.learns_shape)
        count = 1 if self._kind == "cpu" and takes_any_size else spec.batch
        is_cold = count < spec.batch or capabilities.learns_shape
        self._cold = self.backend.streams if is_cold else 0
        black = np.zeros((count, spec.height, spec.width, 3), np.uint8)
        with memory_as_user_error(spec.batch):
            inputs = to_model_input(black, self.backend.contract)
            with ThreadPoolExecutor(self.backend.streams) as pool:
                list(pool.map(self.backend.infer, [inputs] * self.backend.streams))
        self.backend.device_times_ms()  # forgets those of the warm-up

    def infer(self, letterboxed: NDArray[np.uint8]) -> Inferred:
        """Run letterboxed pictures, or stretched ones, through the model.

        Args:
            letterboxed: (n, H, W, 3) u8, BGR. At own size H and W are those of these pictures.

        Raises:
            UserError: a batch does not fit the device's memory.
        """
        contract = self.backend.contract
        if contract.is_letterboxed_bytes or not len(letterboxed):
            return self.run(letterboxed)
        height, width = letterboxed.shape[1:3]
        contract = replace(contract, height=height, width=width)
        shape = contract.shape(len(letterboxed))
        room = self._rooms.get()
        # A picture may be larger than the beginning of its file told.
        out = room[: prod(shape)].reshape(shape) if prod(shape) <= room.size else None
        try:
            return self.run(to_model_input(letterboxed, contract, out))
        finally:
            self._rooms.put(room)

    def run(self, inputs: NDArray[np.generic]) -> Inferred:
        """Run an input tensor, batch by batch.

        Args:
            inputs: An array of `backend.contract.shape(n)` and dtype.

        Raises:
            UserError: a batch does not fit the device's memory.
        """
        size = self._spec.batch
        batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        with (
            self._streams,
            self.activity.doing("inferring"),
            memory_as_user_error(size),
            self._one_more_active(),
        ):
            outputs, seconds = self._timed(batches)
        self._count(batches, seconds)
        is_finite = [finite_pictures(one) for one in outputs] or [np.empty(0, np.bool_)]
        return Inferred(
            outputs,
            np.concatenate(is_finite),
            "the model's outputs hold NaN or infinite values",
        )

    def _timed(self, batches: Sequence[NDArray[np.generic]]) -> tuple[list[Outputs], list[float]]:
        """The batches' outputs, and the host-visible seconds of each.

        Batches that a backend overlaps share their time in equal parts.
        """
        together = 1 if self.backend.capabilities.group == 1 else max(1, len(batches))
        outputs: list[Outputs] = []
        seconds: list[float] = []
        for first in range(0, len(batches), together):
            group = batches[first : first + together]
            start = time.perf_counter()
            outputs += self.backend.infer_many(group)
            seconds += [(time.perf_counter() - start) / len(group)] * len(group)
        return outputs, seconds

    @contextlib.contextmanager
    def _one_more_active(self) -> Iterator[None]:
        """Count the time of the streams that have nothing to infer, while this one has."""
        self._change_active(1)
        try:
            yield
        finally:
            self._change_active(-1)

    def _change_active(self, change: int) -> None:
        with self._lock:
            now, streams = time.perf_counter(), self.backend.streams
            idle = (streams - self._active) / streams
            self._report.starved_seconds += idle * (now - (self._since or now))
            self._active += change
            self._since = now

    def _count(self, batches: Sequence[NDArray[np.generic]], seconds: Sequence[float]) -> None:
        size, is_padded = self._spec.batch, self.backend.capabilities.has_fixed_batch
        pictures = sum(map(len, batches))
        with self._lock:
            self._report.pictures += pictures
            self._report.busy_seconds += sum(seconds) / self.backend.streams
            is_first = self._cold > 0 and pictures >= size
            self._cold -= is_first
            # The time of a part of a batch counts only if the part costs as much as the whole.
            self._report.batch_ms += [
                1000 * each
                for batch, each in zip(batches, seconds, strict=True)
                if not is_first and (is_padded or len(batch) == size)
            ]

    def report(self) -> DeviceReport:
        """What the model has done so far, and the peak memory of the process."""
        with self._lock:
            self._report.device_ms += self.backend.device_times_ms()
            self._report.peak_memory = peak_memory()
            self._report.runs_on = self.backend.runs_on
            self._report.activity = self.activity.record()
            return self._report

    def forget(self) -> None:
        """Begin a new report: the batches until now only warmed the device up."""
        with self._lock:
            self._cold = 0
            self._report, self._since = DeviceReport(), None
            self.activity.forget()
            self.backend.device_times_ms()

    def close(self) -> None:
        """Unload the model."""
        self.backend.close()
