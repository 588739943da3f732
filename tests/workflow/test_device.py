"""From input tensors to raw outputs on one device, without Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from cfdist.ascend.atc import aipp_config
from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.errors import UserError
from cfdist.files import sha256_of
from cfdist.preprocess import to_model_input
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.device import FileDevice
from cfdist.workflow.files import FORMS, input_contract, write_raw
from cfdist.workflow.tool import summary
from tests.fakes.ascend import OUTPUT_NAMES, install_double, small_network

OPTIONS = {"precision": "f32", "providers": ["CPUExecutionProvider"], "device": "cpu"}
BATCH = 4
SIDE = 64


@pytest.fixture
def model(spec, tmp_path):
    """The small network with the training code's conventions."""
    path = tmp_path / "net.onnx"
    path.write_bytes(small_network())
    return spec(
        path,
        convention="centerface_pytorch",
        outputs=OUTPUT_NAMES,
        height=SIDE,
        width=SIDE,
        color="BGR",
        scale=1 / 255,
        mean=(0.4, 0.4, 0.4),
        std=(0.289, 0.274, 0.278),
        batch=BATCH,
    )


def letterboxed(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def write_inputs(folder: Path, pictures: np.ndarray, model, form: str) -> list[WorkItem]:
    folder.mkdir()
    arrays = to_model_input(pictures, input_contract(model, form))
    items = []
    for i, array in enumerate(arrays):
        path = folder / f"p_{i}.bin"
        write_raw(path, array)
        items.append(WorkItem(f"p_{i}", str(path), path.stat().st_size))
    return items


def run(backend: str, model, items: list[WorkItem], form: str, folder: Path, **options):
    """What `process` reports, and the device's own report."""
    folder.mkdir()
    there = BackendModel(backend, model, {**OPTIONS, **options})
    device = FileDevice(there, DeviceSettings(), input_contract(model, form), folder)
    device.warm_up()
    try:
        return device.process(items), device.report()
    finally:
        device.close()


def expected_heads(model, pictures: np.ndarray) -> list[np.ndarray]:
    """Of each picture alone, by the reference evaluator of ONNX."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load(str(model.path)))
    return evaluator.run(None, {"image": to_model_input(pictures, model.float_contract())})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("backend", "form"),
    [("onnxruntime", "f32"), ("onnxruntime", "u8"), ("openvino", "f32"), ("openvino", "u8")],
)
def test_outputs_are_the_networks(tmp_path, model, backend, form):
    pictures = letterboxed(BATCH + 2)
    items = write_inputs(tmp_path / "bins", pictures, model, form)
    report, times = run(backend, model, items, form, tmp_path / "out")
    assert report.done == tuple(item.id for item in items)
    assert report.failures == ()
    assert times.pictures == len(pictures)
    assert len(times.batch_ms) == 2  # the warm-up's time is not among them
    files = content(tmp_path / "out")
    assert files.keys() == {f"p_{i}_{k}.bin" for i in range(len(pictures)) for k in range(4)}
    for k, maps in enumerate(expected_heads(model, pictures)):
        for i, array in enumerate(maps):
            found = np.frombuffer(files[f"p_{i}_{k}.bin"], "<f4").reshape(array.shape)
            np.testing.assert_allclose(found, array, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values())
def test_torch_takes_both_forms(tmp_path, spec, form):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    model = spec(height=SIDE, width=SIDE, batch=BATCH)
    items = write_inputs(tmp_path / "bins", letterboxed(3), model, form)
    report, _ = run("torch", model, items, form, tmp_path / "out")
    assert len(report.done) == 3
    run("onnxruntime", model, items, form, tmp_path / "expected")
    expected = content(tmp_path / "expected")
    for name, found in content(tmp_path / "out").items():
        arrays = (np.frombuffer(part, "<f4") for part in (found, expected[name]))
        np.testing.assert_allclose(*arrays, rtol=0, atol=1e-2)


def test_bins_that_cannot_be_read_leave_the_others_alone(tmp_path, model):
    items = write_inputs(tmp_path / "bins", letterboxed(BATCH + 1), model, "f32")
    Path(items[0].path).write_bytes(b"short")
    Path(items[2].path).unlink()
    report, _ = run("onnxruntime", model, items, "f32", tmp_path / "out")
    assert report.done == ("p_1", "p_3", "p_4")
    assert [id for id, _ in report.failures] == ["p_0"]
    assert "5 bytes, expected 49152; run job=preprocess again" in report.failures[0][1]
    ((id, reason),) = report.doubtful  # another host may see it
    assert id == "p_2"
    assert reason == f"cannot be read: {items[2].path}: No such file or directory"
    good = [item for item in items if item.id in report.done]
    run("onnxruntime", model, good, "f32", tmp_path / "good")
    assert content(tmp_path / "out") == content(tmp_path / "good")


def test_a_folder_that_vanishes_is_one_line(tmp_path, model):
    items = write_inputs(tmp_path / "bins", letterboxed(1), model, "f32")
    there = BackendModel("onnxruntime", model, OPTIONS)
    device = FileDevice(there, DeviceSettings(), model.float_contract(), tmp_path / "none")
    device.warm_up()
    with pytest.raises(UserError, match=r"p_0_0\.bin: cannot be written"):
        device.process(items)
    device.close()


def test_pictures_with_outputs_that_are_not_finite_have_failed(tmp_path, model):
    items = write_inputs(tmp_path / "bins", letterboxed(BATCH + 1), model, "f32")
    values = np.fromfile(items[1].path, "<f4")
    values[5] = np.nan
    values.tofile(items[1].path)
    report, _ = run("onnxruntime", model, items, "f32", tmp_path / "out")
    assert report.done == ("p_0", "p_2", "p_3", "p_4")
    (doubtful,) = report.doubtful
    assert doubtful[0] == "p_1"
    assert "NaN or infinite values" in doubtful[1]
    assert not list((tmp_path / "out").glob("p_1_*"))
    assert len(content(tmp_path / "out")) == 16


def test_a_chunk_with_nothing_to_read_is_listed(tmp_path, model):
    items = [WorkItem("p", str(tmp_path / "none.bin"), 1)]
    report, times = run("onnxruntime", model, items, "f32", tmp_path / "out")
    assert report.done == ()
    assert [id for id, _ in report.doubtful] == ["p"]
    assert (times.pictures, times.batch_ms) == (0, [])


def test_an_onnx_for_bytes_takes_float_bins_too(tmp_path, model):
    network = onnx.load(str(model.path))
    picture = network.graph.input[0]
    picture.type.tensor_type.elem_type = TensorProto.UINT8
    for dim, side in zip(picture.type.tensor_type.shape.dim[1:], (SIDE, SIDE, 3), strict=True):
        dim.dim_value = side
    casts = [
        onnx.helper.make_node("Cast", ["image"], ["image.float"], to=TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", ["image.float"], ["image.nchw"], perm=[0, 3, 1, 2]),
    ]
    for node in network.graph.node:
        node.input[:] = ["image.nchw" if name == "image" else name for name in node.input]
    for node in reversed(casts):
        network.graph.node.insert(0, node)
    onnx.save(network, str(model.path))
    model = replace(model, sha256=sha256_of(model.path))

    for form in ("u8", "f32"):
        items = write_inputs(tmp_path / f"bins-{form}", letterboxed(BATCH), model, form)
        run("onnxruntime", model, items, form, tmp_path / form)
    assert content(tmp_path / "u8") == content(tmp_path / "f32")


@pytest.mark.slow
@pytest.mark.parametrize("aipp", [False, True])
def test_an_om_gives_what_the_tool_itself_gives(tmp_path, monkeypatch, model, aipp):
    """Batch, padding and names as `python -m ais_bench` has them, to the byte."""
    from cfdist.ascend import ToolCall, run_ais_bench

    install_double(monkeypatch)
    import aclruntime

    text = None
    if aipp:
        text = aipp_config(model)
    om = tmp_path / "net.om"
    aclruntime.make_om(model.path, om, BATCH, text)
    model = replace(model, path=om, sha256=sha256_of(om))
    form = "u8" if aipp else "f32"
    items = write_inputs(tmp_path / "bins", letterboxed(BATCH + 2), model, form)

    report, times = run("om", model, items, form, tmp_path / "out")
    run_ais_bench(om, tmp_path / "bins", tmp_path / "tool", BATCH, ToolCall())
    assert content(tmp_path / "out") == content(tmp_path / "tool")
    assert len(report.done) == BATCH + 2
    assert len(times.device_ms) == 2
    there = json.loads((tmp_path / "tool_summary.json").read_text())
    ours = summary([times.device_ms], BATCH)
    assert ours.keys() == there.keys()
    assert ours["NPU_compute_time"].keys() == there["NPU_compute_time"].keys()


def test_an_om_with_aipp_takes_float_bins_too(tmp_path, monkeypatch, model):
    """The pictures' bytes come back out of the normalised floats."""
    install_double(monkeypatch)
    import aclruntime

    text = aipp_config(model)
    om = aclruntime.make_om(model.path, tmp_path / "net.om", BATCH, text)
    model = replace(model, path=om, sha256=sha256_of(om))
    for form in ("u8", "f32"):
        items = write_inputs(tmp_path / f"bins-{form}", letterboxed(BATCH), model, form)
        run("om", model, items, form, tmp_path / form)
    assert content(tmp_path / "u8") == content(tmp_path / "f32")
