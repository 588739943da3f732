"""The loops of `job=benchmark`: what is run, how it is timed, what counts as a rate."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.distributed import cluster, looping_device
from cfdist.distributed.looping_device import (
    LoopingDevice,
    LoopReport,
    common_rates,
    loop_devices,
    model_input,
    run_loops,
)
from cfdist.errors import UserError
from cfdist.preprocess import InputContract


class RecordingBackend(Backend):
    """Notes what it is given; its batches take nothing."""

    def __init__(self, slots: int, group: int) -> None:
        self.streams, self.capabilities = slots, Capabilities(group=group)
        self.groups: list[int] = []
        self.most_inside = self._inside = 0
        self._times = [1.0]  # a batch before the loops
        self._lock = threading.Lock()
        self._all_inside = threading.Barrier(slots, timeout=30)

    @classmethod
    def check(cls, spec, options):
        pass

    def infer(self, inputs):
        return None

    def infer_many(self, batches):
        with self._lock:
            self.groups.append(len(batches))
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
            self._times += [2.0] * len(batches)
        self._all_inside.wait()
        with self._lock:
            self._inside -= 1
        return super().infer_many(batches)

    def device_times_ms(self):
        times, self._times = self._times, []
        return times


@pytest.mark.parametrize(("slots", "group", "groups"), [(1, 1, [1] * 5), (1, 3, [3, 2])])
def test_groups_add_up_to_the_loops(slots, group, groups):
    backend = RecordingBackend(slots, group)
    report = run_loops(backend, np.zeros(1), loops=5)
    assert backend.groups == groups
    assert report.device_ms == (2.0,) * 5  # what ran before is not in it
    (ends,) = report.ends
    assert ends.shape == (5,)
    assert (np.diff(ends) > 0).all()
    # The batches of a group share its time.
    np.testing.assert_allclose(np.diff(ends[:group], prepend=0), ends[group - 1] / group)
    np.testing.assert_allclose(report.batch_ms.sum(), 1000 * ends[-1])


def test_all_slots_are_busy_at_once():
    backend = RecordingBackend(slots=3, group=1)
    report = run_loops(backend, np.zeros(1), loops=4)
    assert backend.most_inside == 3
    assert [len(ends) for ends in report.ends] == [4, 4, 4]
    assert len(report.batch_ms) == len(report.device_ms) == 12


def test_each_slot_is_warmed_up_by_two_runs(monkeypatch, spec):
    backend = RecordingBackend(slots=3, group=2)
    backend.contract = InputContract(4, 6, None)
    monkeypatch.setattr(looping_device.backends, "create", lambda *_: backend)
    device = LoopingDevice("any", spec(), DeviceSettings(1, 1), "zeros")
    device.warm_up(1, 1)
    assert backend.groups == [2] * 6
    backend.groups.clear()
    device.process(2)
    assert backend.groups == [2] * 3
    assert len(device.report().device_ms) == 6


def test_rates_are_those_of_the_time_that_all_were_running():
    quick = LoopReport((np.array([1.0, 2.0, 3.0, 4.0]),), ())
    slow = LoopReport((np.array([2.5, 5.0, 6.0, 7.0]),), ())
    # Until 4 s: four batches, and one and three fifths of the second.
    assert common_rates([quick, slow], 10) == pytest.approx([10.0, 4.0])
    two_slots = LoopReport((quick.ends[0], quick.ends[0] / 2), ())
    assert common_rates([two_slots], 3) == pytest.approx([3 * (2 + 4) / 2])


@given(
    st.lists(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(1, 32),
)
def test_rates_count_no_more_than_was_done(times, batch):
    reports = [LoopReport((np.cumsum(one),), ()) for one in times]
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
def test_devices_loop_in_actors_of_their_own(spec):
    plan = cluster.plan_devices("cpu", 2, feeders=1, streams=1, slot_bytes=1)
    arguments = {
        "spec": spec(height=64, width=64, batch=2), "plan": plan, "kind": "zeros", "loops": 4,
    }  # fmt: skip
    reports = loop_devices(
        backend="simulated", options={"latency_ms": 5.0, "preset": None}, **arguments
    )
    assert list(reports) == ["device:0", "device:1"]
    for report in reports.values():
        assert [len(ends) for ends in report.ends] == [4]
        assert len(report.device_ms) == 4
        assert report.batch_ms.min() >= min(report.device_ms) >= 5
    # What a device refuses reaches the caller, and the names are free again.
    with pytest.raises(UserError, match="latency_ms: no latency given"):
        loop_devices(backend="simulated", options={"latency_ms": None, "preset": None}, **arguments)
    loop_devices(backend="simulated", options={"latency_ms": 0.0, "preset": None}, **arguments)
