"""The files that hold an ONNX's weights: found, or refused by name."""

from __future__ import annotations

import os

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from cfdist.errors import UserError
from cfdist.model import model_sha256, verify_model
from cfdist.model.onnx_files import all_tensors, parse_graph, weight_files
from tests.fakes import onnx_forms


@pytest.fixture
def model(tmp_path):
    """An ONNX with its weights in weights.bin."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = onnx_forms.network(tmp_path / "source.onnx")
    return onnx_forms.external(source, folder / "m.onnx")


def files_of(path):
    return weight_files(parse_graph(path), path)


def change_location(path, **entries):
    """Give the first tensor in another file other entries."""
    graph = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in all_tensors(graph) if t.data_location == TensorProto.EXTERNAL)
    for key, value in entries.items():
        old = [entry for entry in tensor.external_data if entry.key == key]
        entry = old[0] if old else tensor.external_data.add(key=key)
        entry.value = value
    path.write_bytes(graph.SerializeToString())


def test_the_files_are_found_once(model, tmp_path):
    assert files_of(model) == [model.parent / "weights.bin"]
    assert files_of(tmp_path / "source.onnx") == []


def test_the_digest_covers_both_files(model, tmp_path):
    before = model_sha256(model)
    weights = model.parent / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[5] ^= 1
    weights.write_bytes(content)
    assert model_sha256(model) != before
    content[5] ^= 1
    weights.write_bytes(content)
    assert model_sha256(model) == before
    moved = tmp_path / "elsewhere"
    model.parent.rename(moved)
    (moved / "m.onnx").rename(moved / "n.onnx")
    assert model_sha256(moved / "n.onnx") == before


def test_the_digest_of_one_file_is_not_that_of_two(model):
    import hashlib

    own = hashlib.sha256(model.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"expected .* \(the digest of the file with its weights"):
        verify_model(model, None, own)
    assert verify_model(model, None, model_sha256(model)) == model_sha256(model)


def test_weights_that_are_not_there_are_named(model):
    (model.parent / "weights.bin").unlink()
    with pytest.raises(UserError, match=r"lie in 'weights\.bin', which is not in .*beside"):
        files_of(model)


def test_weights_that_were_cut_short_are_named(model):
    weights = model.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"end at byte \d+ of 'weights\.bin', which has \d+"):
        files_of(model)


@pytest.mark.parametrize(
    "location",
    ["../outside.bin", "/etc/hostname", "", ".", "sub/../../outside.bin", "m.onnx", "a\0b"],
)
def test_files_outside_of_the_model_s_folder_are_not_read(model, location):
    (model.parent.parent / "outside.bin").write_bytes(bytes(100_000))
    change_location(model, location=location)
    with pytest.raises(UserError, match=r"not a file below the model's own folder|is not in"):
        files_of(model)


def test_a_link_that_leaves_the_folder_is_not_followed(model):
    outside = model.parent.parent / "outside.bin"
    (model.parent / "weights.bin").rename(outside)
    os.symlink(outside, model.parent / "weights.bin")
    with pytest.raises(UserError, match="not a file below the model's own folder"):
        files_of(model)


@pytest.mark.parametrize("entry", [{"offset": "-4"}, {"length": "x"}, {"offset": "1e3"}])
def test_places_that_are_no_numbers_are_refused(model, entry):
    change_location(model, **entry)
    with pytest.raises(UserError, match="no valid place"):
        files_of(model)


def test_a_folder_below_may_hold_the_weights(model):
    (model.parent / "sub").mkdir()
    (model.parent / "weights.bin").rename(model.parent / "sub" / "weights.bin")
    graph = onnx.load(str(model), load_external_data=False)
    for tensor in all_tensors(graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "sub/weights.bin"
    model.write_bytes(graph.SerializeToString())
    assert files_of(model) == [model.parent / "sub" / "weights.bin"]


def test_weights_inside_of_nodes_count(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(16))
    tensor = TensorProto(
        name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="w.bin")
    node = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    graph = onnx.helper.make_graph([node], "g", [], [])
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert files_of(path) == [tmp_path / "w.bin"]
    (tmp_path / "w.bin").write_bytes(bytes(15))
    with pytest.raises(UserError, match="end at byte 16"):
        files_of(path)


@given(st.binary(max_size=300))
def test_anything_else_is_no_onnx(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "m.onnx"
    path.write_bytes(content)
    graph = parse_graph(path)
    assert graph is None or (graph.ir_version > 0 and len(graph.graph.node))
