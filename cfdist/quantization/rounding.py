"""Weights rounded as the int8 file holds them, and biases that take the rounding's mean back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from cfdist.config import QuantizeConfig
from cfdist.quantization.channels import pooled
from cfdist.quantization.graph import attribute, layers


def round_weights(
    model: onnx.ModelProto,
    config: QuantizeConfig,
    kept: Collection[str],
    inputs: Iterable[Mapping[str, NDArray[Any]]],
) -> int:
    """Round the weights of the convolutions and correct their biases, in place.

    Rounding shifts the mean of what a convolution gives: by the error of its weights times the
    means of the channels that it reads, measured in the float32 network. The bias takes that back
    (as in Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
    2019).

    Args:
        model: As `cfdist.quantization.graph.load_float` gives it.
        config: Whether weights have 7 bits, and a scale for each output channel.
        kept: The operators that stay in float32.
        inputs: What the means are measured on.

    Returns:
        How many convolutions were corrected.
    """
    constants = {one.name: one for one in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    chosen = [
        layer
        for layer in layers(model)
        if layer.op_type == "Conv" and layer.name not in kept
        if all(name in constants and uses[name] == 1 for name in layer.input[1:])
    ]
    read = sorted({layer.input[0] for layer in chosen})
    means = pooled(model, read, "mean", inputs)
    for layer in chosen:
        exact = numpy_helper.to_array(constants[layer.input[1]]).astype(np.float64)
        rounded = _rounded(exact, config)
        constants[layer.input[1]].CopyFrom(_float32(rounded, layer.input[1]))
        groups = int(attribute(layer, "group", 1))
        lost = (exact - rounded).sum(axis=(2, 3)).reshape(groups, -1, exact.shape[1])
        mean = means[layer.input[0]].mean(axis=0).reshape(groups, -1)
        shift = np.einsum("goi,gi->go", lost, mean).ravel()
        if not layer.input[2:]:
            layer.input.append(f"{layer.output[0]}_bias")
            constants[layer.input[2]] = model.graph.initializer.add()
        else:
            shift += numpy_helper.to_array(constants[layer.input[2]])
        constants[layer.input[2]].CopyFrom(_float32(shift, layer.input[2]))
    return len(chosen)


def _rounded(weights: NDArray[np.float64], config: QuantizeConfig) -> NDArray[np.float64]:
    """Weights, output channels first, at the steps that ONNX Runtime's quantiser gives them."""
    steps = 64 if config.reduce_range else 127
    axes = (1, 2, 3) if config.per_channel else None
    largest = np.abs(weights).max(axis=axes, keepdims=True)
    scale = np.where(largest > 0, largest, 1) / steps
    return np.asarray(np.round(weights / scale) * scale)


def _float32(values: NDArray[np.float64], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float32), name)
