"""An ONNX file as the backends take it: checked, and with its real input shape declared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from cfdist.decode import STRIDE, HeadMaps
from cfdist.errors import UserError
from cfdist.model import ModelSpec


def load_onnx(spec: ModelSpec) -> onnx.ModelProto:
    """Load a CenterFace ONNX with its input declared as (batch, 3, height, width).

    The shapes that a file declares are often only the label of its export (the authors' file says
    10x3x32x32 and takes any); they are declared anew and the graph is checked to give the four
    head maps at that size. Its outputs are ordered heat map, size, offset, landmarks.

    Raises:
        UserError: not an ONNX file, an input that is no picture batch, outputs that are missing or
            of another network, or a graph whose inside is bound to another size.
    """
    model = _parse(spec.path)
    _make_weights_constant(model)
    graph_input = _picture_input(model, spec.path)
    _order_outputs(model, spec)
    _declare_shape(graph_input, spec)
    _check_head_shapes(model, spec)
    return model


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


def _picture_input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    inputs = list(model.graph.input)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"model {path}: has {len(inputs)} inputs ({names}), CenterFace has one")
    shape = inputs[0].type.tensor_type.shape
    rank = len(shape.dim)
    if rank != 4:
        raise UserError(
            f"model {path}: input {inputs[0].name!r} has rank {rank}, "
            "expected 4 (batch, channels, height, width)"
        )
    if shape.dim[1].HasField("dim_value") and shape.dim[1].dim_value != 3:
        raise UserError(
            f"model {path}: input {inputs[0].name!r} has {shape.dim[1].dim_value} channels on its "
            "second axis, expected 3 (batch, 3, height, width)"
        )
    if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(inputs[0].type.tensor_type.elem_type)
        raise UserError(f"model {path}: input {inputs[0].name!r} is {kind}, expected FLOAT")
    return inputs[0]


def _order_outputs(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Bring the four outputs into the order of `HeadMaps` and drop any other."""
    there = {value.name: value for value in model.graph.output}
    wanted: Sequence[str] = spec.outputs or list(there)
    missing = [name for name in wanted if name not in there]
    if missing or len(wanted) != len(HeadMaps.CHANNELS):
        raise UserError(
            f"model {spec.path}: outputs are {_listed(there)}, expected "
            f"{_listed(wanted) if spec.outputs else 'four: heat map, size, offset, landmarks'}"
            f"{'; missing ' + _listed(missing) if missing else ''} "
            "(other names: model.outputs=[heatmap,size,offset,landmarks], null takes the file's)"
        )
    ordered = [there[name] for name in wanted]
    del model.graph.output[:]
    model.graph.output.extend(ordered)


def _declare_shape(graph_input: onnx.ValueInfoProto, spec: ModelSpec) -> None:
    dims = graph_input.type.tensor_type.shape.dim
    dims[0].Clear()
    dims[0].dim_param = "batch"
    for dim, size in zip(dims[1:], (3, spec.height, spec.width), strict=True):
        dim.Clear()
        dim.dim_value = size


def _check_head_shapes(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Infer the outputs' shapes from the new input and hold them to the head maps'."""
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    asked = f"(batch, 3, {spec.height}, {spec.width})"
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {spec.path}: its graph does not take an input of {asked} ({reason}); "
            "export it for that size or set model.height and model.width to its own"
        ) from None
    cells = (spec.height // STRIDE, spec.width // STRIDE)
    for output, channels, head in zip(
        inferred.graph.output, HeadMaps.CHANNELS, HeadMaps.__dataclass_fields__, strict=True
    ):
        shape = [d.dim_value or d.dim_param or "?" for d in output.type.tensor_type.shape.dim]
        if shape[1:] != [channels, *cells] or isinstance(shape[0], int):
            raise UserError(
                f"model {spec.path}: output {output.name!r} ({head}) has shape "
                f"({', '.join(map(str, shape))}) for an input of {asked}, expected "
                f"(batch, {channels}, {cells[0]}, {cells[1]}); export it with a free batch for "
                "that size, or set model.height and model.width to its own"
            )
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)


def _listed(names: Sequence[str] | dict) -> str:
    return ", ".join(repr(name) for name in names) or "none"
