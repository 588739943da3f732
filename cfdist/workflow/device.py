"""The device of `job=infer`: files of input tensors in, files of raw outputs out."""

from __future__ import annotations

import functools
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
from cfdist.devices.runner import Inferred, Runner
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.pool import DevicePool
from cfdist.distributed.rounds import run_rounds
from cfdist.distributed.work import item_work
from cfdist.errors import UserError
from cfdist.preprocess import InputContract, to_letterboxed
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.files import Failures, input_contract, read_raw_into, stem_of, write_output


class FileDevice:
    """Reads input tensors, infers, writes raw outputs; keeps the `Device` protocol."""

    def __init__(
        self, model: BackendModel, settings: DeviceSettings, form: str, folder: Path
    ) -> None:
        """Remember what to load.

        Args:
            model: The model and its backend.
            settings: The device's.
            form: Of the input tensors, one of `cfdist.workflow.files.FORMS`.
            folder: For the raw outputs; it is there.
        """
        self._model = model
        self._settings = settings
        self._form = form
        self._folder = folder

    def warm_up(self) -> None:
        """See `Device.warm_up`.

        Raises:
            UserError: the model does not fit the device, does not take what the files hold, or
                gives no head maps.
        """
        spec = self._model.spec
        self._rows = spec.batch * self._model.capabilities.group
        self._runner = Runner(self._model, self._settings, self._rows)
        streams = self._runner.backend.streams
        held = input_contract(spec, self._form)
        self._read: Callable[[str, NDArray[Any]], None] = read_raw_into
        if held.dtype == "float32" and self._runner.backend.contract.dtype == "uint8":
            # The model normalises: the pictures' bytes give what they give without files.
            self._read = functools.partial(_read_picture_into, held)
            held = input_contract(spec, "u8")
        self._infer: Callable[[NDArray[Any]], Inferred] = self._runner.run
        if held.is_letterboxed_bytes:
            self._infer = self._runner.infer
        self._runner.warm_up()
        self._buffers: queue.SimpleQueue[NDArray[Any]] = queue.SimpleQueue()
        with memory_as_user_error(spec.batch):
            for _ in range(streams + 1):  # one is read while the others are inferred
                self._buffers.put(np.zeros(held.shape(self._rows), held.dtype))
        # Whole batches, so that every batch of the run is measured, however few there are.
        zeros = np.zeros(held.shape(spec.batch), held.dtype)
        with ThreadPoolExecutor(streams) as pool:
            first, *_ = pool.map(self._infer, [zeros] * streams)
        _head_maps(first, self._model)
        self._runner.forget()
        self._padding = 0
        self._lock = threading.Lock()

    def process(self, chunk: Sequence[WorkItem]) -> ChunkReport:
        """Infer input tensors and write the raw outputs, whole batches at a time.

        Raises:
            UserError: the disk does not take them.
        """
        done: list[str] = []
        failures: Failures = []
        for start in range(0, len(chunk), self._rows):
            buffer = self._buffers.get()
            try:
                read = self._read_batches(chunk[start : start + self._rows], buffer, failures)
                inferred = self._infer(self._padded(buffer, len(read)))
            finally:
                self._buffers.put(buffer)
            heads = _head_maps(inferred, self._model)
            for i, item in enumerate(read):
                if inferred.is_finite[i]:
                    batch, index = divmod(i, self._model.spec.batch)
                    stem = stem_of(Path(item.path).name)
                    write_output(self._folder, stem, heads[batch], index)
                    done.append(item.id)
                else:
                    failures.append((item.id, inferred.error))
        return ChunkReport(tuple(done), tuple(failures))

    def _read_batches(
        self, items: Sequence[WorkItem], buffer: NDArray[Any], failures: Failures
    ) -> list[WorkItem]:
        """Read input tensors into the first rows of a buffer.

        Returns:
            The items that were read; the others are added to `failures`.
        """
        read: list[WorkItem] = []
        for item in items:
            try:
                self._read(item.path, buffer[len(read)])
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                failures.append((item.id, f"{item.path}: {reason}; run job=preprocess again"))
            else:
                read.append(item)
        return read

    def _padded(self, buffer: NDArray[Any], count: int) -> NDArray[Any]:
        """The first rows of a buffer as whole batches, filled up with the first as ais_bench does.

        So the time of every batch is that of a whole one.
        """
        padding = -count % self._model.spec.batch
        buffer[count : count + padding] = buffer[0]
        with self._lock:
            self._padding += padding
        return buffer[: count + padding]

    def report(self) -> DeviceReport:
        """See `Device.report`."""
        report = self._runner.report()
        return replace(report, pictures=report.pictures - self._padding)

    def close(self) -> None:
        """See `Device.close`."""
        self._runner.close()


def _read_picture_into(contract: InputContract, path: str, row: NDArray[np.uint8]) -> None:
    """Read a float32 input tensor, and put the picture that it was made of into a batch.

    Raises:
        ValueError: the file holds something else.
        OSError: the file cannot be read.
    """
    floats = np.empty(contract.shape(1), np.float32)
    read_raw_into(path, floats[0])
    row[:] = to_letterboxed(floats, contract)[0]


def _head_maps(inferred: Inferred, model: BackendModel) -> list[HeadMaps]:
    """The outputs of each batch.

    Raises:
        UserError: they are peaks.
    """
    heads = [outputs for outputs in inferred.outputs if isinstance(outputs, HeadMaps)]
    if len(heads) < len(inferred.outputs):
        raise UserError(
            f"model {model.spec.path}: its graph picks the peaks itself, and job=infer writes "
            "head maps; export it without export.peaks, or use job=evaluate"
        )
    return heads


@dataclass(frozen=True)
class InferenceTask:
    """What there is to infer.

    Attributes:
        items: The files of the input tensors; ids are their names in messages.
        form: What they hold, one of `cfdist.workflow.files.FORMS`.
        model: What the devices run.
        plan: The devices.
        folder: For the raw outputs; it is there, for all devices.
    """

    items: Sequence[WorkItem]
    form: str
    model: BackendModel
    plan: DevicePlan
    folder: Path


def infer_files(
    task: InferenceTask,
    on_ready: Callable[[], None],
    on_done: Callable[[ChunkReport], None],
) -> tuple[dict[str, DeviceReport], Failures]:
    """Run input tensors through the devices until the raw output of each is on the disk.

    Args:
        task: What there is to infer.
        on_ready: Called once the devices are warm.
        on_done: Called for each chunk that is on the disk.

    Returns:
        Each device's report, and (id, reason) of the input tensors that failed.

    Raises:
        UserError: the model does not fit the input tensors, or the disk is full.
        Exception: what the devices ran into, when a round brought nothing forward.
    """
    model = task.model
    failures: Failures = []

    def make_device(settings: DeviceSettings) -> FileDevice:
        return FileDevice(model, settings, task.form, task.folder)

    def take_in(_: str, report: ChunkReport) -> tuple[str, ...]:
        failures.extend(report.failures)
        on_done(report)
        return report.keys

    with DevicePool[ChunkReport](
        task.plan, make_device, model.spec.batch, model.capabilities.group
    ) as pool:
        run_rounds(pool, task.items, item_work, on_ready, take_in)
        pool.close()
    return pool.reports, failures
