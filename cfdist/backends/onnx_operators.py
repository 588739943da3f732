"""ONNX graphs of other number formats than float32, made such that every runtime takes them.

Quantised graphs come in three forms (https://onnxruntime.ai/docs/performance/model-optimizations/
quantization.html): QDQ, which is float32 operators between QuantizeLinear and DequantizeLinear;
QOperator, whose operators compute with bytes and are partly ONNX Runtime's own; dynamic, which
chooses its scales for each batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import NodeProto, TensorProto, helper

from cfdist.model.onnx_files import all_tensors

CAST_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

# Operators and numbers for which every runtime here has kernels.
_PLAIN_OPERATORS = frozenset(
    [
        *("Add", "Sub", "Mul", "Div", "Equal", "Cast", "Constant", "Identity"),
        *("Conv", "ConvTranspose", "BatchNormalization", "Relu", "Clip", "Sigmoid", "MaxPool"),
        *("Concat", "Gather", "GatherElements", "Reshape", "TopK", "Transpose"),
    ]
)
_PLAIN_NUMBERS = frozenset(
    {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
)
_WIDE_NUMBERS = frozenset({TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32})
_STANDARD_DOMAINS = ("", "ai.onnx")
_OF_MICROSOFT = "com.microsoft"


def number_name(kind: int) -> str:
    """The name of an ONNX number format: "FLOAT16"."""
    names = {value: name for name, value in TensorProto.DataType.items()}
    return str(names.get(kind, f"type {kind}"))


def odd_parts(model: onnx.ModelProto) -> list[str]:
    """The number formats and operators that not every runtime has kernels for, by name."""
    kinds = {tensor.data_type for tensor in all_tensors(model)}
    kinds |= {value.type.tensor_type.elem_type for value in model.graph.output}
    casts = [a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute]
    numbers = {number_name(kind) for kind in {*kinds, *casts} - _PLAIN_NUMBERS - {0}}
    operators = {
        node.op_type
        for node in model.graph.node
        if node.op_type not in _PLAIN_OPERATORS or node.domain not in _STANDARD_DOMAINS
    }
    # A graph that takes u8 pictures is as plain as one that takes floats.
    return [*sorted(numbers - {"UINT8"}), *sorted(operators)]


def quantised_operators(model: onnx.ModelProto) -> list[str]:
    """The operators that make a graph a quantised one, each once, by name."""
    names = {node.op_type for node in model.graph.node}
    return sorted(name for name in names if "uantizeLinear" in name or "QLinear" in name or
                  name.endswith("Integer"))  # fmt: skip


def wide_roundings(model: onnx.ModelProto) -> list[str]:
    """The number formats of more than a byte to which QuantizeLinear rounds, by name."""
    kinds = {tensor.name: tensor.data_type for tensor in all_tensors(model)}
    constants = (node for node in model.graph.node if node.op_type == "Constant")
    kinds |= {node.output[0]: node.attribute[0].t.data_type for node in constants}
    found = set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found |= {one.i for one in node.attribute if one.name == "output_dtype"}
            found |= {kinds.get(name, 0) for name in node.input[2:]}
    return sorted(number_name(kind) for kind in found & _WIDE_NUMBERS)


def foreign_operators(model: onnx.ModelProto) -> list[str]:
    """The operators that no ONNX standard knows, as "domain.name", each once."""
    nodes = (node for node in model.graph.node if node.domain not in _STANDARD_DOMAINS)
    return sorted({f"{node.domain}.{node.op_type}" for node in nodes})


def cast_input(model: onnx.ModelProto, kind: int) -> None:
    """Give the graph's only input another number format, which is cast to the old one."""
    value = model.graph.input[0]
    old = value.type.tensor_type.elem_type
    inner = _unused_name(model, f"{value.name}_{number_name(old)}")
    _rename_inputs(model.graph.node, value.name, inner)
    model.graph.node.insert(0, helper.make_node("Cast", [value.name], [inner], inner, to=old))
    value.type.tensor_type.elem_type = kind


def cast_output(model: onnx.ModelProto, index: int, kind: int) -> None:
    """Give one of the graph's outputs another number format, cast from its own."""
    value = model.graph.output[index]
    inner = _unused_name(model, f"{value.name}_{index}")
    _rename_inputs(model.graph.node, value.name, inner)
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == value.name:
                node.output[i] = inner
    model.graph.node.append(helper.make_node("Cast", [inner], [value.name], inner, to=kind))
    value.type.tensor_type.elem_type = kind


def standard_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without ONNX Runtime's own quantised operators: the model itself if it has none.

    Each becomes what it stands for: DequantizeLinear, the float32 operator, QuantizeLinear. The
    numbers are the same but for the rounding of the last bit of a byte.
    """
    if not any(node.domain == _OF_MICROSOFT for node in model.graph.node):
        return model
    standard = onnx.ModelProto()
    standard.CopyFrom(model)
    nodes = [part for node in standard.graph.node for part in _standard_nodes(node)]
    del standard.graph.node[:]
    standard.graph.node.extend(nodes)
    return standard


def _standard_nodes(node: NodeProto) -> list[NodeProto]:
    """What one of ONNX Runtime's own quantised operators stands for; others stay."""
    if node.domain != _OF_MICROSOFT:
        return [node]
    inputs = list(node.input)
    match node.op_type:
        case "QuantizeLinear" | "DequantizeLinear":
            same = NodeProto()
            same.CopyFrom(node)
            same.domain = ""
            return [same]
        case "QLinearAdd" | "QLinearMul":
            operands, scale = [inputs[0:3], inputs[3:6]], inputs[6:8]
        case "QLinearSigmoid" | "QLinearLeakyRelu":
            operands, scale = [inputs[0:3]], inputs[3:5]
        case "QLinearConcat":
            operands = [inputs[i : i + 3] for i in range(2, len(inputs), 3)]
            scale = inputs[0:2]
        case _:
            return [node]
    result = node.output[0]
    floats = [f"{result}_float{i}" for i in range(len(operands))]
    computed = NodeProto(
        op_type=node.op_type.removeprefix("QLinear"), input=floats, output=[f"{result}_float"]
    )
    computed.attribute.extend(node.attribute)
    return [
        *(
            helper.make_node("DequantizeLinear", operand, [name], name)
            for operand, name in zip(operands, floats, strict=True)
        ),
        computed,
        helper.make_node("QuantizeLinear", [computed.output[0], *scale], [result]),
    ]


def _rename_inputs(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    """Have all nodes read another tensor, also those inside of loops and branches."""
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for attribute in node.attribute:
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _rename_inputs(graph.node, old, new)


def _unused_name(model: onnx.ModelProto, wish: str) -> str:
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    while wish in taken:
        wish += "_"
    return wish
