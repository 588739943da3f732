"""One actor per device that turns bins into dumps: files in, files out."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist import backends
from cfdist.backends.base import DeviceSettings
from cfdist.decode import HeadMaps
from cfdist.distributed.chunks import Work
from cfdist.distributed.cluster import DevicePlan
from cfdist.distributed.device import DeviceReport
from cfdist.distributed.device_pool import DevicePool
from cfdist.distributed.file_steps import Failures
from cfdist.distributed.memory import memory_as_user_error
from cfdist.distributed.run import MAX_ROUNDS
from cfdist.dumps import bin_contract, read_bin_into, stem_of, write_dump
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract, to_letterboxed, to_model_input
from cfdist.widerface.manifest import WorkItem


@dataclass(frozen=True)
class DumpReport:
    """What one `process` call did.

    Attributes:
        done: Names of the bins whose outputs are on the disk.
        failures: (name, reason) of bins that could not be used.
    """

    done: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]


class DumpDevice:
    """A model on a device, for a `DevicePool`; work items are bins.

    `process` is called by several threads at once: while one batch is on the device, others are
    read and written.
    """

    def __init__(
        self, backend: str, spec: ModelSpec, settings: DeviceSettings, form: str, folder: Path
    ) -> None:
        """Remember what to load; `warm_up` loads it, so that its errors reach the driver.

        Args:
            backend: A resolved backend.
            spec: The model.
            settings: For the backend.
            form: Of the bins, of `cfdist.dumps.FORMS`.
            folder: For the dumps; it is there.
        """
        self._load = (backend, spec, settings)
        self._spec = spec
        self._form = form
        self._folder = folder
        self._buffers: queue.SimpleQueue[NDArray] = queue.SimpleQueue()
        self._report = DeviceReport()
        self._report_lock = threading.Lock()

    def warm_up(self, chunk: int, buffers: int, reducer=None) -> None:
        """Load the model, hold its input and outputs to the files', run each slot once.

        Raises:
            UserError: the model does not fit the device, does not take what the bins hold, or gives
                no head maps.
        """
        with memory_as_user_error(self._spec.batch):
            self._warm_up(buffers)

    def _warm_up(self, buffers: int) -> None:
        self._backend = backends.create(*self._load)
        self._slots = threading.BoundedSemaphore(self._backend.streams)
        held = bin_contract(self._spec, self._form)
        self._read: Callable[[str, NDArray], None] = read_bin_into
        if held.dtype == "float32" and self._backend.contract.dtype == "uint8":
            # What the bins were made of: then the model, which normalises itself, computes just
            # what it does without files in between.
            self._read = functools.partial(_read_floats_into, held)
            held = bin_contract(self._spec, "u8")
        self._holds_warped = held.is_letterboxed_bytes
        for _ in range(buffers):
            self._buffers.put(np.zeros(held.shape(self._spec.batch), held.dtype))
        zeros = np.zeros(held.shape(self._spec.batch), held.dtype)
        with ThreadPoolExecutor(self._backend.streams) as pool:
            results = list(pool.map(self._infer, [zeros] * self._backend.streams))
        if not isinstance(results[0], HeadMaps):
            raise UserError(
                f"model {self._spec.path}: its graph picks the peaks itself, and job=infer writes "
                "head maps; export it without export.peaks, or use job=evaluate"
            )
        self._report = DeviceReport()
        self._backend.device_times_ms()  # the warm-up's are forgotten

    def process(self, items: Sequence[WorkItem]) -> DumpReport:
        """Infer the bins, batch by batch, and write their outputs.

        Raises:
            UserError: the disk does not take them.
        """
        done: list[str] = []
        failures: Failures = []
        buffer = self._buffers.get()
        try:
            for start in range(0, len(items), self._spec.batch):
                batch = items[start : start + self._spec.batch]
                read = _read_batch(batch, buffer, failures, self._read)
                if not read:
                    continue
                heads = self._infer(buffer)
                for i, item in enumerate(read):
                    write_dump(self._folder, stem_of(Path(item.path).name), heads, i)
                done += [item.id for item in read]
                with self._report_lock:
                    self._report.pictures += len(read)
        finally:
            self._buffers.put(buffer)
        return DumpReport(tuple(done), tuple(failures))

    def _infer(self, batch: NDArray) -> HeadMaps:
        """Head maps of a whole batch of what the bins hold."""
        inputs = batch
        if self._holds_warped:
            inputs = to_model_input(batch, self._backend.contract)
        with self._slots:
            start = time.perf_counter()
            heads = self._backend.infer(inputs)
            seconds = time.perf_counter() - start
        with self._report_lock:
            self._report.busy_seconds += seconds / self._backend.streams
            self._report.batch_ms.append(seconds * 1000)
        return heads

    def report(self) -> DeviceReport:
        """What the device has done so far."""
        with self._report_lock:
            self._report.device_ms += self._backend.device_times_ms()
            return self._report

    def close(self) -> None:
        """Give the device back."""
        self._backend.close()


def infer_bins(
    items: Sequence[WorkItem],
    *,
    backend: str,
    spec: ModelSpec,
    options: dict[str, Any],
    plan: DevicePlan,
    form: str,
    folder: Path,
    on_ready: Callable[[int], None],
    on_done: Callable[[DumpReport], None],
) -> tuple[dict[str, DeviceReport], Failures]:
    """Run bins through the devices until the outputs of each are on the disk.

    Batches are made of the bins in their order, whichever device takes them.

    Args:
        items: The bins; ids are their names in messages.
        backend: A resolved backend.
        spec: The model.
        options: The backend's options.
        plan: The devices.
        form: Of the bins, of `cfdist.dumps.FORMS`.
        folder: For the dumps; it is there, for all devices.
        on_ready: Called with 0 once the devices are warm.
        on_done: Called for each chunk that is on disk.

    Returns:
        Each device's report, and (id, reason) of bins that could not be used.

    Raises:
        UserError: the model does not fit the bins, or the disk is full.
        Exception: what the devices ran into, when a round brought nothing forward.
    """
    settings = DeviceSettings(plan.threads, plan.slots, options=options)
    pool = DevicePool(
        plan,
        DumpDevice,
        (backend, spec, settings, form, folder),
        spec.batch,
    )
    left = {item.id: item for item in items}
    failures: Failures = []

    def take_in(_: str, report: DumpReport) -> None:
        failures.extend(report.failures)
        for id in (*report.done, *(id for id, _ in report.failures)):
            del left[id]
        on_done(report)

    try:
        pool.start()
        on_ready(0)
        for round_number in range(1, MAX_ROUNDS + 1):
            before = len(left)
            problems = pool.run_round(Work(list(left.values())), take_in)
            if not left:
                break
            if len(left) == before or round_number == MAX_ROUNDS:
                raise problems[0]
            pool.start()
        pool.close()
    finally:
        pool.kill()
    return pool.reports, failures


def _read_floats_into(contract: InputContract, path: str, row: NDArray[np.uint8]) -> None:
    """Read a float32 bin, and put the picture that it was made of into its place in a batch."""
    floats = np.empty(contract.shape(1), np.float32)
    read_bin_into(path, floats[0])
    row[:] = to_letterboxed(floats, contract)[0]


def _read_batch(
    items: Sequence[WorkItem],
    buffer: NDArray,
    failures: Failures,
    read_into: Callable[[str, NDArray], None],
) -> list[WorkItem]:
    """Read bins into the first rows of a batch.

    The rest is filled up with the first, as ais_bench does.

    Returns:
        The items that were read; the others are added to `failures`.
    """
    read: list[WorkItem] = []
    for item in items:
        try:
            read_into(item.path, buffer[len(read)])
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            failures.append((item.id, f"{item.path}: {reason}; run job=preprocess again"))
        else:
            read.append(item)
    buffer[len(read) :] = buffer[0]
    return read
