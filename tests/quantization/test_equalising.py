"""Channels are scaled to like ranges, and the network stays what it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cfdist.quantization.equalising import equalise


def network(activation: str = "Relu") -> onnx.ModelProto:
    """A convolution, a depthwise and another one; the channels' ranges differ a hundredfold."""
    random = np.random.default_rng(0)
    spread = np.geomspace(0.1, 10, 6)[:, None, None, None]
    values = {
        "w1": random.normal(size=(6, 3, 1, 1)) * spread,
        "b1": random.uniform(0.5, 1, size=6),
        "w2": random.uniform(size=(6, 1, 3, 3)) * spread[::-1] ** 2,
        "w3": random.normal(size=(4, 6, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        helper.make_node(activation, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], group=6),
        helper.make_node(activation, ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(one.astype(np.float32), name) for name, one in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def outputs(model: onnx.ModelProto, names: list[str], picture: np.ndarray) -> list[np.ndarray]:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(helper.make_tensor_value_info(one, 1, None) for one in names[1:])
    session = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {"x": picture})


PICTURES = np.random.default_rng(1).normal(size=(2, 1, 3, 8, 8)).astype(np.float32)


def test_ranges_become_alike_and_the_network_stays():
    model = network()
    names = ["y", "b", "d"]
    before = outputs(model, names, PICTURES[0])
    assert equalise(model, [], [{"x": PICTURES[0]}]) == 2
    after = outputs(model, names, PICTURES[0])
    np.testing.assert_allclose(after[0], before[0], rtol=1e-4, atol=1e-4 * np.abs(before[0]).max())
    apart = [
        [np.ptp(np.log(one.max(axis=(0, 2, 3)))) for one in found[1:]] for found in (before, after)
    ]
    assert apart[1][0] == pytest.approx(0, abs=1e-5)  # in front of the depthwise one
    assert apart[1][1] < apart[0][1]


def residual() -> onnx.ModelProto:
    """A block with an addition around it, and a transposed convolution in front of a head."""
    random = np.random.default_rng(3)
    spread = np.geomspace(0.1, 10, 6)
    values = {
        "w1": random.normal(size=(6, 3, 1, 1)) * spread[:, None, None, None],
        "w2": random.normal(size=(5, 6, 1, 1)),
        "w3": random.normal(size=(6, 5, 1, 1)) * spread[:, None, None, None],
        "w4": random.normal(size=(6, 6, 2, 2)) * spread[:, None, None],
        "b4": random.uniform(0.5, 1, size=6),
        "w5": random.normal(size=(2, 6, 1, 1)),
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1"], ["a"], "a"),
        make("Conv", ["a", "w2"], ["b"], "b"),
        make("Relu", ["b"], ["c"]),
        make("Conv", ["c", "w3"], ["d"], "d"),
        make("Add", ["a", "d"], ["e"]),
        make("ConvTranspose", ["e", "w4", "b4"], ["f"], "f", strides=[2, 2]),
        make("Relu", ["f"], ["g"]),
        make("Conv", ["g", "w5"], ["y"], "y"),
    ]
    model = network()
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(one.astype(np.float32), name) for name, one in values.items()
    )
    return model


def test_tensors_around_an_addition_share_their_factors():
    model = residual()
    names = ["y", "a", "e", "g"]
    before = outputs(model, names, PICTURES[0])
    assert equalise(model, ["y"], [{"x": PICTURES[0]}]) == 3  # a, d, e; b, c; f, g
    after = outputs(model, names, PICTURES[0])
    np.testing.assert_allclose(after[0], before[0], rtol=1e-4, atol=1e-4 * np.abs(before[0]).max())
    apart = [
        [np.ptp(np.log(np.abs(one).max(axis=(0, 2, 3)))) for one in found[1:]]
        for found in (before, after)
    ]
    assert [bool(new < 0.9 * old) for old, new in zip(*apart, strict=True)] == [True] * 3
    assert apart[1][2] == pytest.approx(0, abs=1e-5)  # in front of the kept head


def test_a_sum_that_another_operator_reads_is_left_alone():
    model = residual()
    model.graph.node.append(helper.make_node("Sigmoid", ["e"], ["z"], "z"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert equalise(model, ["y"], [{"x": PICTURES[0]}]) == 2


def test_a_sum_that_repeats_one_channel_is_left_alone():
    model = residual()
    w3 = np.random.default_rng(4).normal(size=(1, 5, 1, 1)).astype(np.float32)
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(w3, "w3"))
    before = outputs(model, ["y"], PICTURES[0])[0]
    assert equalise(model, ["y"], [{"x": PICTURES[0]}]) == 2
    after = outputs(model, ["y"], PICTURES[0])[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def widened(w2: np.ndarray, group: int) -> onnx.ModelProto:
    """The network with another second convolution."""
    model = network()
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(w2.astype(np.float32), "w2"))
    model.graph.node[2].attribute[0].i = group
    return model


def test_a_grouped_convolution_that_mixes_channels_is_left_alone():
    model = widened(np.random.default_rng(2).uniform(size=(6, 3, 3, 3)), group=2)
    before = outputs(model, ["y"], PICTURES[0])[0]
    assert equalise(model, [], [{"x": PICTURES[0]}]) == 1  # the pair behind it
    after = outputs(model, ["y"], PICTURES[0])[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_a_channel_that_nothing_reads_does_not_decide_the_others_factors():
    model = network()
    weights = numpy_helper.to_array(model.graph.initializer[3]).copy()
    weights[:, 2] = 0
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(weights, "w3"))
    before = outputs(model, ["y", "d"], PICTURES[0])
    equalise(model, [], [{"x": PICTURES[0]}])
    after = outputs(model, ["y", "d"], PICTURES[0])
    np.testing.assert_allclose(after[0], before[0], rtol=1e-4, atol=1e-4 * np.abs(before[0]).max())
    apart = [np.ptp(np.log(np.delete(d.max(axis=(0, 2, 3)), 2))) for _, d in (before, after)]
    assert apart[1] < 0.8 * apart[0]


def test_an_activation_with_a_ceiling_is_left_alone():
    model = network("HardSigmoid")
    expected = model.SerializeToString()
    assert equalise(model, [], [{"x": PICTURES[0]}]) == 0
    assert model.SerializeToString() == expected
