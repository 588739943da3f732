"""The device of an evaluation, from files to detections, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.decode import decode_detections, merge_views, to_peaks
from cfdist.devices.detector import Detector, decode_pictures
from cfdist.preprocess import read_into
from cfdist.widerface.manifest import WorkItem

OPTIONS = {"precision": "f32"}


@pytest.fixture(scope="module")
def detector(spec):
    model = BackendModel("openvino", spec(height=96, width=96, batch=2), OPTIONS)
    detector = Detector(model, DeviceSettings(2, 1), readers=2)
    detector.warm_up()
    yield detector
    detector.close()


def test_detections_are_those_of_the_plain_steps(detector, items, spec):
    model = spec(height=96, width=96, batch=2)
    found = detector.process(items[:3])
    for item, ours in zip(items, found, strict=False):
        row = np.zeros((96, 96, 3), np.uint8)
        size = read_into(item.path, row).size
        outputs = detector._runner.backend.infer(row[None])
        plain = decode_detections(
            [item.id], np.array([size], np.int32), to_peaks(outputs, model), model
        )
        assert ours.id == item.id
        assert (ours.width, ours.height) == size
        np.testing.assert_allclose(ours.scores, plain[0].scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours.boxes, plain[0].boxes, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_pictures_at_their_own_size_are_found_whatever_is_beside_them(backend, spec, items):
    options = OPTIONS | {"providers": ["CPUExecutionProvider"]}
    changes = {"size": "own", "peaks": "threshold", "score": 0.02, "top_k": None}
    model = BackendModel(backend, spec(height=160, width=224, batch=2, **changes), options)
    detector = Detector(model, DeviceSettings(1, 1), readers=1)
    detector.warm_up()
    together = {one.id: one for one in detector.process(items)}
    alone = [detector.process([item])[0] for item in items]
    runner = detector._runner
    for item, one in zip(items, alone, strict=True):
        np.testing.assert_allclose(one.boxes, together[one.id].boxes, rtol=0, atol=1e-3)
        picture = cv2.imread(item.path)
        stretched = cv2.resize(picture, (-(-picture.shape[1] // 32) * 32, 160))[None]
        assert runner.infer(stretched).outputs[0].hm.shape[2:] == (40, stretched.shape[2] // 4)
        assert (one.width, one.height) == (picture.shape[1], picture.shape[0])
        assert (one.boxes >= 0).all() and (one.boxes[:, 2] <= one.width).all()
    assert sum(len(one.scores) for one in alone) > 0
    detector.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["own", "letterbox"])
def test_several_views_give_each_picture_one_record_with_the_faces_of_all(spec, items, size):
    model = spec(height=160, width=224, batch=2, size=size, flip=True, score=0.02)
    detector = Detector(BackendModel("openvino", model, OPTIONS), DeviceSettings(1, 1), readers=1)
    detector.warm_up()
    found = detector.process(items[:3])
    assert [one.id for one in found] == ["e/0", "e/1", "e/2"]
    views = [
        one
        for pictures in detector._reader.portions(items[:3], model.views)
        for one in decode_pictures(pictures, detector._runner.infer(pictures.letterboxed), model)
    ]
    assert len(views) == 6
    for one, merged in zip(merge_views(views, model), found, strict=True):
        np.testing.assert_allclose(one.boxes, merged.boxes, rtol=0, atol=1e-3)
    assert detector.report().pictures == 6  # three, and three again for this test
    detector.close()


def test_the_report_says_when_the_device_read_and_inferred(detector, items):
    detector.process(items)
    found = detector.report()
    assert 0 < sum(found.activity.inferring) <= found.busy_seconds * 1.5 + 0.1
    assert sum(found.activity.reading) > 0


def test_pictures_that_cannot_be_read_come_last_with_their_reason(detector, items, tmp_path):
    gone = WorkItem("e/gone", str(tmp_path / "no"), 0)
    found = detector.process([gone, items[0]])
    assert [one.id for one in found] == ["e/0", "e/gone"]
    assert found[0].error is None
    assert found[1].error == "cannot be read: No such file or directory"


def test_damage_is_told_of_pictures_that_were_used_and_that_failed(detector, items, tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(Path(items[0].path).read_bytes()[:-200])
    half = WorkItem("e/half", str(path), 10)
    used = WorkItem("e/used", str(path), 10, use_damaged=True)
    whole, taken, failed = detector.process([half, items[1], used])
    assert (whole.id, whole.damage) == ("e/1", None)
    assert (taken.id, taken.error, taken.width) == ("e/used", None, 100)
    assert (failed.id, failed.width) == ("e/half", 0)
    assert taken.damage == failed.damage == failed.error
    assert "damaged" in failed.error


def test_the_report_says_what_was_decoded(detector, items):
    before = detector.report().decoded
    detector.process(items[:4])
    assert detector.report().decoded - before == 4


@pytest.mark.parametrize("fault", ["nan", "inf", "inf_scores"])
def test_a_faulty_device_fails_its_pictures_and_no_others(spec, items, fault):
    options = {"latency_ms": 0, "preset": None, "fault": fault, "fault_device": None}
    model = BackendModel("simulated", spec(height=96, width=96, batch=2), options)
    errors = []
    for one in (model, replace(model, options={**options, "fault": None})):
        detector = Detector(one, DeviceSettings(), readers=1)
        detector.warm_up()
        errors.append({found.error for found in detector.process(items[:3])})
        detector.close()
    assert errors == [{"the model's outputs hold NaN or infinite values"}, {None}]
