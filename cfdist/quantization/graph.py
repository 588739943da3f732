"""A float32 ONNX as the quantiser takes it, and the operators that stay in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from cfdist.backends.onnx_file import load_onnx
from cfdist.backends.onnx_operators import odd_parts, quantised_operators
from cfdist.errors import UserError, did_you_mean
from cfdist.model import ModelSpec

OPSET = 13  # the first with a scale for each channel
# What both runtimes compute in int8, or fuse with it.
QUANTISED = ("Conv", "ConvTranspose", "Add", "Relu", "Clip")
WEIGHTED = ("Conv", "ConvTranspose")
HEADS, FIRST = "heads", "first"


def load_float(spec: ModelSpec) -> onnx.ModelProto:
    """A float32 network with batch norms folded and a name for each operator.

    Raises:
        UserError: no such ONNX, one that is quantised or of other numbers, or operators that do not
            exist in the operator set 13.
    """
    model = load_onnx(spec)
    if found := quantised_operators(model):
        raise UserError(
            f"model {spec.path}: is quantised already ({', '.join(found)}); give the float32 ONNX "
            "that it was made from"
        )
    if odd := [name for name in odd_parts(model) if "FLOAT" in name or name == "DOUBLE"]:
        raise UserError(
            f"model {spec.path}: computes in {', '.join(odd)}; give its float32 ONNX, for the "
            "calibration needs the exact values"
        )
    if max((one.version for one in model.opset_import if not one.domain), default=0) < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:  # the converter's own, of any kind
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model {spec.path}: cannot be written in ONNX operator set {OPSET} ({reason}); "
                f"export it in that set (job=export export.opset={OPSET})"
            ) from None
    fold_batch_norms(model)
    _leave_out_unused(model)
    _name_operators(model)
    return model


def fold_batch_norms(model: onnx.ModelProto) -> None:
    """Put the batch norm behind a convolution, or transposed one, into its weights and bias."""
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    uses = [name for node in graph.node for name in node.input]
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = producers.get(norm.input[0])
        if layer is None or layer.op_type not in WEIGHTED or uses.count(layer.output[0]) > 1:
            continue
        if not {*layer.input[1:], *norm.input[1:]} <= constants.keys():
            continue
        names = [*norm.input[1:5], *layer.input[1:]]
        values = [numpy_helper.to_array(constants[name]).astype(np.float64) for name in names]
        scale, shift, mean, variance, weights = values[:5]
        bias = values[5] if len(values) > 5 else np.zeros(())
        factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        made = {
            f"{norm.output[0]}_weight": weights * _by_output(factor, layer),
            f"{norm.output[0]}_bias": (bias - mean) * factor + shift,
        }
        for name, value in made.items():
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        layer.input[1:] = made
        layer.output[0] = norm.output[0]
        graph.node.remove(norm)


def _by_output(factor: NDArray[np.float64], layer: NodeProto) -> NDArray[np.float64]:
    """A factor for each output channel, in the shape of a layer's weights.

    Those of a transposed convolution are (input, output within the group, height, width).
    """
    if layer.op_type == "Conv":
        return factor.reshape(-1, 1, 1, 1)
    groups = int(attribute(layer, "group", 1))
    if groups == 1:
        return factor.reshape(1, -1, 1, 1)
    raise UserError(
        f"operator {layer.name or layer.output[0]}: a transposed convolution in {groups} groups "
        "with a batch norm behind it; export the network with its batch norms folded"
    )


def attribute(node: NodeProto, name: str, default: float) -> float:
    """A number that an operator has as an attribute, or the default."""
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else float(onnx.helper.get_attribute_value(found))


def _leave_out_unused(model: onnx.ModelProto) -> None:
    """Drop the weights that no operator reads, of which ONNX Runtime would warn one by one."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [one for one in model.graph.initializer if one.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _name_operators(model: onnx.ModelProto) -> None:
    """Name the operators that have no name of their own after their first output."""
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = node.output[0]
        seen.add(node.name)


def layers(model: onnx.ModelProto) -> list[NodeProto]:
    """The convolutions and transposed convolutions, in order."""
    return [node for node in model.graph.node if node.op_type in WEIGHTED]


def kept_operators(model: onnx.ModelProto, keep: Sequence[str], spec: ModelSpec) -> list[str]:
    """The names of the operators that stay in float32, in the graph's order.

    Args:
        model: The network, as `load_float` gives it.
        keep: "heads", the layers that no other layer reads; "first", those that read the picture
            at half its size or more; or the name of an operator, of its kind, its output or its
            weights, with `*` for any part.
        spec: The model.

    Raises:
        UserError: an entry names nothing, or no layer would be left.
    """
    chosen: set[str] = set()
    for entry in keep:
        if entry == HEADS:
            found = set(_heads(model))
        elif entry == FIRST:
            found = set(_first(model, spec))
        else:
            found = {
                node.name
                for node in model.graph.node
                if any(fnmatchcase(name, entry) for name in _names(node))
            }
        if not found:
            known = {name for node in model.graph.node for name in _names(node)}
            hint = did_you_mean(entry, [HEADS, FIRST, *sorted(known)])
            raise UserError(
                f"quantize.keep: {entry!r} is no operator of {spec.path}{hint}; give heads, first, "
                "or the name of an operator, its kind, its output or its weights (* for any part)"
            )
        chosen |= found
    if all(node.name in chosen for node in layers(model)):
        raise UserError(
            f"quantize.keep: {', '.join(keep)} leaves no layer of {spec.path} to quantise; keep "
            "fewer"
        )
    return [node.name for node in model.graph.node if node.name in chosen]


def _names(node: NodeProto) -> Iterator[str]:
    yield from (node.name, node.op_type, *node.output, *node.input[1:])


def _heads(model: onnx.ModelProto) -> Iterator[str]:
    """The layers behind which there is no other one."""
    read: set[str] = set()  # what a layer depends on
    for node in reversed(model.graph.node):
        if not read.isdisjoint(node.output):
            read.update(node.input)
        elif node.op_type in WEIGHTED:
            yield node.name
            read.update(node.input)


def _first(model: onnx.ModelProto, spec: ModelSpec) -> Iterator[str]:
    """The layers that read the picture at half its size or more."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.input, *inferred.graph.value_info]
    rows = {one.name: one.type.tensor_type.shape.dim[2].dim_value for one in values
            if len(one.type.tensor_type.shape.dim) == 4}  # fmt: skip
    for node in layers(model):
        if 2 * rows.get(node.input[0], 0) >= spec.height:
            yield node.name
