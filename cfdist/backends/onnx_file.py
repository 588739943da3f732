"""An ONNX file as the backends take it: checked, and with its real input shape declared."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from cfdist.backends.outputs import output_order, output_shapes
from cfdist.errors import UserError
from cfdist.model import ModelSpec

# The axis of the colours: float inputs are NCHW, bytes NHWC.
_COLOUR_AXIS: dict[int, int] = {onnx.TensorProto.FLOAT: 1, onnx.TensorProto.UINT8: 3}


def load_onnx(spec: ModelSpec) -> onnx.ModelProto:
    """Load a CenterFace ONNX with its input declared for any batch of the spec's size.

    The shapes that a file declares are often only the label of its export (the authors' file says
    10x3x32x32 and takes any); they are declared anew and the graph is checked to give the four
    head maps, or the peaks, at that size.

    Returns:
        The model. Its input is (batch, height, width, 3) uint8 BGR, normalised in the graph, if
        `takes_u8`, else (batch, 3, height, width) float32, normalised. Its outputs are in the order
        of `cfdist.backends.outputs.output_order`.

    Raises:
        UserError: not an ONNX file, an input that is no picture batch, outputs that are missing or
            of another network, or a graph whose inside is bound to another size.
    """
    model = _parse(spec.path)
    _make_weights_constant(model)
    _check_input(model, spec.path)
    sides = (spec.height, spec.width)
    shape = ("batch", *sides, 3) if takes_u8(model) else ("batch", 3, *sides)
    type_proto = model.graph.input[0].type
    elem_type = type_proto.tensor_type.elem_type
    type_proto.CopyFrom(onnx.helper.make_tensor_type_proto(elem_type, shape))
    outputs = list(model.graph.output)
    order = output_order([output.name for output in outputs], spec)
    del model.graph.output[:]
    model.graph.output.extend(outputs[i] for i in order)
    _check_output_shapes(model, spec)
    return model


def takes_u8(model: onnx.ModelProto) -> bool:
    """Whether a model takes letterboxed bytes, and not floats."""
    return bool(model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(
            f"model {path}: not a valid ONNX file ({reason[0] if reason else 'cannot be parsed'}); "
            "give an .onnx exported from CenterFace"
        ) from None
    return model


def _make_weights_constant(model: onnx.ModelProto) -> None:
    """Leave only real inputs among the graph's inputs.

    Old exporters list every weight there too; ONNX Runtime then folds no batch norm.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _check_input(model: onnx.ModelProto, path: Path) -> None:
    inputs = model.graph.input
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"model {path}: has {len(inputs)} inputs ({names}), CenterFace has one")
    kind, shape = inputs[0].type.tensor_type.elem_type, _shape(inputs[0])
    axis = _COLOUR_AXIS.get(kind)
    if axis is None or len(shape) != 4 or (shape[axis] != 3 and isinstance(shape[axis], int)):
        raise UserError(
            f"model {path}: input {inputs[0].name!r} is {onnx.TensorProto.DataType.Name(kind)} "
            f"({', '.join(map(str, shape))}), expected FLOAT (batch, 3, height, width) or UINT8 "
            "(batch, height, width, 3)"
        )


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    """The shape that a file declares; an axis without a number has a name, or "?"."""
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _check_output_shapes(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Infer the outputs' shapes from the new input and hold them to the expected ones."""
    expected = output_shapes(len(model.graph.output), spec)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    size = f"{spec.width}x{spec.height} pixels"
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {spec.path}: its graph does not take an input of {size} ({reason}); "
            "export it for that size or set model.height and model.width to its own"
        ) from None
    for output, sides in zip(inferred.graph.output, expected, strict=True):
        shape = _shape(output)
        if shape[1:] != list(sides) or isinstance(shape[0], int):
            raise UserError(
                f"model {spec.path}: output {output.name!r} has shape "
                f"({', '.join(map(str, shape))}) for an input of {size}, expected "
                f"(batch, {', '.join(map(str, sides))}); another network, or one exported for "
                "another size, batch or model.top_k"
            )
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
