"""Which tensors of two graphs of one topology stand for each other, whatever their names.

Exporters name tensors as they like, fold batch norms or not, and quantisers put QuantizeLinear and
DequantizeLinear between operators, and take a Relu away that the bytes' range does. What is left
of both graphs without these is compared operator by operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import onnx
from onnx import NodeProto, TensorProto

from cfdist.errors import UserError

# What changes no value but its format, or by rounding.
_FORMATS = frozenset({"QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Dropout"})
# What one graph may do in the operator before it, and the other in one of its own.
_FOLDED = _FORMATS | {"BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid"}
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_COMMUTATIVE = ("Add", "Mul", "Max", "Min", "Sum")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Layer:
    """An operator, with those that are counted as a part of it.

    Attributes:
        operator: Its kind, "Conv".
        tensor: The name of the tensor that it gives.
        shape: The shape of that, without the batch.
        weights: The names of its constants.
    """

    operator: str
    tensor: str
    shape: tuple[int, ...]
    weights: tuple[str, ...]

    def __str__(self) -> str:
        """As messages name it: "366 (Conv, weights backbone.0.weight)"."""
        weights = f", weights {self.weights[0]}" if self.weights else ""
        return f"{self.tensor} ({self.operator}{weights})"


@dataclass(frozen=True)
class Matched:
    """The layers of two graphs that stand for each other.

    Attributes:
        pairs: Reference and candidate, in the order of computation.
        how: What the pairs are, for people.
    """

    pairs: Sequence[tuple[Layer, Layer]]
    how: str


def match(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> Matched:
    """Pair the layers of two graphs, the finest way in which their topologies are one.

    Args:
        reference: A graph whose outputs are in the order of the candidate's.
        candidate: Likewise.

    Raises:
        UserError: the topologies differ: it says where.
    """
    for transparent, core, how in (
        (_FORMATS, False, "every operator"),
        (_FORMATS, True, "every operator from the first layer to the last"),
        (_FOLDED, True, "every layer with its batch norm and activation"),
    ):
        sides = [layers_of(model, transparent, core) for model in (reference, candidate)]
        if all(_is_like(a, b) for a, b in zip_longest(*sides)):
            return Matched(list(zip(*sides, strict=True)), how)
    pairs = enumerate(zip_longest(*sides), start=1)
    number, (a, b) = next(one for one in pairs if not _is_like(*one[1]))
    raise UserError(
        f"compare.layers: the topologies differ: layer {number} of {len(sides[0])} and "
        f"{len(sides[1])} is {_described(a)} in the reference and {_described(b)} in the "
        "candidate; compare what they find, without compare.layers"
    )


def _is_like(a: Layer | None, b: Layer | None) -> bool:
    return a is not None and b is not None and (a.operator, a.shape) == (b.operator, b.shape)


def _described(layer: Layer | None) -> str:
    return "missing" if layer is None else f"{layer} {'x'.join(map(str, layer.shape))}"


def layers_of(model: onnx.ModelProto, transparent: frozenset[str], is_core: bool) -> list[Layer]:
    """The operators of a graph that give floats, in an order that its file does not decide.

    Args:
        model: The graph; its input has its real shape.
        transparent: Kinds of operators that belong to the one before them.
        is_core: Leave out what comes before the first layer with weights, and after the last.
    """
    graph = _Graph(model)
    nodes = [node for node in graph.ordered() if node.op_type not in transparent]
    if is_core:
        behind = graph.reachable(nodes, forwards=True)
        before = graph.reachable(nodes, forwards=False)
        nodes = [node for node in nodes if id(node) in behind and id(node) in before]
    found = [graph.layer(node, transparent) for node in nodes]
    return [one for one in found if graph.holds_floats(one.tensor)]


@dataclass
class _Graph:
    """A graph's tensors: where they come from and who reads them."""

    model: onnx.ModelProto
    constants: set[str] = field(default_factory=set)
    producers: dict[str, NodeProto] = field(default_factory=dict)
    readers: dict[str, list[NodeProto]] = field(default_factory=dict)
    values: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        self.values = {
            one.name: one for one in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        self.constants = {one.name for one in self.model.graph.initializer}
        for node in self.model.graph.node:
            if all(name in self.constants for name in node.input if name):
                self.constants.update(node.output)
                continue
            self.producers |= dict.fromkeys(node.output, node)
            for name in self._data(node):
                self.readers.setdefault(name, []).append(node)

    def _data(self, node: NodeProto) -> list[str]:
        """The inputs that are no constants."""
        return [name for name in node.input if name and name not in self.constants]

    def ordered(self) -> list[NodeProto]:
        """The operators, each behind those that it reads; the outputs decide the order.

        The longer branch of a sum comes first, whichever the file names first.
        """
        depths: dict[str, int] = {}
        for node in self.model.graph.node:  # ONNX demands that this is an order of computation
            below = [depths.get(name, 0) for name in self._data(node)]
            depths |= dict.fromkeys(node.output, max(below, default=0) + 1)
        found: list[NodeProto] = []
        seen: set[int] = set()
        stack = [(name, False) for name in reversed([o.name for o in self.model.graph.output])]
        while stack:
            name, is_done = stack.pop()
            node = self.producers.get(name)
            if node is None or (id(node) in seen and not is_done):
                continue
            if is_done:
                found.append(node)
                continue
            seen.add(id(node))
            inputs = self._data(node)
            if node.op_type in _COMMUTATIVE:
                inputs = sorted(inputs, key=lambda one: -depths.get(one, 0))
            stack += [(name, True), *((one, False) for one in reversed(inputs))]
        return found

    def reachable(self, nodes: Iterable[NodeProto], forwards: bool) -> set[int]:
        """The layers with weights, and the operators that depend on one, or that one depends on."""
        stack = [node for node in nodes if node.op_type in _WEIGHTED]
        found: set[int] = set()
        while stack:
            node = stack.pop()
            if id(node) in found:
                continue
            found.add(id(node))
            stack += self._neighbours(node, forwards)
        return found

    def _neighbours(self, node: NodeProto, forwards: bool) -> Iterator[NodeProto]:
        if forwards:
            for name in node.output:
                yield from self.readers.get(name, ())
        else:
            yield from (self.producers[name] for name in self._data(node) if name in self.producers)

    def layer(self, node: NodeProto, transparent: frozenset[str]) -> Layer:
        """An operator with the transparent ones behind it, as far as nobody else reads them."""
        outputs = {one.name for one in self.model.graph.output}
        weights, tensor = self._weights(node), node.output[0]
        while tensor not in outputs:
            readers = self.readers.get(tensor, [])
            kinds = {reader.op_type for reader in readers}
            # A quantised tensor may be read through several operators of the same kind.
            if (
                not kinds <= transparent
                or len(kinds) != 1
                or (len(readers) > 1 and kinds != {"DequantizeLinear"})
            ):
                break
            weights += self._weights(readers[0]) if kinds == {"BatchNormalization"} else []
            tensor = readers[0].output[0]
        value = self.values.get(tensor)
        tensor_type = value.type.tensor_type if value else None
        shape = tuple(d.dim_value for d in tensor_type.shape.dim[1:]) if tensor_type else ()
        return Layer(node.op_type, tensor, shape, tuple(weights))

    def holds_floats(self, tensor: str) -> bool:
        """Whether a tensor can be compared."""
        value = self.values.get(tensor)
        return value is None or value.type.tensor_type.elem_type in _FLOATS

    def _weights(self, node: NodeProto) -> list[str]:
        """The names of an operator's constants, of quantised ones before DequantizeLinear."""
        made = {name: one for one in self.model.graph.node for name in one.output}
        names = []
        for name in node.input:
            if name in self.constants:
                source = made.get(name)
                names.append(source.input[0] if source and source.input else name)
        return names
