"""The inference part: devices that run their model over and over on one input."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist.backends.base import Backend, DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.devices.base import DeviceReport, MakeDevice, device_name
from cfdist.devices.memory import memory_as_user_error
from cfdist.distributed.failures import user_error
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.pool import DevicePool
from cfdist.errors import ExitCode, StoppedError
from cfdist.machine import peak_memory
from cfdist.preprocess import InputContract, to_model_input
from cfdist.throughput.sampling import Ends, Sample

_TAKEN_EVERY = 4096  # batches: a backend keeps the times of all until they are taken


@dataclass(frozen=True)
class LoopReport:
    """What a device did in its loops.

    Attributes:
        ends: For each stream (n,) float64: when batches ended, seconds since the stream began; of
            very many those of a part, see `Ends`.
        counts: For each stream (n,) int64: how many had ended then.
        batch_ms: (n,) float64: host-visible time of the batches of all streams, milliseconds; of
            very many those of a part, see `Sample`. With several streams a batch takes longer than
            it would take alone, because the others run beside it.
        device_ms: The same of the device's own time, if it measures one.
        runs_on: What the backend computes on, see `Backend.runs_on`.
    """

    ends: Sequence[NDArray[np.float64]]
    counts: Sequence[NDArray[np.int64]]
    batch_ms: NDArray[np.float64]
    device_ms: tuple[float, ...]
    runs_on: str

    @property
    def batches(self) -> int:
        """How many batches all streams have done."""
        return sum(int(counts[-1]) for counts in self.counts)

    def done(self, until: float) -> float:
        """How many batches were done at a time; the one that was under way counts in part."""
        streams = zip(self.ends, self.counts, strict=True)
        return float(sum(np.interp(until, [0, *ends], [0, *counts]) for ends, counts in streams))


class LoopingDevice:
    """Runs loops; a `SteppingDevice`. A chunk is a number of loops."""

    def __init__(
        self, model: BackendModel, settings: DeviceSettings, kind: str, min_seconds: float = 0
    ) -> None:
        """Remember what to load, the kind of its input, see `model_input`, and the least time."""
        self._model = model
        self._min_seconds = min_seconds
        self._settings = settings
        self._kind = kind
        self.steps = 0

    def warm_up(self) -> None:
        """Load the model and run each stream twice, as the loops will.

        ONNX Runtime lays out its memory in the first run and takes it in the second, which on 2
        cores takes three times as long as a later one.

        Raises:
            UserError: the model does not fit the device.
        """
        batch = self._model.spec.batch
        with memory_as_user_error(batch):
            self._backend = self._model.load(self._settings)
            self._inputs = model_input(self._kind, self._backend.contract, batch)
            for _ in range(2):
                run_loops(self._backend, self._inputs, self._backend.capabilities.group)

    def process(self, chunk: int) -> LoopReport:
        """Run at least this many batches in each stream."""

        def note(batches: int) -> None:
            self.steps += batches

        self._loops = run_loops(self._backend, self._inputs, chunk, self._min_seconds, note)
        return self._loops

    def report(self) -> DeviceReport:
        """See `Device.report`; what the last loops did."""
        loops = self._loops
        return DeviceReport(
            pictures=loops.batches * self._model.spec.batch,
            busy_seconds=float(sum(ends[-1] for ends in loops.ends)) / self._backend.streams,
            batch_ms=loops.batch_ms.tolist(),
            device_ms=list(loops.device_ms),
            peak_memory=peak_memory(),
        )

    def close(self) -> None:
        """See `Device.close`."""
        self._backend.close()


def model_input(kind: str, contract: InputContract, batch: int) -> NDArray[Any]:
    """One batch of a model's input.

    Args:
        kind: "zeros", which `ais_bench` takes if it is given no input, or "random": pictures of
            noise, the same in every run.
        contract: What the model takes.
        batch: Pictures.

    Returns:
        C-contiguous array of `contract.shape(batch)` and dtype.
    """
    if kind == "zeros":
        return np.zeros(contract.shape(batch), contract.dtype)
    shape = (batch, contract.height, contract.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return to_model_input(noise, contract)


def run_loops(
    backend: Backend,
    inputs: NDArray[Any],
    loops: int,
    min_seconds: float = 0,
    note: Callable[[int], None] = lambda batches: None,
) -> LoopReport:
    """Infer the same batch again and again, in every stream of the backend at once.

    Args:
        backend: A loaded model.
        inputs: A batch.
        loops: Batches in each stream, at least. They are handed over in groups
            (`Capabilities.group`), and each then counts as the group's time divided by its batches.
        min_seconds: How long each stream goes on at least.
        note: Called by each stream with the batches that it has done since it last called.
    """
    group = backend.capabilities.group
    together = threading.Barrier(backend.streams)
    own_times, lock = Sample(), threading.Lock()

    def take_own_times() -> None:
        with lock:
            for milliseconds in backend.device_times_ms():
                own_times.add(milliseconds)

    def run_stream(_: int) -> tuple[Ends, Sample]:
        together.wait()
        start, now = time.perf_counter(), 0.0
        ends, times = Ends(), Sample()
        while ends.count < loops or now < min_seconds:
            count = min(group, loops - ends.count) if ends.count < loops else group
            backend.infer_many([inputs] * count)
            previous, now = now, time.perf_counter() - start
            each = (now - previous) / count
            for number in range(1, count + 1):
                ends.add(previous + number * each)
                times.add(1000 * each)
            note(count)
            if ends.count % _TAKEN_EVERY < count:
                take_own_times()
        return ends, times

    backend.device_times_ms()  # forgets those of earlier batches
    with ThreadPoolExecutor(backend.streams) as pool:
        streams = list(pool.map(run_stream, range(backend.streams)))
    take_own_times()
    ends, counts = zip(*(one.kept() for one, _ in streams), strict=True)
    times = np.concatenate([one.rows()[:, 0] for _, one in streams])
    own = tuple(own_times.rows()[:, 0].tolist())
    return LoopReport(ends, counts, times, own, backend.runs_on)


def loop_devices(
    model: BackendModel, plan: DevicePlan, kind: str, loops: int, min_seconds: float = 0
) -> dict[str, LoopReport]:
    """Run the loops on all devices at once, as soon as all are warm.

    Args:
        model: The model and its backend.
        plan: The devices.
        kind: What the model is given, see `model_input`.
        loops: Batches in each stream, at least.
        min_seconds: How long each stream goes on at least.

    Returns:
        Device name -> what it did.

    Raises:
        UserError: the model does not fit a device.
        StoppedError: a device failed, or took too long.
    """
    return on_each_device(
        plan, lambda settings: LoopingDevice(model, settings, kind, min_seconds), model, loops
    )


def on_each_device(
    plan: DevicePlan,
    make_device: MakeDevice,
    model: BackendModel,
    chunk: Any,
) -> dict[str, Any]:
    """Have all devices do a chunk at once, as soon as all are warm.

    Args:
        plan: The devices.
        make_device: Makes one of them, a `SteppingDevice`.
        model: What they load.
        chunk: What each is to do.

    Returns:
        Device name -> what it gives back.

    Raises:
        UserError: the model does not fit a device.
        StoppedError: a device failed, or took too long.
    """
    import ray

    pool: DevicePool[Any] = DevicePool(plan, make_device, model.spec.batch)
    try:
        with pool:
            pool.start(waits_for_all=True)
            names = [device_name(number) for number in range(plan.count)]
            for name in names:
                if name not in pool.actors:
                    said = pool.words.get(name, "not ready")
                    text = f"{pool.label(name)} failed ({said}), and its rate would be missing"
                    raise StoppedError(text, ExitCode.INTERNAL)
            calls = {name: pool.actors[name].process_directly.remote(chunk) for name in names}
            reports = {name: pool.await_call(name, call) for name, call in calls.items()}
            pool.close()
    except ray.exceptions.RayError as error:
        raise user_error(error) from None
    return reports


def common_rates(devices: Sequence[LoopReport], batch: int) -> list[float]:
    """Pictures a second of each device while all of them were running.

    The time counts from the beginning to the first stream's last batch. A slower device has the
    machine to itself after that, so its later batches do not count; the batch that was under way
    counts in part.

    Args:
        devices: What each device did; all began at the same time.
        batch: Pictures a batch.
    """
    until = min(float(ends[-1]) for report in devices for ends in report.ends)
    return [report.done(until) * batch / until for report in devices]
