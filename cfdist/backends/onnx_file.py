"""An ONNX file as the backends take it: checked, and with its real input shape declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from cfdist.backends.base import listed
from cfdist.decode import PEAK_OUTPUTS, PEAK_VALUES, STRIDE, HeadMaps, Peaks, graph_peaks
from cfdist.errors import UserError
from cfdist.model import ModelSpec

# Which axis holds the colours: float inputs are NCHW, bytes NHWC.
_CHANNEL_AXIS: dict[int, int] = {onnx.TensorProto.FLOAT: 1, onnx.TensorProto.UINT8: 3}


@dataclass(frozen=True)
class OnnxNetwork:
    """A checked CenterFace ONNX.

    Attributes:
        model: Its outputs in the order of `HeadMaps`, or of `Peaks` (score, cell, values).
        takes_u8: The input is (batch, height, width, 3) uint8 BGR, normalised in the graph; else
            (batch, 3, height, width) float32, normalised.
        gives_peaks: The graph picks the peaks itself.
    """

    model: onnx.ModelProto
    takes_u8: bool
    gives_peaks: bool


def load_onnx(spec: ModelSpec) -> OnnxNetwork:
    """Load a CenterFace ONNX with its input declared for any batch of the spec's size.

    The shapes that a file declares are often only the label of its export (the authors' file says
    10x3x32x32 and takes any); they are declared anew and the graph is checked to give the four
    head maps, or the peaks, at that size.

    Raises:
        UserError: not an ONNX file, an input that is no picture batch, outputs that are missing or
            of another network, or a graph whose inside is bound to another size.
    """
    model = _parse(spec.path)
    _make_weights_constant(model)
    graph_input = _picture_input(model, spec.path)
    takes_u8 = graph_input.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    gives_peaks = {value.name for value in model.graph.output} == set(PEAK_OUTPUTS)
    _order_outputs(model, spec, PEAK_OUTPUTS if gives_peaks else None)
    sides = (spec.height, spec.width)
    _declare_shape(graph_input, (*sides, 3) if takes_u8 else (3, *sides))
    if gives_peaks:
        expected = [(spec.top_k,), (spec.top_k,), (spec.top_k, PEAK_VALUES)]
    else:
        cells = (spec.height // STRIDE, spec.width // STRIDE)
        expected = [(channels, *cells) for channels in HeadMaps.CHANNELS]
    _check_output_shapes(model, spec, expected)
    return OnnxNetwork(model, takes_u8, gives_peaks)


def as_result(outputs: Sequence[NDArray[Any]], spec: ModelSpec) -> HeadMaps | Peaks:
    """Outputs of an `OnnxNetwork`, in its order, as head maps or as peaks."""
    if len(outputs) == len(PEAK_OUTPUTS):
        score, cell, values = outputs
        return graph_peaks(score, cell, values)
    return HeadMaps(*outputs)


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
    inputs: list[onnx.ValueInfoProto] = list(model.graph.input)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"model {path}: has {len(inputs)} inputs ({names}), CenterFace has one")
    tensor = inputs[0].type.tensor_type
    rank = len(tensor.shape.dim)
    if rank != 4:
        raise UserError(
            f"model {path}: input {inputs[0].name!r} has rank {rank}, "
            "expected 4 (batch, channels, height, width)"
        )
    if tensor.elem_type not in _CHANNEL_AXIS:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UserError(
            f"model {path}: input {inputs[0].name!r} is {kind}, expected FLOAT (as NCHW) or UINT8 "
            "(as NHWC)"
        )
    axis = _CHANNEL_AXIS[tensor.elem_type]
    channels = tensor.shape.dim[axis]
    if channels.HasField("dim_value") and channels.dim_value != 3:
        raise UserError(
            f"model {path}: input {inputs[0].name!r} has {channels.dim_value} channels on its "
            f"axis {axis}, expected 3 colours there"
        )
    return inputs[0]


def _order_outputs(model: onnx.ModelProto, spec: ModelSpec, known: Sequence[str] | None) -> None:
    """Bring the outputs into the order of `HeadMaps`, or of `known` names, and drop any other.

    The spec's names decide where the file has one of them; else the file's own order does.
    """
    there = {value.name: value for value in model.graph.output}
    wanted = list(known or spec.outputs or there)
    if not any(name in there for name in wanted):
        wanted = list(there)
    missing = [name for name in wanted if name not in there]
    if missing or len(wanted) != len(known or HeadMaps.CHANNELS):
        raise UserError(
            f"model {spec.path}: outputs are {listed(there)}, expected "
            f"{listed(wanted) if missing else 'four: heat map, size, offset, landmarks'}"
            f"{'; missing ' + listed(missing) if missing else ''} "
            "(other names: model.outputs=[heatmap,size,offset,landmarks], null takes the file's)"
        )
    ordered = [there[name] for name in wanted]
    del model.graph.output[:]
    model.graph.output.extend(ordered)


def _declare_shape(graph_input: onnx.ValueInfoProto, sides: Sequence[int]) -> None:
    dims = graph_input.type.tensor_type.shape.dim
    dims[0].Clear()
    dims[0].dim_param = "batch"
    for dim, size in zip(dims[1:], sides, strict=True):
        dim.Clear()
        dim.dim_value = size


def _check_output_shapes(
    model: onnx.ModelProto, spec: ModelSpec, expected: Sequence[tuple[int, ...]]
) -> None:
    """Infer the outputs' shapes from the new input and hold them to the expected ones."""
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
        shape = [d.dim_value or d.dim_param or "?" for d in output.type.tensor_type.shape.dim]
        if shape[1:] != list(sides) or isinstance(shape[0], int):
            raise UserError(
                f"model {spec.path}: output {output.name!r} has shape "
                f"({', '.join(map(str, shape))}) for an input of {size}, expected "
                f"(batch, {', '.join(map(str, sides))}); another network, or one exported for "
                "another size, batch or model.top_k"
            )
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
