"""What the channels of a network's tensors hold, over the calibration pictures."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray


def pooled(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    pooling: Literal["largest", "mean"],
    inputs: Iterable[Mapping[str, NDArray[Any]]],
) -> dict[str, NDArray[np.float64]]:
    """Each tensor's mean values or largest absolute ones: (n, c) of n inputs, by channel."""
    import onnxruntime as ort

    probed = copy.deepcopy(model)
    names = [f"{name}_pooled" for name in tensors]
    for name, result in zip(tensors, names, strict=True):
        if pooling == "largest":
            probed.graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}_abs"]))
            make = onnx.helper.make_node("GlobalMaxPool", [f"{name}_abs"], [result])
        else:
            make = onnx.helper.make_node("GlobalAveragePool", [name], [result])
        probed.graph.node.append(make)
        probed.graph.output.append(onnx.helper.make_tensor_value_info(result, 1, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [session.run(names, one) for one in inputs] if tensors else []
    return {
        name: np.concatenate(values).mean(axis=(2, 3), dtype=np.float64)
        for name, values in zip(tensors, zip(*found, strict=True), strict=True)
    }
