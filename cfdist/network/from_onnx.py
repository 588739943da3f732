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

# The convolutions that give them in the PyTorch network.
_HEADS = ("hm.0", "wh", "hm_offset", "landmarks")

_OPERATORS = {"Add", "BatchNormalization", "Conv", "ConvTranspose", "Relu", "Sigmoid"}


_Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class _BatchNorm:
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    mean: NDArray[np.float32]
    var: NDArray[np.float32]
    eps: float


@dataclass(frozen=True)
class _Convolution:
    """A convolution node with the weights of itself and of the batch norm that follows it."""

    output: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: int
    groups: int
    is_transposed: bool
    norm: _BatchNorm | None


def load_onnx_network(
    path: Path | str, outputs: Sequence[str] | None = AUTHORS_OUTPUTS
) -> CenterFace:
    """The network of the original authors' ONNX: plain ReLU, dense transposed convolutions.

    The file's convolutions, in the graph's order, are those of `CenterFace.forward`. Most have
    their batch norm folded in; the network's own batch norm is then an identity plus the bias. The
    heads go by the names of their outputs, and the neck is as wide as the heads' input.

    Args:
        path: The ONNX file.
        outputs: Names of the heat map, size, offset and landmark outputs; `None`: the file's order.

    Returns:
        The network, float32 on the CPU, in evaluation mode.

    Raises:
        UserError: not an ONNX file, or the graph of another network.
    """
    graph = _read_graph(Path(path))
    convolutions = _convolutions(graph, path)
    heads = _take_heads(graph, convolutions, outputs, path)
    network = CenterFace.without_weights("centerface", _neck_width(heads[0], path))
    trunk = _trunk_in_forward_order(network)
    if len(convolutions) != len(trunk):
        raise _other_network(
            path, f"{len(convolutions)} convolutions before the heads, expected {len(trunk)}"
        )
    state: dict[str, torch.Tensor] = {}
    for (conv, norm), source in zip(trunk, convolutions, strict=True):
        _check_same(network, conv, source, path)
        state |= _layer_state(conv, norm, network.get_submodule(norm), source)
    for head, source in zip(_HEADS, heads, strict=True):
        _check_same(network, head, source, path)
        state |= _named(head, weight=source.weight, bias=source.bias)
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


def _convolution(
    node: onnx.NodeProto, weights: _Weights, norm: onnx.NodeProto | None
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


def _batch_norm(node: onnx.NodeProto, weights: _Weights) -> _BatchNorm:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    gamma, beta, mean, var = (weights[name] for name in node.input[1:5])
    # The default epsilon is the ONNX operator's.
    return _BatchNorm(gamma, beta, mean, var, attributes.get("epsilon", 1e-5))


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


def _neck_width(head: _Convolution, path: Path | str) -> int:
    """The channels that a head takes."""
    shape: tuple[int, ...] = head.weight.shape
    if len(shape) != 4 or shape[1] == 0:
        raise _other_network(path, f"convolution {head.output!r} has weights {shape}")
    return shape[1]


def _trunk_in_forward_order(network: CenterFace) -> list[tuple[str, str]]:
    """Names of each convolution before the heads and of its batch norm, in running order."""
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d))
        and name not in _HEADS
    ]
    network(torch.zeros(1, 3, INPUT_MULTIPLE, INPUT_MULTIPLE, device="meta"))
    for hook in hooks:
        hook.remove()
    return list(zip(ran[::2], ran[1::2], strict=True))


def _check_same(network: CenterFace, name: str, source: _Convolution, path: Path | str) -> None:
    conv = network.get_submodule(name)
    assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
    wanted = (tuple(conv.weight.shape), conv.stride[0], conv.groups)
    actual = (source.weight.shape, source.stride, source.groups)
    if wanted != actual or source.is_transposed != isinstance(conv, nn.ConvTranspose2d):
        raise _other_network(
            path,
            f"convolution {source.output!r} has weights {actual[0]}, stride {actual[1]} and "
            f"{actual[2]} groups, expected {wanted[0]}, {wanted[1]} and {wanted[2]}",
        )


def _layer_state(
    conv: str, norm: str, layer: nn.Module, source: _Convolution
) -> dict[str, torch.Tensor]:
    """The `state_dict` entries of a convolution and of its batch norm, which is `layer`."""
    assert isinstance(layer, nn.BatchNorm2d)
    bias, there = source.bias, source.norm
    if there is None:
        # var + eps is 1 and so is its root: the batch norm adds the bias and changes no bit else.
        one = np.ones_like(bias)
        there = _BatchNorm(gamma=one, beta=bias, mean=0 * bias, var=one, eps=0.0)
        bias = 0 * bias
    return _named(conv, weight=source.weight) | _named(
        norm,
        weight=there.gamma,
        bias=there.beta,
        running_mean=there.mean - bias,
        running_var=there.var + np.float32(there.eps - layer.eps),
    )


def _named(layer: str, **weights: NDArray[np.float32]) -> dict[str, torch.Tensor]:
    """The `state_dict` entries of a layer."""
    return {f"{layer}.{name}": torch.tensor(value) for name, value in weights.items()}


def _other_network(path: Path | str, found: str) -> UserError:
    return UserError(
        f"model {path}: not the original authors' CenterFace graph ({found}); give their "
        "centerface.onnx, or run the file with backend=openvino or backend=onnxruntime"
    )
