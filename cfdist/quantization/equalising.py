"""Ranges of channels brought near each other, before one scale rounds all channels of a tensor."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from cfdist.quantization.channels import pooled
from cfdist.quantization.graph import WEIGHTED, attribute

# A channel that hardly ever fires is not blown up further, and one that is hardly read not at all.
_LEAST_FACTOR, _LEAST_RANGE = 1e-3, 1e-6


@dataclass
class _Stream:
    """Tensors whose channels share their factors: additions and ReLUs lead from one to the next.

    Attributes:
        quantised: The tensors that the int8 file rounds: a ReLU is one with what it follows.
        writers: The layers that write into it.
        readers: The layers that read it.
        is_closed: Whether nothing else writes or reads it.
    """

    quantised: list[str] = field(default_factory=list)
    writers: list[NodeProto] = field(default_factory=list)
    readers: list[NodeProto] = field(default_factory=list)
    is_closed: bool = True


def equalise(
    model: onnx.ModelProto,
    kept: Collection[str],
    inputs: Iterable[Mapping[str, NDArray[Any]]],
) -> int:
    """Scale the channels between convolutions, across ReLUs and additions, in place.

    A channel divided by a factor in the weights that write it and multiplied by it in those that
    read it leaves the network what it was, but for float32 rounding. Weights have a scale for each
    output channel: in front of a depthwise convolution, or of a kept layer, all channels get the
    same range, which costs nothing. In front of another one the factor is the square root of the
    channel's range by that of its weights, so that activations and weights share the loss (as in
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019).

    Args:
        model: As `cfdist.quantization.graph.load_float` gives it.
        kept: The operators that stay in float32.
        inputs: What the ranges are measured on.

    Returns:
        How many groups of tensors were scaled.
    """
    constants = {one.name: one for one in model.graph.initializer}
    streams = [*_streams(model, constants)]
    measured = pooled(model, [name for one in streams for name in one.quantised], "largest", inputs)
    ranges = [[measured[name].max(axis=0) for name in one.quantised] for one in streams]
    # An addition may repeat the only channel of one side for all channels of the other.
    alike = [len({one.size for one in own}) == 1 for own in ranges]
    for stream, own in compress(zip(streams, ranges, strict=True), alike):
        factor = np.max([one / max(one.max(), _LEAST_RANGE) for one in own], axis=0)
        factor = np.maximum(factor, _LEAST_RANGE)
        dense = [
            one
            for one in stream.readers
            if attribute(one, "group", 1) == 1 and one.name not in kept
        ]
        if dense:
            reach = np.max([_reach(constants[one.input[1]], one) for one in dense], axis=0)
            is_read = reach > _LEAST_RANGE * reach.max()
            factor = np.sqrt(factor * reach.max() / np.where(is_read, reach, 1))
            factor /= max(factor[is_read], default=1)
            factor[~is_read] = 1
        factor = np.maximum(factor, _LEAST_FACTOR)
        for layer in stream.readers:
            is_first = layer.op_type == "ConvTranspose" or attribute(layer, "group", 1) > 1
            _scale(constants[layer.input[1]], factor, axis=0 if is_first else 1)
        for layer in stream.writers:
            is_second = layer.op_type == "ConvTranspose"
            _scale(constants[layer.input[1]], 1 / factor, axis=1 if is_second else 0)
            for name in layer.input[2:]:
                _scale(constants[name], 1 / factor, axis=0)
    return sum(alike)


def _streams(model: onnx.ModelProto, constants: Mapping[str, TensorProto]) -> Iterator[_Stream]:
    """The closed ones of the graph."""
    stream_of: dict[str, _Stream] = defaultdict(_Stream)
    uses = Counter(name for node in model.graph.node for name in node.input)
    behind_relu = {node.input[0] for node in model.graph.node if node.op_type == "Relu"}
    for name in (
        *(one.name for one in model.graph.input),
        *(one.name for one in model.graph.output),
    ):
        stream_of[name].is_closed = False
    for node in model.graph.node:
        if node.op_type in ("Relu", "Add"):
            joined = [stream_of[name] for name in (*node.input, *node.output)]
            for other in joined[1:]:
                if other is not joined[0]:
                    _join(joined[0], other, stream_of)
            joined[0].is_closed &= constants.keys().isdisjoint(node.input)
            continue
        own = node.op_type in WEIGHTED and all(
            name in constants and uses[name] == 1 for name in node.input[1:]
        )
        groups, shape = attribute(node, "group", 1), [*constants[node.input[1]].dims] if own else []
        is_depthwise = own and node.op_type == "Conv" and shape[:2] == [groups, 1]
        for name in node.input:
            if name not in constants:
                stream_of[name].readers.append(node)
                stream_of[name].is_closed &= own and (groups == 1 or is_depthwise)
        for name in node.output:
            stream_of[name].writers.append(node)
            stream_of[name].is_closed &= own and (groups == 1 or node.op_type == "Conv")
    for name, stream in stream_of.items():
        if name not in behind_relu or uses[name] > 1:
            stream.quantised.append(name)
    distinct = {id(one): one for one in stream_of.values()}.values()
    yield from (one for one in distinct if one.is_closed and one.writers and one.readers)


def _join(one: _Stream, other: _Stream, stream_of: dict[str, _Stream]) -> None:
    """Make one stream of two."""
    one.writers += other.writers
    one.readers += other.readers
    one.is_closed &= other.is_closed
    for name in [name for name, stream in stream_of.items() if stream is other]:
        stream_of[name] = one


def _reach(weights: TensorProto, layer: NodeProto) -> NDArray[np.float64]:
    """The largest weight of each input channel, (c,)."""
    axes = (1, 2, 3) if layer.op_type == "ConvTranspose" else (0, 2, 3)
    largest: NDArray[np.float64] = np.abs(numpy_helper.to_array(weights)).max(axis=axes)
    return largest.astype(np.float64)


def _scale(constant: onnx.TensorProto, factor: NDArray[np.float64], axis: int) -> None:
    """Multiply weights along an axis by a factor for each of its places."""
    values = numpy_helper.to_array(constant).astype(np.float64)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    scaled = (values * factor.reshape(shape)).astype(np.float32)
    constant.CopyFrom(numpy_helper.from_array(scaled, constant.name))
