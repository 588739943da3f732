"""A model run over and over on one input: the loops of one device, and the rates of several."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist.backends.base import Backend
from cfdist.preprocess import InputContract, to_model_input


@dataclass(frozen=True)
class LoopReport:
    """What a device did in its loops.

    Attributes:
        ends: One (loops,) float64 array a stream: when each batch ended, seconds since the stream
            began.
        device_ms: The device's own time of each batch, milliseconds, if it measures one.
    """

    ends: tuple[NDArray[np.float64], ...]
    device_ms: tuple[float, ...]

    @property
    def batch_ms(self) -> NDArray[np.float64]:
        """(streams * loops,) float64: host-visible time of each batch, milliseconds.

        With several streams a batch takes longer than it would take alone, because the others run
        beside it.
        """
        return np.concatenate([np.diff(ends, prepend=0.0) for ends in self.ends]) * 1000


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


def run_loops(backend: Backend, inputs: NDArray[Any], loops: int) -> LoopReport:
    """Infer the same batch again and again, in every stream of the backend at once.

    Args:
        backend: A loaded model.
        inputs: A batch.
        loops: Batches in each stream. They are handed over in groups (`Capabilities.group`), and
            each then counts as the group's time divided by its batches.
    """
    together = threading.Barrier(backend.streams)

    def run_stream(_: int) -> NDArray[np.float64]:
        together.wait()
        return _batch_ends(backend, inputs, loops)

    backend.device_times_ms()  # forgets those of earlier batches
    with ThreadPoolExecutor(backend.streams) as pool:
        ends = tuple(pool.map(run_stream, range(backend.streams)))
    return LoopReport(ends, tuple(backend.device_times_ms()))


def _batch_ends(backend: Backend, inputs: NDArray[Any], loops: int) -> NDArray[np.float64]:
    ends = np.empty(loops)
    group = backend.capabilities.group
    start = time.perf_counter()
    previous = 0.0
    for first in range(0, loops, group):
        count = min(group, loops - first)
        backend.infer_many([inputs] * count)
        now = time.perf_counter() - start
        ends[first : first + count] = np.linspace(previous, now, count + 1)[1:]
        previous = now
    return ends


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
    return [
        sum(_batches_until(ends, until) for ends in report.ends) * batch / until
        for report in devices
    ]


def _batches_until(ends: NDArray[np.float64], until: float) -> float:
    return float(np.interp(until, np.concatenate([[0.0], ends]), np.arange(len(ends) + 1)))
