"""A small network with CenterFace's outputs, and the forms in which people have such a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT = "image"
HEADS = ("output1", "output2", "output3", "output4")
DTYPES = {
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.DOUBLE: np.float64,
}


def network(path: Path, *, size: object = "side", seed: int = 0) -> Path:
    """Convolutions to stride 8, a transposed one back to 4, an addition, and four heads."""
    random = np.random.default_rng(seed)
    nodes, weights = [], []

    def weight(name: str, *shape: int) -> str:
        values = random.normal(0, 1.4 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def node(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    # The heads' sizes stay small for pictures of 0 to 255.
    weights.append(numpy_helper.from_array(np.full((3, 3, 1, 1), 1 / 255, np.float32), "gray"))
    x = node("Conv", [INPUT, "gray"], "scaled")
    three = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    x = node("Relu", [node("Conv", [x, weight("w1", 8, 3, 3, 3)], "c1", **three)], "r1")
    tap = node("Relu", [node("Conv", [x, weight("w2", 8, 8, 3, 3)], "c2", **three)], "r2")
    x = node("Relu", [node("Conv", [tap, weight("w3", 8, 8, 3, 3)], "c3", **three)], "r3")
    x = node("ConvTranspose", [x, weight("w4", 8, 8, 2, 2)], "up", strides=[2, 2])
    x = node("Relu", [node("Add", [x, tap], "sum")], "neck")
    node("Sigmoid", [node("Conv", [x, weight("h1", 1, 8, 1, 1)], "heat")], HEADS[0])
    for i, channels in ((2, 2), (3, 2), (4, 10)):
        node("Conv", [x, weight(f"h{i}", channels, 8, 1, 1)], HEADS[i - 1])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value(INPUT, TensorProto.FLOAT, ["n", 3, size, size])],
        [value(name, TensorProto.FLOAT, [None] * 4) for name in HEADS],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def in_one_format(source: Path, path: Path, kind: int) -> Path:
    """All floats of a network, inputs and outputs too, in another format."""
    model = onnx.load(str(source))
    for weight in model.graph.initializer:
        with np.errstate(over="ignore"):  # variances past float16, as converters write them
            values = numpy_helper.to_array(weight).astype(DTYPES[kind])
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = kind
    onnx.save(model, str(path))
    return path


def with_float16_inside(source: Path, path: Path, ends: str) -> Path:
    """The float16 network whose "inputs" or "outputs" are float32 all the same."""
    model = onnx.load(str(in_one_format(source, path, TensorProto.FLOAT16)))
    nodes = model.graph.node
    if ends == "inputs":
        nodes[0].input[0] = "half"
        nodes.insert(0, helper.make_node("Cast", [INPUT], ["half"], to=TensorProto.FLOAT16))
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    else:
        for output in model.graph.output:
            maker = next(node for node in nodes if output.name in node.output)
            maker.output[0] = f"half_{output.name}"
            cast = helper.make_node("Cast", [maker.output[0]], [output.name], to=TensorProto.FLOAT)
            nodes.append(cast)
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, str(path))
    return path


class _Pictures:
    """Random pictures to find the range of the numbers with."""

    def __init__(self, size: int, scale: float) -> None:
        random = np.random.default_rng(5)
        small = random.uniform(0, scale, (4, 3, 8, 8)).astype(np.float32)
        whole = small.repeat(size // 8, axis=2).repeat(size // 8, axis=3)
        self._pictures = iter([{INPUT: one[None]} for one in whole])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._pictures, None)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._pictures


def quantised(source: Path, path: Path, form: str, size: int = 64, wide: bool = False) -> Path:
    """A network in int8: "qdq", "qoperator" or "dynamic"; activations in 16 bits if `wide`."""
    from onnxruntime import quantization

    if form == "dynamic":
        quantization.quantize_dynamic(
            str(source), str(path), op_types_to_quantize=["Conv"],
            weight_type=quantization.QuantType.QUInt8,
        )  # fmt: skip
        return path
    formats = {
        "qdq": quantization.QuantFormat.QDQ,
        "qoperator": quantization.QuantFormat.QOperator,
    }
    reader = _Pictures(size, 255.0)
    kind = quantization.QuantType.QUInt16 if wide else quantization.QuantType.QUInt8
    quantization.quantize_static(
        str(source), str(path), reader, quant_format=formats[form], activation_type=kind
    )
    return path


def external(source: Path, path: Path, location: str = "weights.bin") -> Path:
    """A network with all weights in a second file."""
    onnx.save_model(
        onnx.load(str(source)), str(path), save_as_external_data=True, location=location,
        size_threshold=0,
    )  # fmt: skip
    return path
