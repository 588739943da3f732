"""A model on a device: what it is given, what counts as a measurement, what is not finite."""

from __future__ import annotations

import numpy as np
import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.decode import select_peaks
from cfdist.devices.runner import Runner
from cfdist.errors import UserError
from cfdist.preprocess import to_model_input

OPTIONS = {"precision": "f32", "providers": ["CPUExecutionProvider"]}
SIDE = 96


def runner_of(spec, backend: str, batch: int = 2, streams: int = 1, options=None) -> Runner:
    model = BackendModel(backend, spec(height=SIDE, width=SIDE, batch=batch), options or OPTIONS)
    runner = Runner(model, DeviceSettings(2, streams, number=1), chunk=4)
    runner.warm_up()
    return runner


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def runner(request, spec):
    runner = runner_of(spec, request.param)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)


def test_outputs_are_those_of_the_plain_steps(runner, pictures):
    inferred = runner.infer(pictures[:3])
    assert [len(one.hm) for one in inferred.outputs] == [2, 1]
    assert inferred.is_finite.tolist() == [True] * 3
    for i, picture in enumerate(pictures[:3]):
        inputs = to_model_input(picture[None], runner.backend.contract)
        plain = select_peaks(runner.backend.infer(inputs))
        ours = select_peaks(inferred.outputs[i // 2]).score[i % 2]
        np.testing.assert_allclose(ours, plain.score[0], rtol=0, atol=1e-5)


def test_no_picture_gives_no_outputs(runner, pictures):
    inferred = runner.infer(pictures[:0])
    assert inferred.outputs == []
    assert inferred.is_finite.shape == (0,)


def test_the_report_counts_pictures_and_full_batches(runner, pictures):
    runner.infer(pictures[:2])
    before = runner.report()
    count, batches = before.pictures, len(before.batch_ms)
    runner.infer(pictures)
    runner.infer(pictures[:1])  # no full batch
    after = runner.report()
    assert after.pictures - count == 5
    assert len(after.batch_ms) - batches == 2
    assert after.busy_seconds > 0
    assert after.peak_memory > 0


def test_input_tensors_use_the_same_memory_again(spec, pictures, monkeypatch):
    runner = runner_of(spec, "onnxruntime")
    rooms = [runner._rooms.get() for _ in range(runner._rooms.qsize())]
    for room in rooms:
        runner._rooms.put(room)
    given = []
    infer = runner.backend.infer

    def note(inputs):
        given.append(inputs)
        return infer(inputs)

    monkeypatch.setattr(runner.backend, "infer", note)
    for _ in range(3):
        runner.infer(pictures[:2])
    runner.close()
    assert len(given) == 3
    assert all(any(np.shares_memory(one, room) for room in rooms) for one in given)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_first_whole_batch_of_a_stream_is_no_measurement(spec, pictures, backend):
    runner = runner_of(spec, backend, streams=2)
    runner.infer(pictures[:1])  # a part of a batch is none
    for _ in range(5):
        runner.infer(pictures[:2])
    report = runner.report()
    runner.close()
    assert report.pictures == 11
    assert len(report.batch_ms) == 5 - 2


@pytest.mark.slow
def test_a_whole_batch_that_was_the_warm_up_was_the_first(spec, pictures):
    runner = runner_of(spec, "openvino", batch=1, streams=2)
    runner.infer(pictures[:3])
    report = runner.report()
    runner.close()
    assert len(report.batch_ms) == 3


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_a_batch_that_does_not_fit_after_all_is_the_user_s_error(
    runner, pictures, monkeypatch, error
):
    def refuse(inputs):
        raise error

    monkeypatch.setattr(runner.backend, "infer", refuse)
    with pytest.raises(UserError, match="does not fit the device's memory"):
        runner.infer(pictures[:2])


@pytest.mark.parametrize("fault", ["nan", "inf", "inf_scores"])
def test_outputs_that_are_not_finite_are_found_and_the_device_is_named(spec, pictures, fault):
    options = {"latency_ms": 0, "preset": None, "fault": fault, "fault_device": 1}
    runner = runner_of(spec, "simulated", options=options)
    inferred = runner.infer(pictures[:3])
    assert inferred.is_finite.tolist() == [False] * 3
    assert inferred.error == "the model's outputs hold NaN or infinite values"
