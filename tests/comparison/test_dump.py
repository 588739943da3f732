"""An OM's own dump, in the file names and the description that Ascend's tools write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cfdist.backends.model import BackendModel
from cfdist.comparison.dump import match_dump
from cfdist.comparison.layers import compare_layers, layers_section, load_side
from cfdist.errors import UserError
from tests.fakes import onnx_forms

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
# The OM's operators: name, type, the ONNX nodes in it, and the one whose output it gives.
FUSED = (
    ("c1r1", "Conv2D", ["c1", "r1"], "r1"),
    ("c2r2", "Conv2D", ["c2", "r2"], "r2"),
    ("net/c3r3", "Conv2D", ["c3", "r3"], "r3"),
    ("up", "Deconvolution", None, ""),  # made of itself
    ("trans_TransData_1", "TransData", [], ""),
    ("PartitionedCall_heat_Sigmoid", "Sigmoid", ["output1"], "output1"),
)


@pytest.fixture
def reference(spec, tmp_path):
    path = onnx_forms.network(tmp_path / "m.onnx")
    model = BackendModel("onnxruntime", spec(path, height=64, width=64, outputs=None))
    return load_side(model, "reference", tmp_path)


@pytest.fixture
def dump(reference, tmp_path) -> Path:
    """What the tools write of the network's float16 copy, the OM's batch being 2."""
    folder = tmp_path / "dump"
    folder.mkdir()
    names = [origin or name for name, *_, origin in FUSED if not name.startswith("trans")]
    arrays = dict(zip(names, reference.part(names)(reference.input(PICTURE)), strict=True))
    operators = []
    for i, (name, kind, parts, origin) in enumerate(FUSED):
        attributes = [] if parts is None else [_attribute("_datadump_original_op_names", parts)]
        about = [_attribute("_datadump_origin_name", origin)] if origin else []
        about += [{"key": "_datadump_origin_output_index", "value": {"i": 0}}] if origin else []
        operators.append(
            {"name": name, "type": kind, "attr": attributes, "output_desc": [{"attr": about}]}
        )
        array = arrays.get(origin or name, np.zeros((1, 1, 4, 4, 16)))
        array = np.concatenate([array, np.zeros_like(array)]).astype(np.float16)
        shape = "x".join(map(str, array.shape))
        file = f"{kind}.{name.replace('/', '_')}.{i}.7.1682067845380{i:03}"
        np.save(folder / f"{file}.output.0.{shape}.npy", array)
        np.save(folder / f"{file}.input.0.{shape}.npy", array)
    (folder / "m.json").write_text(json.dumps({"name": "m", "graph": [{"op": operators}]}))
    return folder


def _attribute(key: str, value: str | list[str]) -> dict:
    if isinstance(value, str):
        return {"key": key, "value": {"s": value}}
    return {"key": key, "value": {"list": {"val_type": 1, **({"s": value} if value else {})}}}


def compared(compose, reference, folder: Path) -> dict:
    candidate, matched = match_dump(reference.graph, folder)
    sums = compare_layers((reference, candidate), matched, [PICTURE], str)
    limits = compose("job=compare", "compare.layers=true", "compare.relative=0.01").compare
    return layers_section(matched, sums, limits)


def test_what_was_not_fused_away_is_compared(compose, reference, dump):
    found = compared(compose, reference, dump)
    assert found["first_past"] is None
    assert {one["tensor"]: one["candidate_tensor"] for one in found["layers"]} == {
        "r1": "c1r1:0", "r2": "c2r2:0", "r3": "net_c3r3:0", "up": "up:0",
        "output1": "PartitionedCall_heat_Sigmoid:0",
    }  # fmt: skip
    assert found["matched"] == "the names that ATC keeps; 10 others are not in the dump"
    assert 0 < max(one["relative"] for one in found["layers"]) < 1e-3


def test_the_operator_that_computes_something_else_is_named(compose, reference, dump):
    (path,) = dump.glob("*net_c3r3*output*")
    np.save(path, np.load(path) * np.float16(1.1))
    found = compared(compose, reference, dump)
    assert (found["first_past"]["tensor"], found["first_past"]["candidate_tensor"]) == (
        "r3",
        "net_c3r3:0",
    )


def test_tensors_of_bytes_are_counted_apart_from_those_that_are_not_there(reference, dump):
    for path in dump.glob("*output*.npy"):
        if "c1r1" in path.name:
            np.save(path, np.load(path).astype(np.int8))
    _, matched = match_dump(reference.graph, dump)
    assert matched.how.endswith("10 others are not in the dump, and of 1 it holds no floats")
    for path in dump.glob("*output*.npy"):
        np.save(path, np.load(path).astype(np.int8))
    with pytest.raises(UserError, match="of 5 tensors of the reference it holds no floats; give"):
        match_dump(reference.graph, dump)


def test_what_is_no_such_dump_is_refused(reference, dump, tmp_path):
    def refusal(folder: Path = dump) -> str:
        with pytest.raises(UserError) as caught:
            match_dump(reference.graph, folder)
        return str(caught.value)

    assert "holds no <type>.<operator>" in refusal(tmp_path)
    (path,) = dump.glob("*c1r1*output*")
    whole = np.load(path)
    np.save(path, whole.reshape(2, 1, 8, 32, 32))
    assert "is (2, 1, 8, 32, 32), but r1 (Relu) is (n, 8, 32, 32); convert" in refusal()
    path.write_bytes(b"\x93NUMPY")
    assert f"{path} cannot be read" in refusal()
    np.save(path, whole)
    again = path.with_name(path.name.replace("1682067845380", "1682067845381"))
    again.write_bytes(path.read_bytes())
    assert "are the same output; leave the files of one inference" in refusal()
    again.unlink()
    description = dump / "m.json"
    text = description.read_text()
    description.write_text(text[:-9])
    assert "m.json: is no description of an OM by atc --mode=1 (JSONDecodeError" in refusal()
    description.write_text("[]")
    assert "m.json: is no description of an OM by atc --mode=1 (TypeError" in refusal()
    description.unlink()
    assert "holds 0 .json files, expected one" in refusal()
    description.write_text(text)
    for node in reference.graph.graph.node:
        node.name = ""
    assert "none of its 6 tensors is the output of an operator of the reference" in refusal()
