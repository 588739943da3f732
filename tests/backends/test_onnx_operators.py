"""Graphs of other numbers than float32: their names, their ends, their standard form."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cfdist.backends.onnx_operators import (
    cast_input,
    cast_output,
    foreign_operators,
    odd_parts,
    quantised_operators,
    standard_operators,
)
from tests.fakes import onnx_forms

PICTURE = np.random.default_rng(0).uniform(0, 255, (2, 3, 64, 64)).astype(np.float32)


def run(model: onnx.ModelProto, picture=PICTURE) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": picture})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return onnx_forms.network(tmp_path_factory.mktemp("source") / "m.onnx", size=64)


def test_a_float32_network_has_nothing_odd(source):
    model = onnx.load(str(source))
    assert odd_parts(model) == quantised_operators(model) == foreign_operators(model) == []
    assert standard_operators(model) is model


def test_float16_ends_become_float32(source, tmp_path):
    path = onnx_forms.in_one_format(source, tmp_path / "half.onnx", TensorProto.FLOAT16)
    model = onnx.load(str(path))
    expected = run(model, PICTURE.astype(np.float16))
    cast_input(model, TensorProto.FLOAT)
    for i in range(4):
        cast_output(model, i, TensorProto.FLOAT)
    assert odd_parts(model) == ["FLOAT16"]
    onnx.checker.check_model(model, full_check=True)
    for a, b in zip(run(model), expected, strict=True):
        assert a.dtype == np.float32
        # The runtime leaves out a cast to float16 and back, and its rounding.
        np.testing.assert_allclose(a, b.astype(np.float32), rtol=0, atol=2e-3 * np.abs(b).max())


def test_an_output_that_the_graph_reads_too_keeps_its_reader():
    half = TensorProto.FLOAT16
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["a"]), helper.make_node("Neg", ["a"], ["b"])],
        "g",
        [value("image", half, [2])],
        [value("a", half, [2]), value("b", half, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    cast_output(model, 0, TensorProto.FLOAT)
    onnx.checker.check_model(model, full_check=True)
    a, b = run(model, np.array([1, -2], np.float16))
    assert (a.dtype, b.dtype) == (np.float32, np.float16)
    assert a.tolist() == [1, 0]
    assert b.tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("form", "operators"),
    [
        ("qdq", ["DequantizeLinear", "QuantizeLinear"]),
        ("dynamic", ["ConvInteger", "DynamicQuantizeLinear"]),
    ],
)
def test_quantised_graphs_are_known_by_their_operators(source, tmp_path, form, operators):
    model = onnx.load(str(onnx_forms.quantised(source, tmp_path / "q.onnx", form)))
    assert quantised_operators(model) == operators
    assert set(operators) <= set(odd_parts(model))
    assert not foreign_operators(model)


def test_onnx_runtime_s_own_operators_get_a_standard_form(source, tmp_path):
    path = onnx_forms.quantised(source, tmp_path / "q.onnx", "qoperator")
    model = onnx.load(str(path))
    assert "com.microsoft.QLinearAdd" in foreign_operators(model)
    standard = standard_operators(model)
    assert foreign_operators(standard) == []
    for a, b in zip(run(model), run(standard), strict=True):
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("operator", ["Add", "Mul", "Sigmoid", "LeakyRelu", "Concat"])
def test_each_standard_form_gives_the_operator_s_numbers(operator):
    scale = {"s": 0.05, "t": 0.02, "y": 0.04}
    zero = np.array(7, np.uint8)
    weights = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in scale.items()]
    weights.append(numpy_helper.from_array(zero, "z"))
    two = ["a", "s", "z", "b", "t", "z"]
    inputs = {"Sigmoid": ["a", "s", "z", "y", "z"], "LeakyRelu": ["a", "s", "z", "y", "z"]}
    inputs |= {"Concat": ["y", "z", *two]}
    extra = {"LeakyRelu": {"alpha": 0.3}, "Concat": {"axis": 1}}.get(operator, {})
    node = helper.make_node(
        f"QLinear{operator}", inputs.get(operator, [*two, "y", "z"]), ["out"],
        domain="com.microsoft", **extra,
    )  # fmt: skip
    value = helper.make_tensor_value_info
    names = ["a"] if operator in ("Sigmoid", "LeakyRelu") else ["a", "b"]
    graph = helper.make_graph(
        [node],
        "g",
        [value(name, TensorProto.UINT8, [2, 50]) for name in names],
        [value("out", TensorProto.UINT8, [2, None])],
        weights,
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    random = np.random.default_rng(3)
    feed = {name: random.integers(0, 256, (2, 50), np.uint8) for name in names}
    both = []
    for each in (model, standard_operators(model)):
        session = ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        both.append(session.run(None, feed)[0].astype(int))
    assert np.abs(both[0] - both[1]).max() <= 1
    assert both[0].std() > 1
