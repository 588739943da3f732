"""The original authors' CenterFace ONNX as a PyTorch network with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from torch import nn

from cfdist.errors import UserError
from cfdist.network.centerface import INPUT_MULTIPLE, CenterFace, fold_batch_norms

_OPERATORS = {"Add", "BatchNormalization", "Conv", "ConvTranspose", "Relu", "Sigmoid"}

_Array = NDArray[np.float32]


@dataclass(frozen=True)
class _Convolution:
    """A convolution node with its weights; a batch norm that follows it is folded into them."""

    output: str
    weight: _Array
    bias: _Array
    stride: int
    groups: int
    is_transposed: bool


def load_onnx_network(path: Path | str, outputs: Sequence[str] | None) -> CenterFace:
    """The network of the original authors' ONNX: plain ReLU, dense transposed convolutions.

    The file's convolutions, in the graph's order, are those of `CenterFace.forward`, with their
    batch norms folded in. The heads go by the names of their outputs, and the neck is as wide as
    the heads' input.

    Args:
        path: The ONNX file.
        outputs: Names of the heat map, size, offset and landmark outputs; `None`: the file's order.

    Returns:
        The network without batch norms, float32 on the CPU, in evaluation mode.

    Raises:
        UserError: not an ONNX file, or the graph of another network.
    """
    graph = _read_graph(Path(path))
    sources = _heads_last(_convolutions(graph, path), graph, outputs, path)
    width = _neck_width(sources[-1], path)
    network = fold_batch_norms(CenterFace.without_weights("centerface", width))
    names = _convolutions_in_forward_order(network)
    if len(sources) != len(names):
        raise _other_network(path, f"{len(sources)} convolutions, expected {len(names)}")
    state = {}
    for name, source in zip(names, sources, strict=True):
        _check_same(network.get_submodule(name), source, path)
        state[f"{name}.weight"] = torch.tensor(source.weight)
        state[f"{name}.bias"] = torch.tensor(source.bias)
    return network.with_weights(state)


def _read_graph(path: Path) -> onnx.GraphProto:
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except OSError as error:
        raise UserError(
            f"model {path}: cannot be read ({error.strerror or error}); "
            "give the path of an .onnx file"
        ) from None
    except (DecodeError, onnx.checker.ValidationError, ValueError):
        raise UserError(
            f"model {path}: not a valid ONNX file; give the authors' centerface.onnx"
        ) from None
    others = {node.op_type for node in model.graph.node} - _OPERATORS
    if others:
        raise _other_network(path, f"operators {', '.join(sorted(others))}")
    return model.graph


def _convolutions(graph: onnx.GraphProto, path: Path | str) -> list[_Convolution]:
    """The graph's convolutions; ONNX demands that a graph's nodes are in topological order."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    norms = {node.input[0]: node for node in graph.node if node.op_type == "BatchNormalization"}
    try:
        return [
            _convolution(node, weights, norms.get(node.output[0]))
            for node in graph.node
            if node.op_type in ("Conv", "ConvTranspose")
        ]
    except KeyError as error:
        raise _other_network(path, f"weights {error} that are no constants") from None
    except (ValueError, IndexError):
        raise _other_network(path, "weights whose shapes do not fit together") from None


def _convolution(
    node: onnx.NodeProto, weights: Mapping[str, _Array], norm: onnx.NodeProto | None
) -> _Convolution:
    attributes = _attributes(node)
    weight = weights[node.input[1]]
    groups = attributes.get("group", 1)
    is_transposed = node.op_type == "ConvTranspose"
    channels = weight.shape[1] * groups if is_transposed else weight.shape[0]
    has_bias = len(node.input) > 2 and node.input[2]
    bias = weights[node.input[2]] if has_bias else np.zeros(channels, np.float32)
    if norm is not None:
        gamma, beta, mean, var = (weights[name].astype(np.float64) for name in norm.input[1:5])
        # The default epsilon is the ONNX operator's.
        factor = gamma / np.sqrt(var + _attributes(norm).get("epsilon", 1e-5))
        by_output = factor.reshape((1, -1, 1, 1) if is_transposed else (-1, 1, 1, 1))
        weight = (weight * by_output).astype(np.float32)
        bias = (beta + (bias - mean) * factor).astype(np.float32)
    return _Convolution(
        node.output[0], weight, bias, attributes.get("strides", [1])[0], groups, is_transposed
    )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _heads_last(
    convolutions: Sequence[_Convolution],
    graph: onnx.GraphProto,
    outputs: Sequence[str] | None,
    path: Path | str,
) -> list[_Convolution]:
    """The convolutions with the heads' at the end, in the order of the outputs."""
    there = [value.name for value in graph.output]
    names = list(there if outputs is None else outputs)
    if len(names) != 4 or not set(names) <= set(there):
        raise _other_network(path, f"outputs {', '.join(there)}, expected four: {', '.join(names)}")
    sigmoid_input = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Sigmoid"}
    by_output = {convolution.output: convolution for convolution in convolutions}
    try:
        heads = [by_output[sigmoid_input.get(name, name)] for name in names]
    except KeyError as error:
        raise _other_network(path, f"no convolution gives output {error}") from None
    trunk = [conv for conv in convolutions if not any(conv is head for head in heads)]
    return [*trunk, *heads]


def _neck_width(head: _Convolution, path: Path | str) -> int:
    """The channels that a head takes."""
    shape: tuple[int, ...] = head.weight.shape
    if len(shape) != 4 or shape[1] == 0:
        raise _other_network(path, f"convolution {head.output!r} has weights {shape}")
    return shape[1]


def _convolutions_in_forward_order(network: CenterFace) -> list[str]:
    """Names of the convolutions in the order in which they run, the heads last."""
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    network(torch.zeros(1, 3, INPUT_MULTIPLE, INPUT_MULTIPLE, device="meta"))
    for hook in hooks:
        hook.remove()
    return ran


def _check_same(conv: nn.Module, source: _Convolution, path: Path | str) -> None:
    assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
    wanted = (tuple(conv.weight.shape), (conv.out_channels,), conv.stride[0], conv.groups)
    actual = (source.weight.shape, source.bias.shape, source.stride, source.groups)
    if wanted != actual or source.is_transposed != isinstance(conv, nn.ConvTranspose2d):
        raise _other_network(
            path,
            f"convolution {source.output!r} has (weights, bias, stride, groups) {actual}, "
            f"expected {wanted}",
        )


def _other_network(path: Path | str, found: str) -> UserError:
    return UserError(
        f"model {path}: not the original authors' CenterFace graph ({found}); give their "
        "centerface.onnx, or run the file with backend=openvino or backend=onnxruntime"
    )
