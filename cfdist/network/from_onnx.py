"""The original authors' CenterFace ONNX as a PyTorch network with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from torch import nn

from cfdist.errors import UserError
from cfdist.network.centerface import INPUT_MULTIPLE, CenterFace

# Heat map, scale, offset and landmarks in the authors' file.
AUTHORS_OUTPUTS = ("537", "538", "539", "540")

_OPERATORS = {"Add", "BatchNormalization", "Conv", "ConvTranspose", "Relu", "Sigmoid"}


@dataclass(frozen=True)
class _Convolution:
    """A convolution node with the weights of itself and of a batch norm right behind it."""

    output: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: int
    groups: int
    is_transposed: bool
    norm: _BatchNorm | None


@dataclass(frozen=True)
class _BatchNorm:
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    mean: NDArray[np.float32]
    var: NDArray[np.float32]
    eps: float


def load_onnx_network(
    path: Path | str, outputs: Sequence[str] | None = AUTHORS_OUTPUTS
) -> CenterFace:
    """The network of the original authors' ONNX: plain ReLU, dense transposed convolutions.

    The file's convolutions, in the graph's order, are those of `CenterFace.forward`; most have
    their batch norm folded in, the network's own is then an identity plus the bias. The heads go
    by the names of their outputs.

    Args:
        path: The ONNX file.
        outputs: Names of the heat map, size, offset and landmark outputs; `None`: the file's order.

    Returns:
        The network, float32 on the CPU, in evaluation mode.

    Raises:
        UserError: not an ONNX file, or the graph of another network.
    """
    graph = _read_graph(Path(path))
    network = CenterFace.of_convention("centerface")
    convolutions = _convolutions(graph, path)
    heads = _take_heads(graph, convolutions, outputs, path)
    trunk = _trunk_in_forward_order(network)
    if len(convolutions) != len(trunk):
        raise _other_network(
            path, f"{len(convolutions)} convolutions before the heads, expected {len(trunk)}"
        )
    for (conv, norm), source in zip(trunk, convolutions, strict=True):
        _check_same(conv, source, path)
        _set_convolution(conv, norm, source)
    modules = (network.hm[0], network.wh, network.hm_offset, network.landmarks)
    for conv, source in zip(modules, heads, strict=True):
        _check_same(conv, source, path)
        _set_head(conv, source)
    return network.eval()


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


def _convolution(
    node: onnx.NodeProto, weights: Mapping[str, NDArray], norm: onnx.NodeProto | None
) -> _Convolution:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    weight = weights[node.input[1]]
    groups = attributes.get("group", 1)
    is_transposed = node.op_type == "ConvTranspose"
    channels = weight.shape[1] * groups if is_transposed else weight.shape[0]
    has_bias = len(node.input) > 2 and node.input[2]
    return _Convolution(
        node.output[0],
        weight,
        weights[node.input[2]] if has_bias else np.zeros(channels, np.float32),
        attributes.get("strides", [1])[0],
        groups,
        is_transposed,
        _batch_norm(norm, weights) if norm else None,
    )


def _batch_norm(node: onnx.NodeProto, weights: Mapping[str, NDArray]) -> _BatchNorm:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    # The default epsilon is the ONNX operator's.
    return _BatchNorm(*(weights[name] for name in node.input[1:5]), attributes.get("epsilon", 1e-5))


def _take_heads(
    graph: onnx.GraphProto,
    convolutions: list[_Convolution],
    outputs: Sequence[str] | None,
    path: Path | str,
) -> list[_Convolution]:
    """Remove the head convolutions from the list and return them in the order of the outputs."""
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
    convolutions[:] = [conv for conv in convolutions if not any(conv is head for head in heads)]
    return heads


def _trunk_in_forward_order(network: CenterFace) -> list[tuple[nn.Module, nn.BatchNorm2d]]:
    """Each convolution before the heads with its batch norm, in the order in which they run."""
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for trunk in (network.base, network.dla_up)
        for module in trunk.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d))
    ]
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, INPUT_MULTIPLE, INPUT_MULTIPLE))
    for hook in hooks:
        hook.remove()
    return list(zip(ran[::2], ran[1::2], strict=True))


def _check_same(conv: nn.Module, source: _Convolution, path: Path | str) -> None:
    wanted = (tuple(conv.weight.shape), conv.stride[0], conv.groups)
    actual = (source.weight.shape, source.stride, source.groups)
    if wanted != actual or source.is_transposed != isinstance(conv, nn.ConvTranspose2d):
        raise _other_network(
            path,
            f"convolution {source.output!r} has weights {actual[0]}, stride {actual[1]} and "
            f"{actual[2]} groups, expected {wanted[0]}, {wanted[1]} and {wanted[2]}",
        )


def _set_convolution(conv: nn.Module, norm: nn.BatchNorm2d, source: _Convolution) -> None:
    _assign(conv.weight, source.weight)
    if source.norm is None:
        # var + eps is 1 and so is its root: the batch norm adds the bias and changes no bit else.
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)
        nn.init.ones_(norm.weight)
        _assign(norm.bias, source.bias)
    else:
        _assign(norm.running_mean, source.norm.mean - source.bias)
        _assign(norm.running_var, source.norm.var + (source.norm.eps - norm.eps))
        _assign(norm.weight, source.norm.gamma)
        _assign(norm.bias, source.norm.beta)


def _set_head(conv: nn.Conv2d, source: _Convolution) -> None:
    _assign(conv.weight, source.weight)
    _assign(conv.bias, source.bias)


def _assign(target: torch.Tensor, value: NDArray) -> None:
    with torch.no_grad():
        target.copy_(torch.tensor(value))


def _other_network(path: Path | str, found: str) -> UserError:
    return UserError(
        f"model {path}: not the original authors' CenterFace graph ({found}); give their "
        "centerface.onnx, or run the file with backend=openvino or backend=onnxruntime"
    )
