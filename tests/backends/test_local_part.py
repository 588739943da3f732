"""The local part of a network, window by window, is what the whole network computes there."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cfdist.backends.local_part import LocalPart, Reach, find_local_part
from cfdist.backends.onnx_file import load_onnx

SIDES = (160, 224)
CELLS = (SIDES[0] // 8, SIDES[1] // 8)


@pytest.fixture(scope="module")
def network(spec) -> onnx.ModelProto:
    return load_onnx(spec(height=SIDES[0], width=SIDES[1], batch=1)).model


@pytest.fixture(scope="module")
def part(network) -> LocalPart:
    return find_local_part(network)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (1, 3, *SIDES)).astype(np.float32)


@pytest.fixture(scope="module")
def tensors(part, picture) -> list[np.ndarray]:
    """The tensors of the cut for the whole picture."""
    return infer(part.window(*((0, cells) for cells in CELLS)).model, [picture])


def infer(model: onnx.ModelProto, inputs) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


intervals = st.lists(st.integers(0, 99), min_size=2, max_size=2, unique=True).map(sorted)


@given(
    st.integers(1, 8),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(1, 40),
    intervals.map(tuple),
)
def test_a_cell_sees_pixels_within_its_reach(stride, before, after, cells, pixels):
    seen = [
        cell
        for cell in range(cells)
        if any(cell * stride - before <= pixel <= cell * stride + after for pixel in range(*pixels))
    ]
    first, last = Reach(stride, before, after).seeing(pixels, cells)
    assert list(range(first, last)) == seen


def test_no_pixels_are_seen_by_no_cell():
    assert Reach(8, 13, 13).seeing((0, 0), 20) == (0, 0)
    assert Reach(8, 13, 13).seeing((40, 40), 20) == (0, 0)


def test_the_authors_network_is_cut_before_its_deep_layers(part):
    of_cut = [(t.reach.stride, t.channels, t.sides) for t in part.cut.values()]
    assert of_cut == [(8, 32, (20, 28)), (4, 24, (40, 56))]
    # One 3x3 convolution at each pixel, two at every second, two at every fourth, counted from a
    # cell's first pixel: 1 + 2 * 2 + 2 * 4 and one cell of the finer tensor more.
    assert part.reach == Reach(8, 13, 13)
    assert part.cells == CELLS


def test_a_later_layer_that_only_takes_of_the_part_belongs_to_it(network, part):
    # The upper layers look at the finer tensor through a 1x1 convolution, far down the file.
    finer = list(part.cut)[1]
    order = [node.output[0] for node in network.graph.node]
    local = [node.output[0] for node in part.nodes]
    assert local[-1] == finer
    assert order.index(finer) > order.index(local[0]) + 2 * len(local)


def test_the_rest_continues_where_the_local_part_ends(network, part, picture, tensors):
    for whole, split in zip(infer(network, [picture]), infer(part.rest(), tensors), strict=True):
        np.testing.assert_allclose(split, whole, rtol=0, atol=1e-3)


@settings(max_examples=25)
@given(
    *[st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True).map(sorted) for n in CELLS]
)
def test_a_window_gives_its_piece_of_the_tensors(part, picture, tensors, rows, columns):
    window = part.window(tuple(rows), tuple(columns))
    (top, bottom), (left, right) = window.pixels
    pieces = infer(window.model, [picture[:, :, top:bottom, left:right]])
    for tensor, whole, piece in zip(part.cut.values(), tensors, pieces, strict=True):
        scale = 8 // tensor.reach.stride
        (y, y_end), (x, x_end) = ([edge * scale for edge in axis] for axis in (rows, columns))
        np.testing.assert_allclose(piece, whole[:, :, y:y_end, x:x_end], rtol=0, atol=1e-3)


@given(st.integers(0, SIDES[0] - 1), st.integers(0, SIDES[1] - 1))
@settings(max_examples=10)
def test_only_cells_that_see_a_pixel_depend_on_it(part, picture, tensors, y, x):
    other = picture.copy()
    other[:, :, y, x] = 1000.0 - other[:, :, y, x]
    rows = part.reach.seeing((y, y + 1), CELLS[0])
    columns = part.reach.seeing((x, x + 1), CELLS[1])
    changed = infer(part.window((0, CELLS[0]), (0, CELLS[1])).model, [other])
    for tensor, before, after in zip(part.cut.values(), tensors, changed, strict=True):
        scale = 8 // tensor.reach.stride
        where = np.argwhere(np.abs(after - before).max(axis=(0, 1)) > 1e-3)
        assert len(where)
        assert (where.min(axis=0) >= [rows[0] * scale, columns[0] * scale]).all()
        assert (where.max(axis=0) < [rows[1] * scale, columns[1] * scale]).all()


def tiny(nodes, weights: dict[str, tuple[int, ...]], opset: int = 13) -> onnx.ModelProto:
    """A network of a (batch, 3, 32, 32) float32 input `x` whose last node makes `y`."""
    random = np.random.default_rng(0)
    initializers = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, random.normal(size=shape).ravel())
        for name, shape in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv(name: str, taken: str, made: str, **attributes) -> onnx.NodeProto:
    return helper.make_node("Conv", [taken, name], [made], **attributes)


STEM = conv("w", "x", "a", strides=[2, 2], pads=[1, 1, 1, 1])
LAST = helper.make_node("Softmax", ["b"], ["y"])  # looks at everything


@pytest.mark.parametrize("opset", [9, 13])
def test_a_shortcut_is_cropped_to_what_the_longer_way_needs(opset):
    nodes = [
        STEM,
        conv("v", "a", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "c"], ["b"]),
        LAST,
    ]
    part = find_local_part(tiny(nodes, {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3)}, opset))
    assert list(part.cut) == ["b"]
    picture = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    whole = infer(part.window((0, 16), (0, 16)).model, [picture])[0]
    window = part.window((5, 9), (0, 16))
    assert "Slice" in {node.op_type for node in window.model.graph.node}
    assert window.pixels == ((7, 20), (0, 32))
    piece = infer(window.model, [picture[:, :, 7:20]])[0]
    np.testing.assert_allclose(piece, whole[:, :, 5:9], atol=1e-5)


@pytest.mark.parametrize(
    ("first", "weights"),
    [
        # Looks at the whole picture.
        (helper.make_node("GlobalAveragePool", ["x"], ["a"]), {}),
        # Further than is worth it.
        (conv("w", "x", "a", strides=[2, 2], pads=[20] * 4), {"w": (4, 3, 41, 41)}),
        # One-dimensional strides, and padding that the runtime chooses.
        (conv("w", "x", "a", strides=[2, 1], pads=[1] * 4), {"w": (4, 3, 3, 3)}),
        (conv("w", "x", "a", strides=[2, 2], auto_pad="SAME_UPPER"), {"w": (4, 3, 3, 3)}),
        # Its cells do not lie on the picture's.
        (conv("w", "x", "a", strides=[2, 2]), {"w": (4, 3, 3, 3)}),
        # Looks at every second pixel only, and never at the last one.
        (conv("w", "x", "a", strides=[2, 2]), {"w": (4, 3, 1, 1)}),
        # A number for each column.
        (helper.make_node("Mul", ["x", "w"], ["a"]), {"w": (32,)}),
        # A node that another vendor named like a standard one.
        (helper.make_node("Relu", ["x"], ["a"], domain="com.example"), {}),
        # A number of its own for each cell.
        (helper.make_node("Add", ["x", "w"], ["a"]), {"w": (1, 3, 32, 32)}),
        # Hands over more than the picture holds.
        (conv("w", "x", "a", strides=[2, 2], pads=[1] * 4), {"w": (16, 3, 3, 3)}),
    ],
)
def test_what_does_not_qualify_is_left_whole(first, weights):
    nodes = [first, helper.make_node("Relu", ["a"], ["b"]), LAST]
    assert find_local_part(tiny(nodes, weights)) is None


def test_normalisation_by_channel_is_local():
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["s"]),
        conv("w", "s", "a", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        LAST,
    ]
    part = find_local_part(tiny(nodes, {"scale": (1, 3, 1, 1), "w": (4, 3, 3, 3)}))
    assert list(part.cut) == ["b"]
    assert part.cut["b"].reach == Reach(2, 1, 1)


def test_a_network_for_bytes_is_left_whole(network):
    model = onnx.ModelProto()
    model.CopyFrom(network)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert find_local_part(model) is None
