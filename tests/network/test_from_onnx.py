"""The authors' ONNX in PyTorch against the same file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from cfdist.backends.base import DeviceSettings  # noqa: E402
from cfdist.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from cfdist.errors import UserError  # noqa: E402
from cfdist.model import ModelSpec  # noqa: E402
from cfdist.network.centerface import fold_batch_norms  # noqa: E402
from cfdist.network.from_onnx import load_onnx_network  # noqa: E402
from cfdist.preprocess import to_model_input  # noqa: E402
from tests.network.conftest import AUTHORS_OUTPUTS  # noqa: E402


def authors_spec(path: Path) -> ModelSpec:
    return ModelSpec(
        name="centerface",
        path=path,
        sha256="",
        convention="centerface",
        outputs=AUTHORS_OUTPUTS,
        height=800,
        width=800,
        color="RGB",
        scale=1.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        batch=1,
        top_k=200,
        nms=0.3,
    )


def test_outputs_on_real_pictures_are_onnx_runtimes(authors_onnx, letterboxed):
    settings = DeviceSettings(threads=1, options={"providers": ["CPUExecutionProvider"]})
    backend = OnnxRuntimeBackend(authors_spec(authors_onnx), settings)
    inputs = to_model_input(letterboxed, backend.contract)
    expected = backend.infer(inputs)
    network = load_onnx_network(authors_onnx, AUTHORS_OUTPUTS).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        heads = network(torch.from_numpy(inputs))
    for name, head in zip(("hm", "wh", "offset", "landmarks"), heads, strict=True):
        there = getattr(expected, name)
        # Relative to the head's range: both runtimes are up to 2e-4 from float64 in `wh`.
        tolerance = 1e-4 * max(1.0, float(np.abs(there).max()))
        np.testing.assert_allclose(head.numpy(), there, rtol=0, atol=tolerance)


def test_folding_gives_the_files_own_weights_back(authors_onnx):
    folded = fold_batch_norms(load_onnx_network(authors_onnx, AUTHORS_OUTPUTS)).state_dict()
    ours = [value.numpy() for value in folded.values()]
    graph = onnx.load(str(authors_onnx)).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            for name in node.input[1:]:
                assert any(np.array_equal(tensors[name], value) for value in ours), name


def rewritten(source: Path, target: Path, change) -> Path:
    model = onnx.load(str(source))
    change(model.graph)
    onnx.save(model, str(target))
    return target


def refusal(path: Path, outputs=AUTHORS_OUTPUTS) -> str:
    with pytest.raises(UserError) as caught:
        load_onnx_network(path, outputs)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_heads_go_by_name(authors_onnx, tmp_path):
    def reverse(graph):
        for value in list(graph.output):
            graph.output.insert(0, value)
        del graph.output[4:]

    path = rewritten(authors_onnx, tmp_path / "m.onnx", reverse)
    expected = load_onnx_network(authors_onnx, AUTHORS_OUTPUTS).state_dict()
    actual = load_onnx_network(path, AUTHORS_OUTPUTS).state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert "expected" in refusal(path, None)  # the file's order: landmarks first


def test_other_graphs(authors_onnx, tmp_path):
    def rename_relu(graph):
        next(node for node in graph.node if node.op_type == "Relu").op_type = "Tanh"

    def drop_output(graph):
        del graph.output[3]

    def regroup(graph):
        for node in graph.node:
            if node.op_type == "Conv" and node.output[0] == "363":
                next(a for a in node.attribute if a.name == "strides").ints[:] = [1, 1]

    def unbind(graph):
        bias = next(t for t in graph.initializer if t.name == "544")
        graph.initializer.remove(bias)

    def cut_batch_norm(graph):
        node = next(node for node in graph.node if node.op_type == "BatchNormalization")
        gamma = next(t for t in graph.initializer if t.name == node.input[1])
        gamma.CopyFrom(onnx.numpy_helper.from_array(np.ones(5, np.float32), gamma.name))

    target = tmp_path / "m.onnx"
    assert "do not fit together" in refusal(rewritten(authors_onnx, target, cut_batch_norm))
    assert "operators Tanh" in refusal(rewritten(authors_onnx, target, rename_relu))
    assert "expected four" in refusal(rewritten(authors_onnx, target, drop_output))
    assert "convolution '363'" in refusal(rewritten(authors_onnx, target, regroup))
    assert "that are no constants" in refusal(rewritten(authors_onnx, target, unbind))
    assert "outputs 537, 538" in refusal(authors_onnx, ("a", "b", "c", "d"))


def test_not_an_onnx(tmp_path):
    path = tmp_path / "m.onnx"
    assert "No such file" in refusal(path)
    for content in (b"", b"version https://git-lfs.github.com", bytes(range(256))):
        path.write_bytes(content)
        assert "not a valid ONNX file" in refusal(path)
