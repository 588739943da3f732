"""Cut a network behind its local part: the first layers, each of which looks only nearby.

What they give for a piece of the picture depends on the pixels of that piece and a few around it.
So a picture can go through them window by window, each small enough for the processor's caches,
and windows that see nothing but black border need not be computed at all. The numbers are those of
the whole network: a window's convolutions are padded only where the picture ends.

Coordinates: rows and columns of tensors, half-open intervals. A tensor's cell i at stride s
looks at the input pixels from i * s - before to i * s + after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod

import onnx
from onnx import helper

# How far the local part may look, pixels: each further one is computed twice at every window's
# edge.
MAX_REACH = 16
# What is handed to the rest, values an input pixel: no more than the picture itself.
MAX_VALUES = 3

Interval = tuple[int, int]
Box = tuple[Interval, Interval]

_STANDARD = ("", "ai.onnx")
_ELEMENTWISE = frozenset(
    {"Add", "BatchNormalization", "Clip", "Div", "HardSigmoid", "HardSwish", "Identity"}
    | {"LeakyRelu", "Mul", "PRelu", "Relu", "Sigmoid", "Sub"}
)


@dataclass(frozen=True)
class Reach:
    """Where a tensor's cells look, the same on both axes.

    Attributes:
        stride: Input pixels from one cell to the next.
        before: Input pixels looked at before the cell's first one.
        after: Input pixels looked at behind the cell's first one.
    """

    stride: int
    before: int
    after: int

    def seeing(self, pixels: Interval, cells: int) -> Interval:
        """Which of the first `cells` cells look at any of some input pixels; (0, 0) for none."""
        first = max(0, -((self.after - pixels[0]) // self.stride))
        last = min(cells, (pixels[1] - 1 + self.before) // self.stride + 1)
        return (first, last) if pixels[0] < pixels[1] and first < last else (0, 0)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the local part.

    Attributes:
        reach: Where its cells look.
        channels: How many values a cell has.
        sides: Rows and columns for the whole picture.
    """

    reach: Reach
    channels: int
    sides: tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The local part for a piece of the picture.

    Attributes:
        model: Takes (1, 3, h, w) float32 and gives the piece of each tensor of the cut.
        pixels: Rows and columns of the picture that it takes.
    """

    model: onnx.ModelProto
    pixels: Box


class LocalPart:
    """The first layers of a network, and what is left of it.

    Attributes:
        nodes: The layers, in their order.
        tensors: The picture and what the layers make, name -> what it is.
        cut: Those that are handed over, name -> what it is; all strides divide the largest.
        stride: The largest stride: windows are measured in its cells.
        reach: Of all tensors together, how far a cell of that stride looks.
        cells: Rows and columns of such cells in the picture.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        nodes: Sequence[onnx.NodeProto],
        tensors: dict[str, Tensor],
        cut: Sequence[str],
    ) -> None:
        """Use `find_local_part`."""
        self._model = model
        self.nodes = nodes
        self.tensors = tensors
        self.cut = {name: tensors[name] for name in cut}
        self.stride = max(tensor.reach.stride for tensor in self.cut.values())
        self.reach = Reach(
            self.stride,
            max(tensor.reach.before for tensor in self.cut.values()),
            max(
                tensor.reach.after + self.stride - tensor.reach.stride
                for tensor in self.cut.values()
            ),
        )
        picture = tensors[model.graph.input[0].name]
        self.cells = tuple(side // self.stride for side in picture.sides)

    def window(self, rows: Interval, columns: Interval) -> Window:
        """The local part for some rows and columns, in cells of the largest stride."""
        wanted = {
            name: tuple(
                (
                    first * self.stride // tensor.reach.stride,
                    last * self.stride // tensor.reach.stride,
                )
                for first, last in (rows, columns)
            )
            for name, tensor in self.cut.items()
        }
        boxes = self._needed(wanted)
        nodes: list[onnx.NodeProto] = []
        for node in self.nodes:
            nodes += self._for_window(node, boxes)
        opset = _opset(self._model)
        outputs = []
        for name, tensor in self.cut.items():
            cropped, slices = _cropped(name, boxes[name], wanted[name], "whole", opset)
            nodes += slices
            shape = [1, tensor.channels, *map(_length, wanted[name])]
            outputs.append(helper.make_tensor_value_info(cropped, onnx.TensorProto.FLOAT, shape))
        picture = self._model.graph.input[0].name
        pixels = boxes[picture]
        shape = [1, self.tensors[picture].channels, *map(_length, pixels)]
        taken = helper.make_tensor_value_info(picture, onnx.TensorProto.FLOAT, shape)
        return Window(_model_of(self._model, nodes, [taken], outputs), pixels)

    def rest(self) -> onnx.ModelProto:
        """What follows: takes the cut's tensors, (batch, channels, rows, columns) float32."""
        local = {id(node) for node in self.nodes}
        nodes = [
            node
            for node in self._model.graph.node
            if id(node) not in local and node.op_type != "Constant"
        ]
        taken = [
            helper.make_tensor_value_info(
                name, onnx.TensorProto.FLOAT, ["batch", tensor.channels, *tensor.sides]
            )
            for name, tensor in self.cut.items()
        ]
        return _model_of(self._model, nodes, taken, self._model.graph.output)

    def _needed(self, wanted: dict[str, Box]) -> dict[str, Box]:
        """What of each tensor is needed for the wanted parts of the cut's."""
        boxes = dict(wanted)
        for node in reversed(self.nodes):
            out = boxes.get(node.output[0])
            if out is None:
                continue
            for name in node.input:
                if name in self.tensors:
                    box = self._looked_at(node, name, out)
                    boxes[name] = _union(boxes[name], box) if name in boxes else box
        return boxes

    def _looked_at(self, node: onnx.NodeProto, name: str, out: Box) -> Box:
        """What of an input a node looks at for a part of its output."""
        if node.op_type != "Conv":
            return out
        sides = self.tensors[name].sides
        conv = _convolution(node, self._model)
        return tuple(conv.taken(out[axis], axis, sides[axis]) for axis in (0, 1))

    def _for_window(self, node: onnx.NodeProto, boxes: dict[str, Box]) -> list[onnx.NodeProto]:
        """A node that computes its part, and what crops its inputs to what it looks at."""
        out = boxes.get(node.output[0])
        if out is None:
            return []
        made = onnx.NodeProto()
        made.CopyFrom(node)
        slices: dict[str, list[onnx.NodeProto]] = {}
        for i, name in enumerate(node.input):
            if name in self.tensors:
                box = self._looked_at(node, name, out)
                made.input[i], slices[name] = _cropped(
                    name, boxes[name], box, node.output[0], _opset(self._model)
                )
        if node.op_type == "Conv":
            conv = _convolution(node, self._model)
            sides = self.tensors[node.input[0]].sides
            pads = [conv.padding(out[axis], axis, sides[axis]) for axis in (0, 1)]
            _set_pads(made, [pads[0][0], pads[1][0], pads[0][1], pads[1][1]])
        return [*chain.from_iterable(slices.values()), made]


def find_local_part(model: onnx.ModelProto) -> LocalPart | None:
    """Where to cut a network: as late as `MAX_REACH` and `MAX_VALUES` allow.

    Args:
        model: One input, (batch, channels, height, width) float32 with declared sides.

    Returns:
        `None` where no layer qualifies: the network is then one piece.
    """
    picture = model.graph.input[0]
    tensor = picture.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT or _has_subgraphs(model):
        return None
    _, channels, *sides = (dim.dim_value for dim in tensor.shape.dim)
    tensors = {picture.name: Tensor(Reach(1, 0, 0), channels, tuple(sides))}
    nodes: list[onnx.NodeProto] = []
    best: LocalPart | None = None
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        made = _local_output(node, tensors, model)
        if made is None:
            break
        nodes.append(node)
        tensors[node.output[0]] = made
        part = _cut_behind(model, nodes, tensors)
        best = part or best
    if best is None:
        return None
    part = _with_later_nodes(best, model)
    whole = part.window((0, part.cells[0]), (0, part.cells[1]))
    # A window takes the picture's whole rows, or columns: all of them must be looked at.
    return part if whole.pixels == ((0, sides[0]), (0, sides[1])) else None


def _has_subgraphs(model: onnx.ModelProto) -> bool:
    """Whether there are nodes, such as `If`, that take tensors that are not among their inputs."""
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(item.type in kinds for node in model.graph.node for item in node.attribute)


def _with_later_nodes(part: LocalPart, model: onnx.ModelProto) -> LocalPart:
    """The part with the nodes, further down, that only take of it and hand over no more."""
    for node in model.graph.node:
        made = _local_output(node, part.tensors, model)
        if made is not None and all(node is not local for local in part.nodes):
            more = _cut_behind(model, [*part.nodes, node], {**part.tensors, node.output[0]: made})
            if more is not None and _values(more.cut.values()) <= _values(part.cut.values()):
                part = more
    return part


def _cut_behind(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], tensors: dict[str, Tensor]
) -> LocalPart | None:
    """The part of these nodes; `None` where what it hands over is too much or does not fit."""
    local = {id(node) for node in nodes}
    later = {name for node in model.graph.node if id(node) not in local for name in node.input} | {
        value.name for value in model.graph.output
    }
    picture = model.graph.input[0].name
    cut = {name: tensor for name, tensor in tensors.items() if name in later}
    if picture in cut or not _is_good_cut(list(cut.values()), tensors[picture].sides):
        return None
    return LocalPart(model, tuple(nodes), dict(tensors), list(cut))


def _values(tensors: Iterable[Tensor]) -> float:
    """What tensors hold, values an input pixel."""
    return sum(tensor.channels / tensor.reach.stride**2 for tensor in tensors)


def _is_good_cut(cut: Sequence[Tensor], sides: tuple[int, int]) -> bool:
    """Whether the tensors hold no more than the picture, and their cells lie on one another."""
    largest = max(tensor.reach.stride for tensor in cut)
    return (
        _values(cut) <= MAX_VALUES
        and all(side % largest == 0 for side in sides)
        and all(
            largest % tensor.reach.stride == 0
            and all(
                cells * tensor.reach.stride == side
                for cells, side in zip(tensor.sides, sides, strict=True)
            )
            for tensor in cut
        )
    )


def _local_output(
    node: onnx.NodeProto, tensors: dict[str, Tensor], model: onnx.ModelProto
) -> Tensor | None:
    """What a node makes of local tensors; `None` where it is not local or looks too far."""
    made = _made_of(node, tensors, model)
    if made is None or max(made.reach.before, made.reach.after) > MAX_REACH:
        return None
    return made


def _made_of(
    node: onnx.NodeProto, tensors: dict[str, Tensor], model: onnx.ModelProto
) -> Tensor | None:
    """What a node makes of local tensors, however far it looks; `None` where it is not local."""
    taken = [tensors[name] for name in node.input if name in tensors]
    constants = [name for name in node.input if name and name not in tensors]
    shapes = [_constant_shape(name, model) for name in constants]
    if not taken or len(node.output) != 1 or None in shapes or node.domain not in _STANDARD:
        return None
    first = taken[0]
    if node.op_type == "Conv":
        conv = _convolution(node, model)
        return conv.output(first) if conv is not None and len(taken) == 1 else None
    # Constants hold one value for all cells, or one a channel.
    is_local = node.op_type in _ELEMENTWISE and all(
        _is_per_channel(shape, first.channels, node.op_type) for shape in shapes
    )
    if not is_local or any(
        (other.reach.stride, other.channels, other.sides)
        != (first.reach.stride, first.channels, first.sides)
        for other in taken
    ):
        return None
    return replace(
        first,
        reach=Reach(
            first.reach.stride,
            max(tensor.reach.before for tensor in taken),
            max(tensor.reach.after for tensor in taken),
        ),
    )


@dataclass(frozen=True)
class _Convolution:
    """Geometry of a convolution; pairs are for rows and columns.

    Attributes:
        channels: Of its output.
        kernel: From the first to the last value that it looks at, dilation included.
        stride: The same on both axes.
        pads: Zeros before its input.
        ends: Zeros behind its input.
    """

    channels: int
    kernel: tuple[int, int]
    stride: int
    pads: tuple[int, int]
    ends: tuple[int, int]

    def output(self, taken: Tensor) -> Tensor | None:
        """What it makes of a tensor; `None` where its axes differ."""
        kernel, pad = self.kernel[0], self.pads[0]
        if self.kernel[1] != kernel or self.pads[1] != pad:
            return None
        reach = Reach(
            taken.reach.stride * self.stride,
            taken.reach.before + pad * taken.reach.stride,
            taken.reach.after + (kernel - 1 - pad) * taken.reach.stride,
        )
        sides = tuple(
            (taken.sides[axis] + self.pads[axis] + self.ends[axis] - self.kernel[axis])
            // self.stride
            + 1
            for axis in (0, 1)
        )
        return Tensor(reach, self.channels, sides)

    def taken(self, out: Interval, axis: int, side: int) -> Interval:
        """What it looks at for an interval of its output."""
        first, last = self._looked_at(out, axis)
        return max(0, first), min(side, last)

    def padding(self, out: Interval, axis: int, side: int) -> Interval:
        """How much of what it looks at lies before and behind its input."""
        first, last = self._looked_at(out, axis)
        return max(0, -first), max(0, last - side)

    def _looked_at(self, out: Interval, axis: int) -> Interval:
        first = out[0] * self.stride - self.pads[axis]
        return first, (out[1] - 1) * self.stride - self.pads[axis] + self.kernel[axis]


def _convolution(node: onnx.NodeProto, model: onnx.ModelProto) -> _Convolution | None:
    """A two-dimensional convolution's geometry; `None` where it is another or an unusual one."""
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    weights = _constant_shape(node.input[1], model)
    if weights is None or len(weights) != 4:
        return None
    strides = values.get("strides", [1, 1])
    dilations = values.get("dilations", [1, 1])
    pads = values.get("pads", [0, 0, 0, 0])
    if strides[0] != strides[1] or values.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    kernel = tuple((weights[2 + axis] - 1) * dilations[axis] + 1 for axis in (0, 1))
    return _Convolution(weights[0], kernel, strides[0], tuple(pads[:2]), tuple(pads[2:]))


def _set_pads(node: onnx.NodeProto, pads: Sequence[int]) -> None:
    for item in node.attribute:
        if item.name == "pads":
            node.attribute.remove(item)
            break
    node.attribute.append(helper.make_attribute("pads", list(pads)))


def _cropped(
    name: str, have: Box, want: Box, consumer: str, opset: int
) -> tuple[str, list[onnx.NodeProto]]:
    """A part of a tensor: its name, and the node that makes it where there is less to give."""
    if have == want:
        return name, []
    starts = [want[axis][0] - have[axis][0] for axis in (0, 1)]
    ends = [want[axis][1] - have[axis][0] for axis in (0, 1)]
    part = f"{name}/for/{consumer}"
    if opset < 10:
        node = helper.make_node("Slice", [name], [part], axes=[2, 3], starts=starts, ends=ends)
        return part, [node]
    values = [starts, ends, [2, 3]]
    names = [f"{part}/{what}" for what in ("starts", "ends", "axes")]
    constants = [
        helper.make_node(
            "Constant",
            [],
            [constant],
            value=helper.make_tensor(constant, onnx.TensorProto.INT64, [2], value),
        )
        for constant, value in zip(names, values, strict=True)
    ]
    return part, [*constants, helper.make_node("Slice", [name, *names], [part])]


def _model_of(
    whole: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of some of a model's nodes, with the constants that they use."""
    used = {name for node in nodes for name in node.input}
    constants = [
        node for node in whole.graph.node if node.op_type == "Constant" and node.output[0] in used
    ]
    weights = [tensor for tensor in whole.graph.initializer if tensor.name in used]
    graph = helper.make_graph([*constants, *nodes], "part", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=whole.opset_import)
    model.ir_version = whole.ir_version
    return model


def _constant_shape(name: str, model: onnx.ModelProto) -> tuple[int, ...] | None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return tuple(tensor.dims)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            value = helper.get_attribute_value(node.attribute[0])
            return tuple(value.dims) if isinstance(value, onnx.TensorProto) else None
    return None


def _is_per_channel(shape: tuple[int, ...], channels: int, op_type: str) -> bool:
    """Whether a constant holds one value for all cells, or one for each channel of NCHW."""
    if op_type == "BatchNormalization":
        return shape == (channels,)
    return prod(shape) == 1 or (shape[-3:] == (channels, 1, 1) and prod(shape) == channels)


def _opset(model: onnx.ModelProto) -> int:
    return next(item.version for item in model.opset_import if item.domain in _STANDARD)


def _union(a: Box, b: Box) -> Box:
    return tuple((min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))


def _length(interval: Interval) -> int:
    return interval[1] - interval[0]
