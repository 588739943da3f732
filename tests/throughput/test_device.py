"""The inference part: what is run, how it is timed, what counts as a rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.distributed.plan import plan_devices
from cfdist.errors import StoppedError, UserError
from cfdist.preprocess import InputContract
from cfdist.throughput import device as devices
from cfdist.throughput.device import (
    LoopingDevice,
    common_rates,
    loop_devices,
    model_input,
    run_loops,
)
from cfdist.throughput.sampling import Ends, Sample
from tests.throughput.recording import RecordingBackend, looped


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
    seen = []
    monkeypatch.setattr(backend, "infer", seen.append)
    device = LoopingDevice(BackendModel("any", spec(batch=4)), DeviceSettings(1, 1), kind)
    device.warm_up()
    assert all(inputs.shape == (4, 4, 6, 3) for inputs in seen)
    assert {bool(inputs.any()) for inputs in seen} == {kind == "random"}


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


@pytest.mark.parametrize(("streams", "group", "groups"), [(1, 1, [1] * 5), (1, 3, [3, 2])])
def test_groups_add_up_to_the_loops(streams, group, groups):
    backend = RecordingBackend(streams, group)
    report = run_loops(backend, np.zeros(1), loops=5)
    assert backend.groups == groups
    assert report.device_ms == (2.0,) * 5  # what ran before is not in it
    (ends,) = report.ends
    assert ends.shape == (5,)
    assert (np.diff(ends) > 0).all()
    # The batches of a group share its time.
    np.testing.assert_allclose(np.diff(ends[:group], prepend=0), ends[group - 1] / group)
    np.testing.assert_allclose(report.batch_ms.sum(), 1000 * ends[-1])


def test_all_streams_are_busy_at_once():
    backend = RecordingBackend(streams=3, group=1)
    report = run_loops(backend, np.zeros(1), loops=4)
    assert backend.most_inside == 3
    assert [len(ends) for ends in report.ends] == [4, 4, 4]
    assert len(report.batch_ms) == len(report.device_ms) == 12


def test_loops_go_on_for_the_least_time(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(devices.time, "perf_counter", lambda: float(next(ticks)))
    (ends,) = run_loops(RecordingBackend(1, 2), np.zeros(1), loops=3, min_seconds=4).ends
    # Groups of 2, 1, and then of 2 until four ticks are over.
    np.testing.assert_allclose(ends, [0.5, 1, 2, 2.5, 3, 3.5, 4])
    (ends,) = run_loops(RecordingBackend(1, 2), np.zeros(1), loops=3, min_seconds=2).ends
    assert len(ends) == 3


def test_long_loops_keep_a_part_of_what_they_measure(monkeypatch):
    monkeypatch.setattr(devices, "_TAKEN_EVERY", 10)
    monkeypatch.setattr(devices, "Ends", lambda: Ends(most=8))
    monkeypatch.setattr(devices, "Sample", lambda: Sample(most=8))
    noted = []
    backend = RecordingBackend(2, 3)
    report = run_loops(backend, np.zeros(1), loops=100, note=noted.append)
    assert sum(noted) == report.batches == 200
    assert (len(report.batch_ms), report.device_ms) == (16, (2.0,) * 8)
    assert all(len(ends) <= 9 for ends in report.ends)
    first, last = sorted(ends[-1] for ends in report.ends)
    assert report.done(last) == 200
    assert 100 <= report.done(first) == pytest.approx(common_rates([report], 4)[0] * first / 4)


def test_rates_are_those_of_the_time_that_all_were_running():
    quick = looped([1.0, 2.0, 3.0, 4.0])
    slow = looped([2.5, 5.0, 6.0, 7.0])
    # Until 4 s: four batches, and one and three fifths of the second.
    assert common_rates([quick, slow], 10) == pytest.approx([10.0, 4.0])
    two_streams = looped(quick.ends[0], quick.ends[0] / 2)
    assert common_rates([two_streams], 3) == pytest.approx([3 * (2 + 4) / 2])


@given(
    st.lists(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(1, 32),
)
def test_rates_count_no_more_than_was_done(times, batch):
    reports = [looped(np.cumsum(one)) for one in times]
    rates = common_rates(reports, batch)
    until = min(sum(one) for one in times)
    for one, rate in zip(times, rates, strict=True):
        assert 0 < rate * until <= len(one) * batch * (1 + 1e-9)
    shortest = min(times, key=sum)
    assert rates[times.index(shortest)] == pytest.approx(len(shortest) * batch / sum(shortest))


def test_the_input_is_what_the_model_takes():
    contract = InputContract(4, 6, None, "float32", "NCHW", scale=1 / 255, mean=(1.0, 0.0, 0.0))
    zeros, noise = (model_input(kind, contract, 2) for kind in ("zeros", "random"))
    assert zeros.shape == noise.shape == (2, 3, 4, 6)
    assert zeros.dtype == noise.dtype == np.float32
    assert not zeros.any()
    assert -1 <= noise[:, 0].min() < noise[:, 0].max() <= 0
    np.testing.assert_array_equal(noise, model_input("random", contract, 2))
    assert model_input("random", InputContract(4, 6, 2), 2).max() > 1


@pytest.mark.usefixtures("ray_session")
def test_a_device_that_refuses_the_model_alone_is_quoted(spec, monkeypatch):
    class Refusing(LoopingDevice):
        def warm_up(self) -> None:
            if self._settings.number == 1:
                raise UserError("model net.om: made for another chip")
            super().warm_up()

    monkeypatch.setattr(devices, "LoopingDevice", Refusing)
    options = {"latency_ms": 0.0, "preset": None}
    model = BackendModel("simulated", spec(height=64, width=64, batch=2), options)
    plan = plan_devices("cpu", 2, readers=1, streams=1)
    said = r"^device:1 .*failed \(model net.om: made for another chip\), and its rate would be"
    with pytest.raises(StoppedError, match=said):
        loop_devices(model, plan, "zeros", loops=4)
