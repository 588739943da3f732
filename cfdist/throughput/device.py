"""The device of the inference part: it runs its model on one input, without pictures."""

from __future__ import annotations

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.devices.base import DeviceReport
from cfdist.devices.memory import memory_as_user_error
from cfdist.distributed.failures import user_error
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.pool import DevicePool
from cfdist.machine import peak_memory
from cfdist.throughput.loops import LoopReport, model_input, run_loops


class LoopingDevice:
    """Runs loops; keeps the `Device` protocol. Its chunk is a number of loops."""

    def __init__(self, model: BackendModel, settings: DeviceSettings, kind: str) -> None:
        """Remember what to load.

        Args:
            model: The model and its backend.
            settings: The device's.
            kind: What the model is given, see `model_input`.
        """
        self._model = model
        self._settings = settings
        self._kind = kind

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
                self.process(self._backend.capabilities.group)

    def process(self, chunk: int) -> LoopReport:
        """Run this many batches in each stream."""
        self._loops = run_loops(self._backend, self._inputs, chunk)
        return self._loops

    def report(self) -> DeviceReport:
        """See `Device.report`; what the last loops did."""
        batch_ms = self._loops.batch_ms
        return DeviceReport(
            pictures=len(batch_ms) * self._model.spec.batch,
            busy_seconds=float(batch_ms.sum()) / 1000 / self._backend.streams,
            batch_ms=batch_ms.tolist(),
            device_ms=list(self._loops.device_ms),
            peak_memory=peak_memory(),
        )

    def close(self) -> None:
        """See `Device.close`."""
        self._backend.close()


def loop_devices(
    model: BackendModel, plan: DevicePlan, kind: str, loops: int
) -> dict[str, LoopReport]:
    """Run the loops on all devices at once, as soon as all are warm.

    Args:
        model: The model and its backend.
        plan: The devices.
        kind: What the model is given, see `model_input`.
        loops: Batches in each stream.

    Returns:
        Device name -> what it did.

    Raises:
        UserError: the model does not fit a device.
        Exception: what else a device ran into.
    """
    import ray

    def make_device(settings: DeviceSettings) -> LoopingDevice:
        return LoopingDevice(model, settings, kind)

    pool: DevicePool[LoopReport] = DevicePool(plan, make_device, model.spec.batch)
    try:
        with pool:
            pool.start()
            calls = {
                name: actor.process_directly.remote(loops) for name, actor in pool.actors.items()
            }
            reports = {name: ray.get(call) for name, call in calls.items()}
            pool.close()
    except ray.exceptions.RayError as error:
        raise user_error(error) from None
    return reports
