"""The authors' ONNX in PyTorch against the same file in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from cfdist.backends.base import DeviceSettings  # noqa: E402
from cfdist.backends.onnx_file import load_onnx  # noqa: E402
from cfdist.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from cfdist.errors import UserError  # noqa: E402
from cfdist.model import ModelSpec  # noqa: E402
from cfdist.network.centerface import CenterFace, fold_batch_norms  # noqa: E402
from cfdist.network.from_onnx import load_onnx_network  # noqa: E402
from cfdist.preprocess import to_model_input  # noqa: E402


def load(spec: ModelSpec) -> CenterFace:
    return load_onnx_network(load_onnx(spec), spec.path)


def test_outputs_on_real_pictures_are_onnx_runtimes(spec, letterboxed):
    settings = DeviceSettings(threads=1, options={"providers": ["CPUExecutionProvider"]})
    backend = OnnxRuntimeBackend(spec(), settings)
    inputs = to_model_input(letterboxed, backend.contract)
    expected = backend.infer(inputs)
    network = load(spec()).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        heads = network(torch.from_numpy(inputs))
    for name, head in zip(("hm", "wh", "offset", "landmarks"), heads, strict=True):
        there = getattr(expected, name)
        # Relative to the head's range: both runtimes are up to 2e-4 from float64 in `wh`.
        tolerance = 1e-4 * max(1.0, float(np.abs(there).max()))
        np.testing.assert_allclose(head.numpy(), there, rtol=0, atol=tolerance)


def test_folding_gives_the_files_own_weights_back(authors_onnx, spec):
    folded = fold_batch_norms(load(spec())).state_dict()
    ours = [value.numpy() for value in folded.values()]
    graph = onnx.load(str(authors_onnx)).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            for name in node.input[1:]:
                assert any(np.array_equal(tensors[name], value) for value in ours), name


def rewritten(source: Path, change) -> onnx.ModelProto:
    model = onnx.load(str(source))
    change(model.graph)
    return model


def test_heads_go_by_name(authors_onnx, spec, tmp_path):
    def reverse(graph):
        for value in list(graph.output):
            graph.output.insert(0, value)
        del graph.output[4:]

    path = tmp_path / "m.onnx"
    onnx.save(rewritten(authors_onnx, reverse), str(path))
    expected, actual = load(spec()).state_dict(), load(spec(path)).state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    with pytest.raises(UserError, match="expected"):
        load(spec(path, outputs=None))  # the file's order: landmarks first


def test_other_graphs(authors_onnx):
    def rename_relu(graph):
        next(node for node in graph.node if node.op_type == "Relu").op_type = "Tanh"

    def name_another_output(graph):
        graph.output[3].name = "365"

    def drop_a_convolution(graph):
        graph.node.remove(next(node for node in graph.node if node.op_type == "Conv"))

    def change_stride(graph):
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

    for change, found in {
        rename_relu: "operators Tanh",
        name_another_output: "no convolution gives output '365'",
        drop_a_convolution: "62 convolutions, expected 63",
        change_stride: "convolution '363' has (weights, bias, stride, groups) ((32, 3, 3, 3), ",
        unbind: "weights '544' that are no constants",
        cut_batch_norm: "do not fit together",
    }.items():
        with pytest.raises(UserError) as caught:
            load_onnx_network(rewritten(authors_onnx, change), authors_onnx)
        message = str(caught.value)
        assert found in message
        assert str(authors_onnx) in message
        assert "\n" not in message
