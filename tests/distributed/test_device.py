"""A device's pipeline without Ray: files in, peaks out."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.decode import select_peaks
from cfdist.distributed.device import Device
from cfdist.errors import UserError
from cfdist.preprocess import read_into, to_model_input
from cfdist.widerface.manifest import WorkItem

OPTIONS = {"precision": "f32", "providers": ["CPUExecutionProvider"]}


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[WorkItem]:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(3)
    items = []
    for i in range(7):
        small = random.integers(0, 256, (6, 6, 3), np.uint8)
        path = folder / f"{i}.jpg"
        cv2.imwrite(str(path), cv2.resize(small, (100 + 20 * i, 150)))
        items.append(WorkItem(f"e/{i}", str(path), path.stat().st_size))
    return items


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def device(request, spec):
    model = spec(height=96, width=96, batch=2)
    device = Device(request.param, model, DeviceSettings(2, 1, 0, OPTIONS), feeders=2)
    device.warm_up(chunk=4, buffers=2)
    yield device
    device.close()


def test_peaks_are_those_of_the_plain_steps(device, items):
    result = device.find_peaks(items[:3])
    assert result.ids == ("e/0", "e/1", "e/2")
    assert result.sizes.tolist() == [[100, 150], [120, 150], [140, 150]]
    assert result.failures == ()
    for i, item in enumerate(items[:3]):
        row = np.zeros((96, 96, 3), np.uint8)
        read_into(item.path, row)
        contract = device._backend.contract
        plain = select_peaks(device._backend.infer(to_model_input(row[None], contract)))
        np.testing.assert_allclose(result.peaks.score[i], plain.score[0], rtol=0, atol=1e-5)


def test_broken_pictures_leave_the_others_alone(device, items, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    bad = WorkItem("e/bad", str(broken), 10)
    alone = device.find_peaks([items[5]])

    result = device.find_peaks([bad, items[5], WorkItem("e/gone", str(tmp_path / "no"), 0)])

    assert result.ids == ("e/5",)
    assert result.failures == (
        ("e/bad", "not a picture that OpenCV can decode"),
        ("e/gone", "cannot be read: No such file or directory"),
    )
    np.testing.assert_allclose(result.peaks.score, alone.peaks.score, rtol=0, atol=1e-5)


def test_a_chunk_of_broken_pictures_only(device, tmp_path):
    result = device.find_peaks([WorkItem("e/gone", str(tmp_path / "no"), 0)])
    assert result.ids == ()
    assert result.sizes.shape == (0, 2)
    assert len(result.peaks.score) == 0
    assert len(result.failures) == 1


def test_the_report_counts_pictures_and_full_batches(device, items):
    device.find_peaks(items[:2])
    before = device.report()
    pictures, batches = before.pictures, len(before.batch_ms)
    device.find_peaks(items[:4])
    device.find_peaks(items[:1])  # no full batch
    after = device.report()
    assert after.pictures - pictures == 5
    assert len(after.batch_ms) - batches == 2
    assert after.busy_seconds > 0


def test_input_is_written_into_the_same_memory_again(device, items, monkeypatch):
    contract = device._backend.contract
    room = device._buffers if contract.is_letterboxed_bytes else device._inputs[contract]
    arrays = [room.get() for _ in range(room.qsize())]
    for array in arrays:
        room.put(array)
    given = []
    infer = device._backend.infer

    def note(inputs):
        given.append(inputs)
        return infer(inputs)

    monkeypatch.setattr(device._backend, "infer", note)
    for _ in range(3):
        device.find_peaks(items[:2])
    assert len(given) == 3
    assert all(any(np.shares_memory(one, array) for array in arrays) for one in given)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_first_whole_batch_of_a_slot_is_no_measurement(spec, items, backend):
    model = spec(height=96, width=96, batch=2)
    device = Device(backend, model, DeviceSettings(2, 2, 0, OPTIONS), feeders=1)
    device.warm_up(chunk=4, buffers=1)
    device.find_peaks(items[:1])  # a part of a batch is none
    for _ in range(5):
        device.find_peaks(items[:2])
    report = device.report()
    device.close()
    assert report.pictures == 11
    assert len(report.batch_ms) == 5 - 2


def test_a_whole_batch_that_was_the_warm_up_was_the_first(spec, items):
    model = spec(height=96, width=96, batch=1)
    device = Device("openvino", model, DeviceSettings(2, 2, 0, OPTIONS), feeders=1)
    device.warm_up(chunk=4, buffers=1)
    device.find_peaks(items[:3])
    report = device.report()
    device.close()
    assert len(report.batch_ms) == 3


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_a_batch_that_does_not_fit_after_all_is_the_user_s_error(device, items, monkeypatch, error):
    def refuse(inputs):
        raise error

    monkeypatch.setattr(device._backend, "infer", refuse)
    with pytest.raises(UserError, match="does not fit the device's memory"):
        device.find_peaks(items[:2])


@pytest.fixture
def delivering(device, monkeypatch):
    """The device, with a reducer that takes everything."""
    import ray

    monkeypatch.setattr(ray, "get", lambda reference: reference)
    reducer = SimpleNamespace(add=SimpleNamespace(remote=lambda detections: None))
    monkeypatch.setattr(device, "_reducer", reducer)
    return device


@pytest.mark.parametrize(
    ("names", "keep", "kept"),
    [
        (["0", "1", "2"], [0, 1, 2], (0, 1, 2)),
        (["0", "1", "2"], [0, 2], (0, 2)),
        (["0", "gone", "2"], [0, 1, 2], (0, 2)),
        (["0", "gone", "2"], [0, 2], (0, 2)),  # all that were read, but not all of the chunk
        (["0", "1", "2"], [1], (1,)),
    ],
)
def test_kept_pictures_are_not_those_of_the_next_chunk(delivering, items, names, keep, kept):
    there = {item.id: item for item in items}
    gone = WorkItem("e/gone", "nowhere.jpg", 0)
    chunk = [there.get(f"e/{name}", gone) for name in names]
    report, pictures = delivering.process(chunk, (), keep)
    for _ in range(2):  # both buffers
        delivering.find_peaks(items[3:7])

    assert report.kept == kept
    assert len(pictures.warped) == len(pictures.sizes) == len(kept)
    for row, i in enumerate(kept):
        expected = np.zeros((96, 96, 3), np.uint8)
        assert tuple(pictures.sizes[row]) == read_into(chunk[i].path, expected)
        np.testing.assert_array_equal(pictures.warped[row], expected)
