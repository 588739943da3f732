"""No model: a device that takes as long as a chip would and finds nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.decode import STRIDE, HeadMaps
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract

# Images a second of one chip by batch size, 800x800, pure inference: the table that the Ascend
# guide for CenterFace publishes (Ascend 310P3, CANN 6.0.RC1).
PUBLISHED_RATES = {
    "310P3": {1: 439.9085, 4: 412.4094, 8: 375.9275, 16: 369.6435, 32: 371.7701},
}
PUBLISHED_INPUT = (800, 800)  # rows and columns of that table's input

# What a broken chip may give: the heat map's value in up to three cells, and all box sizes.
FAULTS = {"nan": (np.nan, 0.0), "inf": (0.9, np.inf), "inf_scores": (np.inf, 0.0)}

# What loading takes at most, seconds, beside a few batches.
_LOADING_SECONDS, _FIRST_BATCHES = 20.0, 60


class SimulatedBackend(Backend):
    """Waits for each batch as long as a chip would, then returns head maps without a face.

    It says how many chips a host can feed. As a static OM does, it takes the same time for a part
    of a batch as for a whole one.

    Options: `latency_ms`, milliseconds a batch (0: instant), or `None` for those of `preset`, a
    key of `PUBLISHED_RATES`; `fault`, see `faulty_heads` and `break_down`; `fault_device`: the
    number of the only device that has it, `None`: all have; `fault_after`, the batches that the
    device does before; `fault_once`: a device that is started again does not have it.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        has_fixed_batch=True, is_simulated=True, takes_any_size=True
    )

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        self.contract = InputContract(spec.height, spec.width, spec.batch)
        self.streams = settings.streams
        self._seconds = batch_milliseconds(spec.batch, settings.options) / 1000
        options = settings.options
        is_faulty = options.get("fault_device") in (None, settings.number)
        is_faulty &= not (options.get("fault_once") and settings.starts)
        self._fault = options.get("fault") if is_faulty else None
        if self._fault is not None and self._fault.endswith("_opening"):
            break_down(self._fault.removesuffix("_opening"))
        # The first batch of each stream warms it up, and it does not break down there.
        self._sound = (0 if self._fault in FAULTS else self.streams) + (
            options.get("fault_after") or 0
        )
        self._heads = self._make_heads(spec.height, spec.width)
        self._times_ms: list[float] = []
        self._lock = threading.Lock()

    @classmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """See `Backend.check`; a latency or a preset has to be given."""
        batch_milliseconds(spec.batch, options)

    @classmethod
    def first_seconds(cls, batch: int, options: Mapping[str, Any]) -> float:
        """See `Backend.first_seconds`; a simulated device is there at once."""
        return _LOADING_SECONDS + _FIRST_BATCHES * batch_milliseconds(batch, options) / 1000

    def _make_heads(self, height: int, width: int) -> list[list[NDArray[np.float32]]]:
        """One picture's maps, seen as those of a whole batch: sound ones, and the device's own."""
        return [
            [
                np.broadcast_to(maps, (self.spec.batch, *maps.shape))
                for maps in faulty_heads(fault, height // STRIDE, width // STRIDE)
            ]
            for fault in (None, self._fault)
        ]

    def infer(self, inputs: NDArray[np.generic]) -> HeadMaps:
        """See `Backend.infer`; inputs are (n, H, W, 3) u8, BGR, and are not looked at."""
        start = time.perf_counter()
        if self._seconds:
            time.sleep(self._seconds)
        with self._lock:
            self._times_ms.append((time.perf_counter() - start) * 1000)
            self._sound -= 1
            is_sound = self._sound >= 0
        if not is_sound and self._fault is not None:
            break_down(self._fault)
        heads, size = self._heads, inputs.shape[1:3]
        if size != (self.spec.height, self.spec.width):
            heads = self._make_heads(*size)
        return HeadMaps(*(maps[: len(inputs)] for maps in heads[not is_sound]))

    def device_times_ms(self) -> list[float]:
        """See `Backend.device_times_ms`."""
        with self._lock:
            times, self._times_ms = self._times_ms, []
        return times


def break_down(fault: str) -> None:
    """End, stop or hang this process as a broken chip or host does; other faults do nothing."""
    match fault:
        case "fail":
            raise RuntimeError("simulated fault, error code 507033")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()  # other threads may be stopped before this one
        case "hang":
            threading.Event().wait()


def faulty_heads(fault: str | None, rows: int, columns: int) -> list[NDArray[np.float32]]:
    """The head maps of a picture without a face, or what a broken chip could make of them.

    Args:
        fault: A key of `FAULTS`; any other: zeros everywhere.
        rows: Of the output maps.
        columns: Of the output maps.

    Returns:
        In the order of `HeadMaps`, (channels, rows, columns) float32 each.
    """
    heads = [np.zeros((channels, rows, columns), np.float32) for channels in HeadMaps.CHANNELS]
    if fault in FAULTS:
        heads[0][0, ::2, 0].flat[:3], heads[1][...] = FAULTS[fault]
    return heads


def batch_milliseconds(batch: int, options: Mapping[str, Any]) -> float:
    """What a batch takes, milliseconds.

    Between the batch sizes of a preset's table the time is interpolated linearly; above the
    largest, the pictures a second stay those of the largest.

    Raises:
        UserError: neither a latency nor a preset is given.
    """
    if options["latency_ms"] is not None:
        return float(options["latency_ms"])
    if options["preset"] is None:
        raise UserError(
            "backend.latency_ms: no latency given; set it to milliseconds a batch (0: instant), "
            f"or backend.preset to one of {', '.join(PUBLISHED_RATES)}"
        )
    rates = PUBLISHED_RATES[options["preset"]]
    times = [1000 * size / rate for size, rate in rates.items()]
    return float(np.interp(batch, list(rates), times)) * max(1.0, batch / max(rates))
