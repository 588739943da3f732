"""What the quantiser is given, and what stays in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cfdist.errors import UserError
from cfdist.quantization.graph import fold_batch_norms, kept_operators, layers, load_float
from tests.fakes import onnx_forms

HEADS = ["heat", *onnx_forms.HEADS[1:]]


@pytest.fixture(scope="module")
def small(tmp_path_factory, spec):
    """A small network's file, as a model of 64x64."""
    path = onnx_forms.network(tmp_path_factory.mktemp("small") / "m.onnx")
    return spec(path, height=64, width=64, outputs=onnx_forms.HEADS)


def run(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def with_norms(groups: int = 1) -> onnx.ModelProto:
    """A transposed convolution without bias and a convolution with one, a batch norm behind each.

    The second batch norm's convolution is read elsewhere, too.
    """
    random = np.random.default_rng(1)
    weights = []

    def weight(name: str, *shape: int) -> str:
        values = random.uniform(0.2, 1, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def norm(source: str, output: str, channels: int):
        names = [weight(f"norm_{output}{i}", channels) for i in range(4)]
        return helper.make_node("BatchNormalization", [source, *names], [output], epsilon=0.01)

    up = weight("w1", 4, 6 // groups, 2, 2)
    nodes = [
        helper.make_node("ConvTranspose", ["x", up], ["a"], strides=[2, 2], group=groups),
        norm("a", "b", 6),
        helper.make_node("Conv", ["b", weight("w2", 5, 6, 1, 1), weight("b2", 5)], ["c"]),
        norm("c", "d", 5),
        helper.make_node("Conv", ["d", weight("w3", 2, 5, 1, 1)], ["e"]),
        norm("e", "f", 2),
        helper.make_node("Add", ["e", "f"], ["g"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 4, 3, 3])],
        [value("g", TensorProto.FLOAT, [1, 2, 6, 6])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_batch_norms_are_folded_where_nobody_else_reads_the_layer():
    model = with_norms()
    x = np.random.default_rng(2).normal(size=(1, 4, 3, 3)).astype(np.float32)
    (before,) = run(model, x)
    fold_batch_norms(model)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["ConvTranspose", "Conv", "Conv", "BatchNormalization", "Add"]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5)


def test_a_transposed_convolution_in_groups_is_refused():
    with pytest.raises(UserError, match="transposed convolution in 2 groups"):
        fold_batch_norms(with_norms(groups=2))


def test_the_authors_network_is_what_it_was(spec):
    found = load_float(spec(height=64, width=64))
    assert {node.op_type for node in found.graph.node} == {
        *("Conv", "ConvTranspose", "Relu", "Add", "Sigmoid")
    }
    assert [one.version for one in found.opset_import] == [13]
    used = {name for node in found.graph.node for name in node.input}
    assert {one.name for one in found.graph.initializer} <= used
    assert all(node.name == node.output[0] for node in found.graph.node)
    kept = kept_operators(found, ["heads", "first"], spec(height=64, width=64))
    assert kept == ["363", "366", "369", "371", "374", "536", "538", "539", "540"]
    x = np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 64)).astype(np.float32)
    before = run(onnx.load(str(spec().path)), np.resize(x, (10, 3, 32, 32)))
    found.graph.input[0].type.tensor_type.ClearField("shape")
    after = run(found, np.resize(x, (10, 3, 32, 32)))
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ([], []),
        (["heads"], HEADS),
        (["first"], ["scaled", "c1", "c2"]),
        (["ConvTranspose", "c3"], ["c3", "up"]),
        (["h?", "w[12]", "neck"], ["c1", "c2", "neck", *HEADS]),
        (["*"], None),
        (["nekc"], "'nekc' is no operator of .*m.onnx; did you mean neck"),
        (["Conv", "ConvTranspose"], "Conv, ConvTranspose leaves no layer of .*m.onnx"),
    ],
)
def test_what_stays_in_float32(small, keep, kept):
    model = load_float(small)
    assert len(layers(model)) == 9
    if isinstance(kept, list):
        assert kept_operators(model, keep, small) == kept
        return
    with pytest.raises(UserError, match=kept or "leaves no layer"):
        kept_operators(model, keep, small)


def refused(spec, path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_float(spec(path, height=64, width=64, outputs=onnx_forms.HEADS))
    return str(error.value)


def test_what_is_no_float32_network_is_refused(spec, small, tmp_path):
    half = onnx_forms.in_one_format(small.path, tmp_path / "half.onnx", TensorProto.FLOAT16)
    assert "half.onnx: computes in FLOAT16; give its float32 ONNX" in refused(spec, half)
    for form, operator in (("qdq", "DequantizeLinear"), ("qoperator", ""), ("dynamic", "")):
        int8 = onnx_forms.quantised(small.path, tmp_path / f"{form}.onnx", form)
        assert f"{form}.onnx: is quantised already ({operator}" in refused(spec, int8)
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    assert "no.onnx: not a valid ONNX file" in refused(spec, tmp_path / "no.onnx")
