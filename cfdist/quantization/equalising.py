"""Ranges of channels brought near each other, before one scale rounds all channels of a tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

# A channel that hardly ever fires is not blown up further, and one that is hardly read not at all.
_LEAST_FACTOR, _LEAST_RANGE = 1e-3, 1e-6


class _Pair(NamedTuple):
    """A convolution, the tensor that a ReLU makes of what it gives, and its only reader."""

    first: NodeProto
    tensor: str
    second: NodeProto

    @property
    def groups(self) -> int:
        """The groups of the second one; with more than one, each channel is a group of its own."""
        return next((one.i for one in self.second.attribute if one.name == "group"), 1)


def equalise(model: onnx.ModelProto, inputs: Iterable[Mapping[str, NDArray[Any]]]) -> int:
    """Scale the channels between two convolutions with a ReLU between, in place.

    A channel divided by a factor in the first one's weights and multiplied by it in the second
    one's leaves the network what it was, but for float32 rounding. Weights have a scale for each
    output channel: in front of a depthwise convolution all channels get the same range, which costs
    nothing. In front of another one the factor is the square root of the channel's range by that of
    its weights, so that activations and weights share the loss (as in Nagel et al., "Data-Free
    Quantization Through Weight Equalization and Bias Correction", 2019).

    Args:
        model: As `cfdist.quantization.graph.load_float` gives it.
        inputs: What the ranges are measured on.

    Returns:
        How many pairs of convolutions were scaled.
    """
    constants = {one.name: one for one in model.graph.initializer}
    pairs = [*_pairs(model, constants)]
    ranges = _largest_values(model, [pair.tensor for pair in pairs], inputs)
    for pair in pairs:
        first, tensor, second = pair
        depthwise = pair.groups > 1
        weights = numpy_helper.to_array(constants[second.input[1]]).astype(np.float64)
        factor = np.maximum(ranges[tensor], _LEAST_RANGE)
        factor /= factor.max()
        if not depthwise:
            reach = np.abs(weights).max(axis=(0, 2, 3))
            is_read = reach > _LEAST_RANGE * reach.max()
            factor = np.sqrt(factor * reach.max() / np.where(is_read, reach, 1))
            factor /= max(factor[is_read], default=1)
            factor[~is_read] = 1
        factor = np.maximum(factor, _LEAST_FACTOR)
        _scale(constants[second.input[1]], factor, axis=0 if depthwise else 1)
        for name in first.input[1:]:
            _scale(constants[name], 1 / factor, axis=0)
    return len(pairs)


def _pairs(model: onnx.ModelProto, constants: Mapping[str, Any]) -> Iterator[_Pair]:
    producers = {name: node for node in model.graph.node for name in node.output}
    uses = [name for node in model.graph.node for name in node.input]
    uses += [one.name for one in model.graph.output] + [
        name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]
    ]
    for second in model.graph.node:
        relu = producers.get(second.input[0]) if second.op_type == "Conv" else None
        first = producers.get(relu.input[0]) if relu and relu.op_type == "Relu" else None
        if relu is None or first is None or first.op_type != "Conv":
            continue
        weights = [*first.input[1:], second.input[1]]
        # Each weight is counted twice: it may have no other reader.
        is_alone = [uses.count(name) == 1 for name in (*first.output, *relu.output)]
        is_own = [name in constants and uses.count(name) == 2 for name in weights]
        pair = _Pair(first, relu.output[0], second)
        if not all(is_alone) or not all(is_own):
            continue
        channels, shape = constants[first.input[1]].dims[0], constants[second.input[1]].dims[:2]
        is_depthwise = [*shape] == [pair.groups, 1] == [channels, 1]
        if is_depthwise or (pair.groups == 1 and shape[1] == channels):
            yield pair


def _largest_values(
    model: onnx.ModelProto, tensors: list[str], inputs: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float64]]:
    """Each tensor's largest value by channel, (c,), over all inputs."""
    import onnxruntime as ort

    probed = copy.deepcopy(model)
    names = [f"{name}_largest" for name in tensors]
    for name, largest in zip(tensors, names, strict=True):
        probed.graph.node.append(onnx.helper.make_node("GlobalMaxPool", [name], [largest]))
        probed.graph.output.append(onnx.helper.make_tensor_value_info(largest, 1, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[NDArray[np.float64]] = []
    for one in inputs if tensors else ():
        values = [each.max(axis=(0, 2, 3)).astype(np.float64) for each in session.run(names, one)]
        found = [*map(np.maximum, found, values)] if found else values
    return dict(zip(tensors, found, strict=True))


def _scale(constant: onnx.TensorProto, factor: NDArray[np.float64], axis: int) -> None:
    """Multiply weights along an axis by a factor for each of its places."""
    values = numpy_helper.to_array(constant).astype(np.float64)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    scaled = (values * factor.reshape(shape)).astype(np.float32)
    constant.CopyFrom(numpy_helper.from_array(scaled, constant.name))
