"""An ONNX file as the backends take it: checked, and with its real input shape declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto

from cfdist.backends.onnx_operators import (
    CAST_FLOATS,
    cast_input,
    cast_output,
    foreign_operators,
    number_name,
    standard_operators,
)
from cfdist.backends.outputs import output_order, output_shapes
from cfdist.decode import PEAK_OUTPUTS
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.model.formats import ONNX, format_of
from cfdist.model.onnx_files import all_tensors, parse_graph, weight_files

_FREE_SIDES = (
    "for preprocess.size=own export it with free height and width (dynamic axes), or choose "
    "preprocess.size=letterbox"
)
# The axis of the colours: float inputs are NCHW, bytes NHWC.
_FLOATS: tuple[int, ...] = (TensorProto.FLOAT, *CAST_FLOATS)
_COLOUR_AXIS: dict[int, int] = {TensorProto.UINT8: 3} | dict.fromkeys(_FLOATS, 1)
# Heights and widths at which a graph is checked that has to take any.
_TRIED_SIZES = ((64, 96), (96, 64))
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)  # what cells can be


def load_onnx(spec: ModelSpec) -> onnx.ModelProto:
    """Load a CenterFace ONNX with its input declared for any batch of the spec's size.

    For pictures at their own size its sides are free, too.

    The shapes that a file declares are often only the label of its export (the authors' file says
    10x3x32x32 and takes any); they are declared anew and the graph is checked to give the four
    head maps, or the peaks, at that size. Inputs and outputs of other floats (float16, bfloat16,
    float64) become float32 ones that the graph casts, whatever it computes in. Weights in other
    files are read in.

    Returns:
        The model. Its input is (batch, height, width, 3) uint8 BGR, normalised in the graph, if
        `takes_u8`, else (batch, 3, height, width) float32, normalised. Its outputs are in the order
        of `cfdist.backends.outputs.output_order`.

    Raises:
        UserError: not an ONNX file, weights in other files that are not there, an input that is no
            picture batch, outputs that are missing or of another network, or a graph whose inside
            is bound to another size.
    """
    model = _parse(spec.path)
    _make_weights_constant(model)
    check_input(model, spec.path)
    if model.graph.input[0].type.tensor_type.elem_type in CAST_FLOATS:
        cast_input(model, TensorProto.FLOAT)
    outputs = list(model.graph.output)
    order = output_order([output.name for output in outputs], spec)
    del model.graph.output[:]
    model.graph.output.extend(outputs[i] for i in order)
    for height, width in _TRIED_SIZES if spec.size == "own" else [(spec.height, spec.width)]:
        _declare_input(model, height, width)
        _check_output_shapes(model, replace(spec, height=height, width=width))
    if spec.size == "own":
        _declare_input(model, "height", "width")
        for output in model.graph.output:
            for axis, name in ((2, "rows"), (3, "columns")):
                output.type.tensor_type.shape.dim[axis].dim_param = name
    for i, output in enumerate(model.graph.output):
        if output.type.tensor_type.elem_type in CAST_FLOATS:
            cast_output(model, i, TensorProto.FLOAT)
    return model


def _declare_input(model: onnx.ModelProto, height: int | str, width: int | str) -> None:
    """Declare the shape of the input anew; a side that is a name is free."""
    sides = (height, width)
    shape = ("batch", *sides, 3) if takes_u8(model) else ("batch", 3, *sides)
    type_proto = model.graph.input[0].type
    elem_type = type_proto.tensor_type.elem_type
    type_proto.CopyFrom(onnx.helper.make_tensor_type_proto(elem_type, shape))


def takes_u8(model: onnx.ModelProto) -> bool:
    """Whether a model takes letterboxed bytes, and not floats."""
    return bool(model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8)


def _parse(path: Path) -> onnx.ModelProto:
    """The checked model, with its weights.

    Raises:
        UserError: not an ONNX, or not all of its weights.
    """
    reason = "no ONNX graph is in it"
    try:
        model = parse_graph(path)
        if model is not None:
            weight_files(model, path)
            onnx.load_external_data_for_model(model, str(path.parent))
            if any(one.data_location == TensorProto.EXTERNAL for one in all_tensors(model)):
                raise ValueError("weights of a function or a sparse tensor in another file")
            onnx.checker.check_model(model)
            return model
    except UserError:
        raise
    except Exception as error:  # an arbitrary file can raise anything in a parser
        reason = (str(error).strip().splitlines() or ["cannot be parsed"])[0][:200]
    if (found := format_of(path)) and found is not ONNX:
        reason = f"it is {found.name}"
    raise UserError(
        f"model {path}: not a valid ONNX file ({reason}); give an .onnx exported from CenterFace"
    )


def _make_weights_constant(model: onnx.ModelProto) -> None:
    """Leave only real inputs among the graph's inputs.

    Old exporters list every weight there too; ONNX Runtime then folds no batch norm.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def check_input(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model whose input is no batch of pictures.

    Raises:
        UserError: it says what the input is.
    """
    inputs = model.graph.input
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"model {path}: has {len(inputs)} inputs ({names}), CenterFace has one")
    kind, shape = inputs[0].type.tensor_type.elem_type, _shape(inputs[0])
    axis = _COLOUR_AXIS.get(kind)
    if axis is None or len(shape) != 4 or (shape[axis] != 3 and isinstance(shape[axis], int)):
        raise UserError(
            f"model {path}: input {inputs[0].name!r} is {number_name(kind)} "
            f"({', '.join(map(str, shape))}), expected FLOAT (batch, 3, height, width), also "
            "FLOAT16, BFLOAT16 or DOUBLE, or UINT8 (batch, height, width, 3); export it so, and "
            "quantise the graph behind its input"
        )


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    """The shape that a file declares; an axis without a number has a name, or "?"."""
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _check_output_shapes(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Infer the outputs' shapes and number formats from the new input, and check both."""
    expected = output_shapes(len(model.graph.output), spec)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    size = f"{spec.width}x{spec.height} pixels"
    try:
        inferred = onnx.shape_inference.infer_shapes(
            standard_operators(model), strict_mode=True, data_prop=True
        )
    except Exception as error:  # a damaged graph can raise anything
        reason = " ".join(str(error).split())[:200]
        remedy = "export it for that size or set model.height and model.width to its own"
        if spec.size == "own":
            remedy = _FREE_SIDES
        raise UserError(
            f"model {spec.path}: its graph does not take an input of {size} ({reason}); {remedy}"
        ) from None
    foreign = foreign_operators(inferred)
    for i, (output, sides) in enumerate(zip(inferred.graph.output, expected, strict=True)):
        shape = _shape(output)
        if not shape and foreign:
            raise UserError(
                f"model {spec.path}: its operators {', '.join(foreign[:5])} are of no ONNX "
                "standard; give the ONNX as it was before a runtime's own tools optimised it"
            )
        if shape[1:] != list(sides) or isinstance(shape[0], int):
            raise UserError(
                f"model {spec.path}: output {output.name!r} has shape "
                f"({', '.join(map(str, shape))}) for an input of {size}, expected "
                f"(batch, {', '.join(map(str, sides))}); another network, or one exported for "
                "another size, batch or model.top_k"
                + (f": {_FREE_SIDES}" if spec.size == "own" else "")
            )
        is_cell = len(expected) == len(PEAK_OUTPUTS) and PEAK_OUTPUTS[i] == "cells"
        _check_number(output, _INTEGERS if is_cell else _FLOATS, spec)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)


def _check_number(output: onnx.ValueInfoProto, expected: Sequence[int], spec: ModelSpec) -> None:
    kind = output.type.tensor_type.elem_type
    if kind not in expected:
        raise UserError(
            f"model {spec.path}: output {output.name!r} is {number_name(kind)}, expected "
            f"{number_name(expected[0])}; export it with its outputs dequantised"
        )
