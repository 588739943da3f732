"""A device actor that runs its model over and over on one input: no pictures, nothing kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist import backends
from cfdist.backends.base import Backend, DeviceSettings
from cfdist.distributed.cluster import DevicePlan, user_error
from cfdist.distributed.device_pool import DevicePool
from cfdist.distributed.memory import memory_as_user_error
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract, to_model_input


@dataclass(frozen=True)
class LoopReport:
    """What a device did in its loops.

    Attributes:
        ends: One (loops,) float64 array a slot: when each batch ended, seconds since the slot
            began.
        device_ms: The device's own time of each batch, milliseconds, where it tells.
    """

    ends: tuple[NDArray[np.float64], ...]
    device_ms: tuple[float, ...]

    @property
    def batch_ms(self) -> NDArray[np.float64]:
        """(slots * loops,) host-visible time of each batch, milliseconds.

        With several slots, what a batch takes while the others run beside it: longer than it would
        take alone.
        """
        return np.concatenate([np.diff(ends, prepend=0.0) for ends in self.ends]) * 1000


class LoopingDevice:
    """A model on a device, for a `DevicePool`."""

    def __init__(self, backend: str, spec: ModelSpec, settings: DeviceSettings, kind: str) -> None:
        """Remember what to load; `warm_up` loads it, so that its errors reach the driver.

        Args:
            backend: A resolved backend.
            spec: The model.
            settings: For the backend.
            kind: What the model is given, see `model_input`.
        """
        self._load = (backend, spec, settings)
        self._kind = kind

    def warm_up(self, chunk: int, buffers: int, reducer=None) -> None:
        """Load the model and run each slot twice, as the loops will.

        ONNX Runtime lays out its memory in the first run and takes it in the second, which on 2
        cores takes three times as long as a later one.

        Raises:
            UserError: the model does not fit the device.
        """
        batch = self._load[1].batch
        with memory_as_user_error(batch):
            self._backend = backends.create(*self._load)
            self._inputs = model_input(self._kind, self._backend.contract, batch)
            for _ in range(2):
                self.process(self._backend.capabilities.group)

    def process(self, loops: int) -> LoopReport:
        """`run_loops` of the loaded model."""
        self._report = run_loops(self._backend, self._inputs, loops)
        return self._report

    def report(self) -> LoopReport:
        """What `process` gave last."""
        return self._report

    def close(self) -> None:
        """Give the device back."""
        self._backend.close()


def model_input(kind: str, contract: InputContract, batch: int) -> NDArray:
    """One batch of a model's input.

    Args:
        kind: "zeros", as `ais_bench` without input gives, or "random": pictures of noise, the same
            in every run.
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


def run_loops(backend: Backend, inputs: NDArray, loops: int) -> LoopReport:
    """Infer the same batch again and again, every slot of the backend at once.

    Args:
        backend: A loaded model.
        inputs: A batch.
        loops: Batches in each slot; they are handed over in groups (`Capabilities.group`), and
            each then counts as the group's time divided by its batches.
    """
    together = threading.Barrier(backend.streams)

    def run_slot(_: int) -> NDArray[np.float64]:
        together.wait()
        return _batch_ends(backend, inputs, loops)

    backend.device_times_ms()  # what ran before is forgotten
    with ThreadPoolExecutor(backend.streams) as pool:
        ends = tuple(pool.map(run_slot, range(backend.streams)))
    return LoopReport(ends, tuple(backend.device_times_ms()))


def _batch_ends(backend: Backend, inputs: NDArray, loops: int) -> NDArray[np.float64]:
    ends = np.empty(loops)
    start = time.perf_counter()
    previous = 0.0
    for first in range(0, loops, backend.capabilities.group):
        count = min(backend.capabilities.group, loops - first)
        backend.infer_many([inputs] * count)
        now = time.perf_counter() - start
        ends[first : first + count] = np.linspace(previous, now, count + 1)[1:]
        previous = now
    return ends


def common_rates(devices: Sequence[LoopReport], batch: int) -> list[float]:
    """Pictures a second of each device while all of them were running.

    The time counts from the beginning to the first slot's last batch: what a slower device does
    alone after that, with the machine to itself, does not. A batch that was under way then counts
    in part.

    Args:
        devices: What each device did; all began at the same time.
        batch: Pictures a batch.
    """
    until = min(ends[-1] for report in devices for ends in report.ends)
    return [
        sum(_batches_until(ends, until) for ends in report.ends) * batch / until
        for report in devices
    ]


def _batches_until(ends: NDArray[np.float64], until: float) -> float:
    return float(np.interp(until, np.concatenate([[0.0], ends]), np.arange(len(ends) + 1)))


def loop_devices(
    *,
    backend: str,
    spec: ModelSpec,
    options: dict[str, Any],
    plan: DevicePlan,
    kind: str,
    loops: int,
) -> dict[str, LoopReport]:
    """Run the loops on all devices at once, once every one is warm.

    Args:
        backend: A resolved backend.
        spec: The model.
        options: The backend's options.
        plan: The devices.
        kind: What the model is given, see `model_input`.
        loops: Batches in each slot.

    Returns:
        Device name -> what it did.

    Raises:
        UserError: the model does not fit a device.
        Exception: what else a device ran into.
    """
    import ray

    settings = DeviceSettings(plan.threads, plan.slots, options=options)
    pool = DevicePool(plan, LoopingDevice, (backend, spec, settings, kind), spec.batch)
    try:
        pool.start()
        names = list(pool.actors)
        reports = ray.get([pool.actors[name].process.remote(loops) for name in names])
        pool.close()
        pool.release()
    except ray.exceptions.RayError as error:
        raise user_error(error) from None
    finally:
        pool.kill()
    return dict(zip(names, reports, strict=True))
