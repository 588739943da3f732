"""Two models on one device see the same pictures."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.comparison.device import ComparingDevice
from cfdist.widerface.manifest import WorkItem

OPTIONS = {"precision": "f32", "providers": ["CPUExecutionProvider"]}


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[WorkItem]:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(3)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.jpg"), random.integers(0, 256, (60, 80, 3), np.uint8))
    paths = [*sorted(folder.iterdir()), folder / "gone.jpg"]
    return [WorkItem(f"e/{path.stem}", str(path), 1) for path in paths]


def compared(reference: BackendModel, candidate: BackendModel, items: list[WorkItem]):
    device = ComparingDevice(reference, candidate, DeviceSettings(2, 1), readers=1)
    device.warm_up()
    chunk = device.process(items)
    assert device.report().decoded == 3
    device.close()
    return chunk


@pytest.mark.slow
def test_two_runtimes_of_one_model_agree(spec, items):
    reference = BackendModel("openvino", spec(height=96, width=96, batch=2), OPTIONS)
    chunk = compared(reference, replace(reference, backend="onnxruntime"), items)
    assert [one.id for one in chunk.reference] == [one.id for one in chunk.candidate]
    assert chunk.keys == ("e/0", "e/1", "e/2")
    gone = (("e/gone", "cannot be read: No such file or directory"),)  # another host may see it
    assert chunk.doubtful == gone
    judged = chunk.judged(gone, ())
    assert (judged.keys[-1], judged.failures, judged.doubtful) == ("e/gone", gone, ())
    assert set(chunk.heads) == {"hm", "wh", "offset", "landmarks"}
    assert chunk.heads["hm"].count == 3 * 24 * 24
    assert all(difference.largest < 1e-3 for difference in chunk.heads.values())


@pytest.mark.slow
def test_pictures_at_their_own_size_are_compared_shape_by_shape(spec, items, tmp_path):
    wide = tmp_path / "wide.png"
    cv2.imwrite(str(wide), np.zeros((64, 128, 3), np.uint8))
    model = BackendModel("openvino", spec(height=64, width=128, batch=2, size="own"), OPTIONS)
    some = [items[0], WorkItem("e/wide", str(wide), 1), items[1], items[3]]
    chunk = compared(model, replace(model, backend="onnxruntime"), some)
    assert chunk.keys == ("e/0", "e/wide", "e/1")
    assert [id for id, _ in chunk.doubtful] == ["e/gone"]
    assert chunk.heads["hm"].count == 2 * 16 * 24 + 16 * 32
    assert all(difference.largest < 1e-3 for difference in chunk.heads.values())


@pytest.mark.parametrize(("side", "number"), [("reference", 0), ("candidate", 1)])
def test_a_side_that_is_not_finite_is_named(spec, items, side, number):
    model = BackendModel(
        "simulated", spec(height=96, width=96, batch=2), {"latency_ms": 0, "fault": None}
    )
    sides = [model, model]
    options = {"latency_ms": 0, "fault": "nan", "fault_device": None}
    sides[number] = replace(model, options=options)
    chunk = compared(*sides, items)
    reasons = {reason for id, reason in chunk.doubtful if id != "e/gone"}
    assert len(chunk.doubtful) == 4
    assert reasons == {f"the {side}: the model's outputs hold NaN or infinite values"}
    assert [one.id for one in chunk.reference] == [one.id for one in chunk.candidate]
    assert not {id for id, _ in chunk.doubtful} & {one.id for one in chunk.reference}
    assert chunk.heads["hm"].count == 0
