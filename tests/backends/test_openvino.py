"""OpenVINO and ONNX Runtime give the same head maps, whatever the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest

from cfdist import backends
from cfdist.backends.base import DeviceSettings
from cfdist.backends.openvino import picture_model, refuse_other_precision
from cfdist.errors import UserError
from cfdist.preprocess import to_model_input
from tests.fakes import onnx_forms

OPTIONS = {"precision": "f32", "providers": ["CPUExecutionProvider"]}
HEADS = ("hm", "wh", "offset", "landmarks")


def pictures(count: int, size: int = 160) -> np.ndarray:
    """Smooth random pictures: (n, size, size, 3) u8."""
    random = np.random.default_rng(1)
    small = random.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_CUBIC) for one in small])


def infer(name: str, model, warped: np.ndarray, slots: int = 1):
    backend = backends.backend_class(name)(model, DeviceSettings(2, slots, 0, OPTIONS))
    try:
        return backend.infer(to_model_input(warped, backend.contract))
    finally:
        backend.close()


@pytest.mark.slow
def test_backends_agree_on_random_pictures(spec):
    model = spec(height=160, width=160, batch=3)
    warped = pictures(3)
    openvino, onnxruntime = (infer(name, model, warped) for name in ("openvino", "onnxruntime"))
    for head in HEADS:
        a, b = getattr(openvino, head), getattr(onnxruntime, head)
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_normalisation_is_the_same_inside_and_outside_the_graph(spec):
    model = spec(
        height=160,
        width=160,
        color="BGR",
        scale=1 / 255,
        mean=(0.40789654, 0.44719302, 0.47026115),
        std=(0.28863828, 0.27408164, 0.27809835),
    )
    warped = pictures(2)
    openvino, onnxruntime = (infer(name, model, warped) for name in ("openvino", "onnxruntime"))
    for head in HEADS:
        np.testing.assert_allclose(
            getattr(openvino, head), getattr(onnxruntime, head), rtol=0, atol=1e-3
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_part_of_a_batch_gives_the_same_numbers(spec, name):
    model = spec(height=160, width=160, batch=4)
    warped = pictures(4)
    whole = infer(name, model, warped)
    for head in HEADS:
        alone = getattr(infer(name, model, warped[2:3]), head)
        np.testing.assert_allclose(alone[0], getattr(whole, head)[2], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_results_stay_when_the_next_batch_runs(spec):
    model = spec(height=160, width=160, batch=1)
    backend = backends.backend_class("openvino")(model, DeviceSettings(1, 1, 0, OPTIONS))
    first = backend.infer(pictures(1))
    kept = first.hm.copy()
    backend.infer(255 - pictures(1))
    np.testing.assert_array_equal(first.hm, kept)


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "streams", "batch"), [(1, 1, 5), (4, 2, 5), (8, 2, 3)])
def test_a_batch_is_computed_in_as_many_pictures_as_a_stream_has_threads(
    spec, threads, streams, batch
):
    model = spec(height=160, width=160, batch=batch)
    backend = backends.backend_class("openvino")(
        model, DeviceSettings(threads, streams, 0, OPTIONS)
    )
    assert backend.streams == streams
    heads = backend.infer(pictures(batch))
    for i in range(batch):
        alone = infer("openvino", model, pictures(batch)[i : i + 1])
        for head in HEADS:
            np.testing.assert_allclose(
                getattr(heads, head)[i], getattr(alone, head)[0], rtol=0, atol=1e-3
            )


@pytest.mark.slow
def test_streams_do_not_disturb_each_other(spec):
    model = spec(height=160, width=160, batch=1)
    backend = backends.backend_class("openvino")(model, DeviceSettings(3, 3, 0, OPTIONS))
    inputs = [one[None] for one in pictures(3)]
    expected = [backend.infer(one).hm for one in inputs]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: backend.infer(inputs[i % 3]).hm, range(30)))
    for i, hm in enumerate(found):
        np.testing.assert_array_equal(hm, expected[i % 3])


def test_the_device_says_what_it_runs_on(spec):
    model = spec(height=160, width=160, batch=1)
    backend = backends.backend_class("openvino")(model, DeviceSettings(1, 1, 0, OPTIONS))
    assert backend.runs_on == "CPU"


@pytest.mark.parametrize("asked", ["f32", "f16", "bf16"])
def test_a_precision_that_openvino_gave_up_is_refused(asked):
    class Compiled:
        def get_property(self, name):
            return {"INFERENCE_PRECISION_HINT": ov.Type.f32}[name]

    if asked == "f32":
        refuse_other_precision(Compiled(), asked)
        return
    with pytest.raises(UserError, match=rf"precision={asked}: this processor cannot.*in f32"):
        refuse_other_precision(Compiled(), asked)


def test_a_graph_that_openvino_cannot_read_is_refused(spec, tmp_path):
    model = onnx.load(str(onnx_forms.network(tmp_path / "m.onnx")))
    model.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(UserError, match=r"m\.onnx: OpenVINO cannot read it \(.*NoSuchOperator"):
        picture_model(model, spec(tmp_path / "m.onnx", height=64, width=64), 1)


@pytest.mark.parametrize("contributed", [True, False])
def test_a_graph_that_rounds_to_16_bits_is_refused(spec, tmp_path, contributed):
    path = onnx_forms.quantised(
        onnx_forms.network(tmp_path / "a.onnx"), tmp_path / "b.onnx", "qdq", wide=contributed
    )
    model = onnx.load(str(path))
    if not contributed:
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                node.attribute.append(
                    onnx.helper.make_attribute("output_dtype", onnx.TensorProto.INT16)
                )
    with pytest.raises(UserError, match=r"b\.onnx: rounds .* to U?INT16, .*backend=onnxruntime"):
        picture_model(model, spec(path, height=64, width=64, outputs=onnx_forms.HEADS), 1)
