"""The original authors' CenterFace ONNX as a PyTorch network with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cfdist.errors import UserError
from cfdist.network.centerface import CenterFace, fold_batch_norms

_OPERATORS = {"Add", "BatchNormalization", "Conv", "ConvTranspose", "Relu", "Sigmoid"}


def load_onnx_network(model: onnx.ModelProto, path: Path) -> CenterFace:
    """The network of the original authors' ONNX: plain ReLU, dense transposed convolutions.

    The file's convolutions, in the graph's order, are those of `CenterFace`. The batch norms are
    folded into them, and the neck is as wide as the heads' input.

    Args:
        model: A checked ONNX with the outputs heat map, size, offset, landmarks.
        path: The model's file, for messages.

    Returns:
        The network without batch norms, float32 on the CPU, in evaluation mode.

    Raises:
        UserError: the graph of another network.
    """
    graph = model.graph
    try:
        nodes = _convolutions(graph)
        norms = {node.input[0]: node for node in graph.node if node.op_type == "BatchNormalization"}
        tensors = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in graph.initializer}
        # The last convolution makes the ten landmark channels from the neck's map.
        neck_width = max(1, tensors[nodes[-1].input[1]].numel() // 10)
        with torch.device("meta"):  # shapes only, until the weights are assigned
            network = fold_batch_norms(CenterFace("centerface", neck_width))
        convolutions = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        }
        if len(nodes) != len(convolutions):
            raise ValueError(f"{len(nodes)} convolutions, expected {len(convolutions)}")
        state: dict[str, torch.Tensor] = {}
        for node, (name, conv) in zip(nodes, convolutions.items(), strict=True):
            weight, bias = _weights(node, tensors, norms.get(node.output[0]), conv)
            state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        network.load_state_dict(state, assign=True)
        return network
    except KeyError as error:
        found = f"weights {error} that are no constants"
    except (RuntimeError, IndexError):
        found = "weights whose shapes do not fit together"
    except ValueError as error:
        found = str(error)
    raise UserError(
        f"model {path}: not the original authors' CenterFace graph ({found}); give their "
        "centerface.onnx, or run the file with backend=openvino or backend=onnxruntime"
    )


def _convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The graph's convolutions in the order in which they run, the heads' last.

    Raises:
        ValueError: operators or outputs of another network.
    """
    others = {node.op_type for node in graph.node} - _OPERATORS
    if others:
        raise ValueError(f"operators {', '.join(sorted(others))}")
    sigmoid_input = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Sigmoid"}
    heads = [sigmoid_input.get(value.name, value.name) for value in graph.output]
    # ONNX demands that a graph's nodes are in topological order.
    by_output = {n.output[0]: n for n in graph.node if n.op_type in ("Conv", "ConvTranspose")}
    for name in heads:
        if name not in by_output:
            raise ValueError(f"no convolution gives output {name!r}")
    trunk = [node for name, node in by_output.items() if name not in heads]
    return [*trunk, *(by_output[name] for name in heads)]


def _weights(
    node: onnx.NodeProto,
    tensors: Mapping[str, torch.Tensor],
    norm: onnx.NodeProto | None,
    conv: nn.Conv2d | nn.ConvTranspose2d,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights and bias, float32, of the node that stands for `conv`, with `norm` folded in.

    Raises:
        KeyError: they are no constants.
        RuntimeError, IndexError: their shapes do not fit together.
        ValueError: they are not those of `conv`.
    """
    weight = tensors[node.input[1]]
    bias = tensors[node.input[2]] if len(node.input) > 2 else torch.zeros(conv.out_channels)
    if norm is not None:
        gamma, beta, mean, var = (tensors[name].double() for name in norm.input[1:5])
        epsilon = _attributes(norm)["epsilon"]
        is_transposed = isinstance(conv, nn.ConvTranspose2d)
        weight, bias = fuse_conv_bn_weights(
            weight.double(), bias.double(), mean, var, epsilon, gamma, beta, is_transposed
        )
    attributes = _attributes(node)
    wanted = (tuple(conv.weight.shape), (conv.out_channels,), conv.stride[0], conv.groups)
    actual = (tuple(weight.shape), tuple(bias.shape), attributes["strides"][0], attributes["group"])
    if wanted != actual or node.op_type != type(conv).__name__.removesuffix("2d"):
        raise ValueError(
            f"convolution {node.output[0]!r} has (weights, bias, stride, groups) {actual}, "
            f"expected {wanted}"
        )
    return weight.float(), bias.float()


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes; those that a file can leave out have ONNX's defaults."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {"group": 1, "strides": [1, 1], "epsilon": 1e-5, **given}
