"""The device of `job=infer`: files of input tensors in, files of raw outputs out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.decode import HeadMaps
from cfdist.devices.base import ChunkReport, DeviceReport
from cfdist.devices.memory import memory_as_user_error
from cfdist.devices.runner import Runner
from cfdist.distributed.events import Events
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.pool import DevicePool
from cfdist.distributed.rounds import run_rounds
from cfdist.distributed.work import item_work
from cfdist.errors import UserError
from cfdist.monitoring.monitor import Monitor
from cfdist.preprocess import UNREADABLE, InputContract, to_letterboxed
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.files import Failures, input_contract, output_names, read_raw_into, write_raw


@dataclass
class FileDevice:
    """Reads input tensors, infers, writes raw outputs; keeps the `Device` protocol.

    Attributes:
        model: The model and its backend.
        settings: The device's.
        contract: What each input tensor holds.
        folder: Where the raw outputs go; the folder exists.
    """

    model: BackendModel
    settings: DeviceSettings
    contract: InputContract
    folder: Path

    def warm_up(self) -> None:
        """See `Device.warm_up`.

        Raises:
            UserError: the model does not fit the device, does not take what the files hold, or
                gives no head maps.
        """
        spec = self.model.spec
        self._rows = spec.batch * self.model.capabilities.group
        self._runner = Runner(self.model, replace(self.settings, needs_heads=True), self._rows)
        streams, held = self._runner.backend.streams, self.contract
        if held.dtype == "float32" and self._runner.backend.contract.dtype == "uint8":
            # A model that normalises gets the pictures' bytes, as it does without files.
            held = input_contract(spec, "u8")
        self._infer = self._runner.infer if held.is_letterboxed_bytes else self._runner.run
        self._buffers: queue.SimpleQueue[NDArray[Any]] = queue.SimpleQueue()
        with memory_as_user_error(spec.batch):
            for _ in range(streams + 1):  # one is read while the others are inferred
                self._buffers.put(np.zeros(held.shape(self._rows), held.dtype))
        # Whole batches, so that every batch of the run is measured, however few there are.
        zeros = np.zeros(held.shape(spec.batch), held.dtype)
        with ThreadPoolExecutor(streams) as pool:
            first, *_ = pool.map(self._infer, [zeros] * streams)
        if not isinstance(first.outputs[0], HeadMaps):
            raise UserError(
                f"model {spec.path}: its graph picks the peaks itself, and job=infer writes head "
                "maps; export it without export.peaks, or use job=evaluate"
            )
        self._runner.forget()
        self._lock = threading.Lock()
        self._pictures = 0

    def process(self, chunk: Sequence[WorkItem]) -> ChunkReport:
        """Infer input tensors and write the raw outputs, whole batches at a time.

        Raises:
            UserError: the disk does not take a raw output.
        """
        size = self.model.spec.batch
        done: list[str] = []
        failures: Failures = []
        doubtful: Failures = []
        for start in range(0, len(chunk), self._rows):
            buffer = self._buffers.get()
            try:
                with self._runner.activity.doing("reading"):
                    rows = chunk[start : start + self._rows]
                read = self._read(rows, buffer, failures, doubtful)
                # Padded with the first, as ais_bench does, so that every batch takes the same time.
                whole = -(-len(read) // size) * size
                buffer[len(read) : whole] = buffer[0]
                inferred = self._infer(buffer[:whole])
            finally:
                self._buffers.put(buffer)
            with self._lock:
                self._pictures += len(read)
            for i, item in enumerate(read):
                heads = inferred.outputs[i // size]
                assert isinstance(heads, HeadMaps)
                if inferred.is_finite[i]:
                    for name, maps in zip(output_names(item.id), heads, strict=True):
                        write_raw(self.folder / name, maps[i % size])
                    done.append(item.id)
                else:
                    doubtful.append((item.id, inferred.error))
        return ChunkReport(tuple(done), tuple(failures), tuple(doubtful))

    def _read(
        self,
        items: Sequence[WorkItem],
        buffer: NDArray[Any],
        failures: Failures,
        unread: Failures,
    ) -> list[WorkItem]:
        """Read input tensors into the first rows of a buffer.

        Returns:
            The items that were read; those whose files another host may see are added to `unread`,
            the others to `failures`.
        """
        read: list[WorkItem] = []
        for item in items:
            row = buffer[len(read)]
            try:
                if row.dtype == self.contract.dtype:
                    read_raw_into(item.path, row)
                else:
                    floats = np.empty(self.contract.shape(1), np.float32)
                    read_raw_into(item.path, floats)
                    row[:] = to_letterboxed(floats, self.contract)[0]
            except OSError as error:
                unread.append((item.id, f"{UNREADABLE}{item.path}: {error.strerror or error}"))
            except ValueError as error:
                failures.append((item.id, f"{item.path}: {error}; run job=preprocess again"))
            else:
                read.append(item)
        return read

    def report(self) -> DeviceReport:
        """See `Device.report`; padding does not count as pictures."""
        return replace(self._runner.report(), pictures=self._pictures)

    def close(self) -> None:
        """See `Device.close`."""
        self._runner.close()


@dataclass(frozen=True)
class InferenceTask:
    """What there is to infer.

    Attributes:
        items: The files of the input tensors; their ids are their stems.
        contract: What each input tensor holds.
        model: What the devices run.
        plan: The devices.
        folder: Where all devices write raw outputs; the folder exists.
    """

    items: Sequence[WorkItem]
    contract: InputContract
    model: BackendModel
    plan: DevicePlan
    folder: Path


def infer_files(
    task: InferenceTask,
    on_ready: Callable[[], None],
    monitor: Monitor,
) -> tuple[dict[str, DeviceReport], Failures, Events]:
    """Run input tensors through the devices until the raw output of each is on the disk.

    Args:
        task: What there is to infer.
        on_ready: Called once the devices are warm.
        monitor: Learns of each chunk that is on the disk, and of the devices.

    Returns:
        Each device's report, (id, reason) of the input tensors that failed, and what happened to
        the devices.

    Raises:
        UserError: the model does not fit the input tensors, or the disk is full.
        StoppedError: no device is left, or an input tensor failed with on_error=fail.
    """
    model = task.model
    failures: Failures = []

    def give_up(given_up: dict[str, str]) -> None:
        take_in("", ChunkReport((), tuple(given_up.items())))

    def take_in(_: str, report: ChunkReport) -> tuple[str, ...]:
        failures.extend(report.failures)
        return report.keys

    with DevicePool[ChunkReport](
        task.plan,
        lambda settings: FileDevice(model, settings, task.contract, task.folder),
        model.spec.batch,
        model.capabilities.group,
    ) as pool:
        pool.monitor = monitor
        run_rounds(pool, task.items, item_work, on_ready, take_in, give_up)
        pool.close()
    return pool.reports, failures, pool.events
