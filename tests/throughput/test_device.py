"""The device of the inference part, alone and in actors."""

from __future__ import annotations

import numpy as np
import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.distributed.plan import plan_devices
from cfdist.errors import UserError
from cfdist.preprocess import InputContract
from cfdist.throughput.device import LoopingDevice, loop_devices
from tests.throughput.recording import RecordingBackend


@pytest.fixture
def backend(monkeypatch) -> RecordingBackend:
    """What every model of the test loads."""
    backend = RecordingBackend(streams=3, group=2)
    backend.contract = InputContract(4, 6, None)
    monkeypatch.setattr(BackendModel, "load", lambda *_: backend)
    return backend


def test_each_stream_is_warmed_up_by_two_runs(backend, spec):
    device = LoopingDevice(BackendModel("any", spec()), DeviceSettings(1, 1), "zeros")
    device.warm_up()
    assert backend.groups == [2] * 6
    backend.groups.clear()
    assert len(device.process(2).device_ms) == 6
    assert backend.groups == [2] * 3


def test_its_report_is_that_of_the_loops(backend, spec):
    device = LoopingDevice(BackendModel("any", spec(batch=4)), DeviceSettings(1, 1), "zeros")
    device.warm_up()
    loops = device.process(4)
    report = device.report()
    assert report.pictures == 3 * 4 * 4
    assert report.decoded == 0
    np.testing.assert_array_equal(report.batch_ms, loops.batch_ms)
    assert report.device_ms == [2.0] * 12
    assert report.busy_seconds == pytest.approx(np.mean([ends[-1] for ends in loops.ends]))
    assert report.peak_memory > 0


@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_the_model_gets_the_input_that_was_asked_for(backend, monkeypatch, spec, kind):
    given = []
    monkeypatch.setattr(backend, "infer", given.append)
    device = LoopingDevice(BackendModel("any", spec(batch=4)), DeviceSettings(1, 1), kind)
    device.warm_up()
    assert all(inputs.shape == (4, 4, 6, 3) for inputs in given)
    assert {bool(inputs.any()) for inputs in given} == {kind == "random"}


@pytest.mark.usefixtures("ray_session")
def test_devices_loop_in_actors_of_their_own(spec):
    plan = plan_devices("cpu", 2, readers=1, streams=1)

    def loop(latency_ms: float | None):
        options = {"latency_ms": latency_ms, "preset": None}
        model = BackendModel("simulated", spec(height=64, width=64, batch=2), options)
        return loop_devices(model, plan, "zeros", loops=4)

    reports = loop(5.0)
    assert list(reports) == ["device:0", "device:1"]
    for report in reports.values():
        assert [len(ends) for ends in report.ends] == [4]
        assert len(report.device_ms) == 4
        assert report.batch_ms.min() >= min(report.device_ms) >= 5
    # What a device refuses reaches the caller, and the names are free again.
    with pytest.raises(UserError, match="latency_ms: no latency given"):
        loop(None)
    loop(0.0)
