"""Tensors of two graphs of one topology are paired, whatever their names and order."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from cfdist.backends.onnx_file import load_onnx
from cfdist.comparison.topology import match
from cfdist.errors import UserError
from cfdist.quantization.graph import fold_batch_norms
from tests.fakes import onnx_forms


@pytest.fixture(scope="module")
def small(tmp_path_factory, spec):
    """A small network, and how its graph is read."""
    path = onnx_forms.network(tmp_path_factory.mktemp("small") / "m.onnx")
    return spec(path, height=64, width=64, outputs=None)


@pytest.fixture
def graph(small) -> onnx.ModelProto:
    return load_onnx(small)


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Another exporter's file of the same network: other names, another order, sums turned."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    kept = {one.name for one in (*model.graph.input, *model.graph.output)}
    for node in other.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = name if name in kept else f"/x/{name}"
        if node.op_type == "Add":
            node.input[:] = reversed(node.input)
    for one in other.graph.initializer:
        one.name = f"/x/{one.name}"
    nodes = list(other.graph.node)
    known = kept | {one.name for one in other.graph.initializer}
    del other.graph.node[:]
    while nodes:  # any order that ONNX allows
        ready = [node for node in nodes if set(node.input) <= known]
        node = random.Random(len(nodes)).choice(ready)
        nodes.remove(node)
        known.update(node.output)
        other.graph.node.append(node)
    onnx.checker.check_model(other)
    return other


def with_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with a batch norm behind each layer but the heads."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    nodes = []
    for node in other.graph.node:
        nodes.append(node)
        if node.op_type not in ("Conv", "ConvTranspose") or not node.name.startswith(("c", "u")):
            continue
        channels, name = 8, node.output[0]
        node.output[0] = f"{name}_before"
        parts = [f"{name}_norm{i}" for i in range(4)]
        for part, value in zip(parts, (0.9, 0.1, 0.2, 1.5), strict=True):
            values = np.full(channels, value, np.float32)
            other.graph.initializer.append(numpy_helper.from_array(values, part))
        nodes.append(helper.make_node("BatchNormalization", [node.output[0], *parts], [name]))
    del other.graph.node[:], other.graph.value_info[:]
    other.graph.node.extend(nodes)
    return other


def test_the_same_file_is_paired_tensor_by_tensor(graph):
    matched = match(graph, graph)
    assert matched.how == "every operator"
    assert [(a.tensor, b.tensor) for a, b in matched.pairs] == [
        (name, name)
        for name in ("scaled", "c1", "r1", "c2", "r2", "c3", "r3", "up", "sum", "neck", "heat",
                     *onnx_forms.HEADS)
    ]  # fmt: skip
    assert matched.pairs[1][0].shape == (8, 32, 32)
    assert str(matched.pairs[1][0]) == "c1 (Conv, weights w1)"


def test_names_and_orders_do_not_matter(graph):
    matched = match(graph, renamed(graph))
    assert matched.how == "every operator"
    outputs = set(onnx_forms.HEADS)
    for a, b in matched.pairs:
        assert b.tensor == (a.tensor if a.tensor in outputs else f"/x/{a.tensor}")


def test_folded_batch_norms_and_activations_belong_to_their_layer(graph):
    folded = with_norms(graph)
    fold_batch_norms(folded)
    matched = match(with_norms(graph), renamed(folded))
    assert matched.how == "every layer with its batch norm and activation"
    pairs = {a.tensor: (b.tensor, a.weights) for a, b in matched.pairs}
    assert pairs["r1"] == ("/x/r1", ("w1", *(f"c1_norm{i}" for i in range(4))))
    assert pairs["output1"][0] == "output1"
    assert len(pairs) == 10


def test_a_quantised_graph_is_paired_with_its_float_one(small, graph, tmp_path, spec):
    path = onnx_forms.quantised(small.path, tmp_path / "qdq.onnx", "qdq")
    int8 = load_onnx(spec(path, height=64, width=64, outputs=None))
    matched = match(graph, int8)
    names = {a.tensor: b.tensor for a, b in matched.pairs}
    assert names["r1"] == "r1_DequantizeLinear_Output"
    assert names["output2"] == "output2"
    weights = {a.tensor: b.weights for a, b in matched.pairs}
    assert weights["r1"] == ("w1_quantized",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("c3", r"layer 4 of 10 and 9 is r3 \(Conv, weights w3\) 8x8x8 in the reference and up "),
        ("sum", r"layer 6 of 10 and 9 is neck \(Add\) 8x16x16 in the reference and output1 "),
    ],
)
def test_other_topologies_are_told_where_they_differ(graph, change, words):
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    node = next(one for one in other.graph.node if one.output[0] == change)
    for reader in other.graph.node:
        reader.input[:] = [node.input[0] if one == change else one for one in reader.input]
    other.graph.node.remove(node)
    with pytest.raises(UserError, match=f"^compare.layers: the topologies differ: {words}"):
        match(graph, other)


def test_what_surrounds_the_layers_may_differ(graph):
    """A graph that normalises bytes itself and one that picks its peaks are the same within."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    first = other.graph.node[0]
    half = numpy_helper.from_array(np.full((), 0.5, np.float32), "half")
    other.graph.initializer.append(half)
    other.graph.node.insert(0, helper.make_node("Mul", [first.input[0], "half"], ["halved"]))
    other.graph.node[1].input[0] = "halved"
    heads = other.graph.output[0]
    pooled = helper.make_node(
        "MaxPool", [heads.name], ["pooled"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
    )
    other.graph.node.append(pooled)
    heads.name = "pooled"
    matched = match(graph, other)
    assert matched.how == "every operator from the first layer to the last"
    assert [a.tensor for a, _ in matched.pairs][:3] == ["scaled", "c1", "r1"]
    assert "pooled" not in {b.tensor for _, b in matched.pairs}
