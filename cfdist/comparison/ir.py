"""An OpenVINO IR (.xml and .bin) as a graph whose tensors can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cfdist.backends.onnx_file import check_input, takes_u8
from cfdist.backends.openvino import compile_model, said_by
from cfdist.backends.outputs import output_order, output_shapes
from cfdist.errors import UserError
from cfdist.machine import available_cores
from cfdist.model import ModelSpec

if TYPE_CHECKING:
    import openvino as ov  # the import takes its time

Run = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]

# The name of an operator in ONNX, where OpenVINO has another one.
_OPERATORS = {
    "Convolution": "Conv",
    "GroupConvolution": "Conv",
    "ConvolutionBackpropData": "ConvTranspose",
    "GroupConvolutionBackpropData": "ConvTranspose",
    "BatchNormInference": "BatchNormalization",
    "FakeQuantize": "QuantizeLinear",
    "Convert": "Cast",
    "Clamp": "Clip",
    "Multiply": "Mul",
    "Subtract": "Sub",
    "Divide": "Div",
    "Maximum": "Max",
    "Minimum": "Min",
}
_BIASED = ("Conv", "ConvTranspose")  # their bias is an Add behind them
_BYTES = ("u8", "i8", "u4", "i4")
_DOMAIN = "openvino"  # of no ONNX standard, so that ONNX infers no shapes of its own
_NUMBERS = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "f64": TensorProto.DOUBLE,
    "u8": TensorProto.UINT8,
}


def read_ir(spec: ModelSpec) -> onnx.ModelProto:
    """The graph of an IR, without its weights' values, as `cfdist.comparison.topology` matches it.

    It is described, not translated: nothing can run it. Its tensors have the names that the IR
    keeps of the ONNX it was made from, or else OpenVINO's own.

    Returns:
        The input is (1, height, width, 3) uint8 or (1, 3, height, width) float, as `takes_u8` says;
        the outputs are in the order of `cfdist.backends.outputs.output_order`.

    Raises:
        UserError: OpenVINO cannot read the file, or it is no CenterFace of the spec's size.
    """
    model = _read(spec)
    graph = _Described(model).graph
    order = output_order([one.name for one in graph.output], spec)
    outputs = [graph.output[i] for i in order]
    for output, sides in zip(outputs, output_shapes(len(outputs), spec), strict=True):
        shape = tuple(d.dim_value for d in output.type.tensor_type.shape.dim)
        if shape[1:] != tuple(sides):
            raise UserError(
                f"model {spec.path}: output {output.name!r} has shape {shape} for an input of "
                f"{spec.width}x{spec.height} pixels, expected {(1, *sides)}; another network, or "
                "one for another size"
            )
    del graph.output[:]
    graph.output.extend(outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(_DOMAIN, 1)])


def load_ir(spec: ModelSpec, tensors: Sequence[str]) -> Run:
    """The part of an IR up to some tensors, named as `read_ir` names them, loaded on the CPU."""
    import openvino as ov

    model = _read(spec)
    ports = _Described(model).ports
    part = ov.Model([ports[name] for name in tensors], model.get_parameters(), "part")
    return loaded(part)


def loaded(model: ov.Model) -> Run:
    """A model loaded on the CPU: float32 or bytes in, its outputs out."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    # NumPy has no bfloat16, and OpenVINO hands its bits out as another type.
    processor = PrePostProcessor(model)
    if model.input().element_type != ov.Type.u8:
        processor.input().tensor().set_element_type(ov.Type.f32)
    for i, output in enumerate(model.outputs):
        if output.element_type == ov.Type.bf16:
            processor.output(i).tensor().set_element_type(ov.Type.f32)
    compiled = compile_model(processor.build(), available_cores(), 1, "f32")

    def run(inputs: NDArray[Any]) -> Sequence[NDArray[Any]]:
        found = compiled([inputs])
        return [found[i] for i in range(len(found))]

    return run


def _read(spec: ModelSpec) -> ov.Model:
    """The model for one picture of the spec's size."""
    import openvino as ov

    weights = spec.path.with_suffix(".bin")
    if not weights.is_file():
        raise UserError(
            f"model {spec.path}: its weights, {weights.name}, are not beside it; copy both files"
        )
    try:
        model = ov.Core().read_model(str(spec.path))
        inputs = [_value(port, port.node.friendly_name) for port in model.inputs]
        described = helper.make_model(helper.make_graph([], "inputs", inputs, []))
        check_input(described, spec.path)
        sides = (spec.height, spec.width)
        model.reshape([1, *sides, 3] if takes_u8(described) else [1, 3, *sides])
    except RuntimeError as error:
        raise UserError(
            f"model {spec.path}: OpenVINO cannot read it as a network for {spec.width}x"
            f"{spec.height} pixels ({said_by(error)}); convert it anew"
        ) from None
    return model


def _value(port: ov.Output, name: str) -> onnx.ValueInfoProto:
    """A tensor's name, numbers and shape; an axis without a number is free."""
    kind = _NUMBERS.get(port.element_type.to_string(), TensorProto.INT64)
    shape = [axis.get_length() if axis.is_static else "?" for axis in port.partial_shape]
    return helper.make_tensor_value_info(name, kind, shape)


class _Described:
    """An IR's operators as ONNX nodes, and where the IR has each tensor.

    Attributes:
        graph: The operators. What is computed from constants alone has the name of the first of
            these; an operator's bias is a part of it.
        ports: The outputs of the IR's operators, by the names that the graph gives them.
    """

    def __init__(self, model: ov.Model) -> None:
        self.graph = onnx.GraphProto(name="ir")
        self.ports: dict[str, ov.Output] = {}
        self._names: dict[tuple[str, int], str] = {}
        self._constants: set[str] = set()
        self._makers: dict[str, onnx.NodeProto] = {}
        for operator in model.get_ordered_ops():
            sources = [self._name(one.get_source_output()) for one in operator.inputs()]
            kind = operator.get_type_name()
            if kind == "Result":
                continue
            if kind == "Parameter":
                port = operator.output(0)
                self.graph.input.append(_value(port, self._name(port)))
            elif self._constants.issuperset(sources):
                self._add_constant(operator, sources)
            else:
                self._add(operator, sources)
        for result in model.get_results():
            port = result.input_value(0)
            self.graph.output.append(_value(port, self._name(port)))

    def _name(self, port: ov.Output) -> str:
        """The first of a tensor's names, or that of its operator; no two have the same."""
        key = (port.node.friendly_name, port.index)
        if key not in self._names:
            name = min(port.names, default=key[0])
            self._names[key] = name if name not in self.ports else f"{key[0]}:{key[1]}"
            self.ports[self._names[key]] = port
        return self._names[key]

    def _add_constant(self, operator: ov.Node, sources: list[str]) -> None:
        for port in operator.outputs():
            if sources:
                self._names[operator.friendly_name, port.index] = sources[0]
                continue
            name = self._name(port)
            self._constants.add(name)
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[0])
            self.graph.initializer.append(tensor)

    def _add(self, operator: ov.Node, sources: list[str]) -> None:
        """Add a node, or a bias to its layer."""
        kind = operator.get_type_name()
        data = [one for one in sources if one not in self._constants]
        before = self._makers.get(data[0]) if len(data) == 1 else None
        names = [self._name(port) for port in operator.outputs()]
        values = [_value(*one) for one in zip(operator.outputs(), names, strict=True)]
        self.graph.value_info.extend(values)
        if before is not None and self._is_bias(operator, before):
            before.input.extend(one for one in sources if one in self._constants)
            before.output[:] = names
            if before.op_type == "Mul":
                before.op_type = "BatchNormalization"
            return
        name = _OPERATORS.get(kind, kind)
        # Bytes become floats in three steps: Convert, Subtract, Multiply.
        if kind == "Convert" and operator.input_value(0).element_type.to_string() in _BYTES:
            name = "DequantizeLinear"
        elif kind in ("Subtract", "Multiply") and before is not None and before.name != "Multiply":
            name = before.op_type if before.op_type == "DequantizeLinear" else name
        self.graph.node.append(helper.make_node(name, sources, names, kind, domain=_DOMAIN))
        self._makers |= dict.fromkeys(names, self.graph.node[-1])

    def _is_bias(self, operator: ov.Node, layer: onnx.NodeProto) -> bool:
        """Whether an operator adds a constant a channel to a layer that nobody else reads.

        A batch norm that is folded into no layer is such a product with its bias.
        """
        if operator.get_type_name() != "Add":
            return False
        channels = operator.output(0).shape[1]
        factors = [one for one in layer.input if one in self._constants]
        is_scale = layer.op_type == "Mul" and any(
            prod(self.ports[one].get_shape()) == channels for one in factors
        )
        if layer.op_type not in _BIASED and not is_scale:
            return False
        sizes = [prod(one.get_shape()) for one in operator.inputs()]
        readers = self.ports[layer.output[0]].get_target_inputs()
        return len(readers) == 1 and min(sizes) in (1, channels)
