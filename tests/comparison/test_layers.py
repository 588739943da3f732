"""The tensors inside of two graphs: equal ones, changed ones, in parts of bounded size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cfdist.backends.model import BackendModel
from cfdist.comparison import layers
from cfdist.comparison.differences import HeadDifference
from cfdist.comparison.layers import (
    compare_layers,
    layers_section,
    letterboxed_pictures,
    load_side,
)
from cfdist.comparison.topology import match
from cfdist.errors import UserError
from cfdist.widerface.manifest import WorkItem
from tests.fakes import onnx_forms

PICTURES = [
    np.random.default_rng(seed).integers(0, 256, (1, 64, 64, 3), np.uint8) for seed in range(2)
]


@pytest.fixture(scope="module")
def small(tmp_path_factory, spec):
    path = onnx_forms.network(tmp_path_factory.mktemp("small") / "m.onnx")
    return spec(path, height=64, width=64, outputs=None)


@pytest.fixture
def changed(small, spec, tmp_path):
    """The same with the third layer's weights one percent larger."""
    model = onnx.load(str(small.path))
    weights = next(one for one in model.graph.initializer if one.name == "w3")
    values = numpy_helper.to_array(weights) * np.float32(1.01)
    weights.CopyFrom(numpy_helper.from_array(values, "w3"))
    onnx.save(model, str(tmp_path / "changed.onnx"))
    return spec(tmp_path / "changed.onnx", height=64, width=64, outputs=None)


def compared(reference, candidate, limits, backends=("onnxruntime", "onnxruntime")):
    sides = tuple(
        load_side(BackendModel(name, spec), side, Path())
        for name, spec, side in zip(
            backends, (reference, candidate), ("reference", "candidate"), strict=True
        )
    )
    matched = match(sides[0].graph, sides[1].graph)
    sums = compare_layers(sides, matched, PICTURES, str)
    return layers_section(matched, sums, limits)


@pytest.fixture
def limits(compose):
    return compose("job=compare", "compare.layers=true").compare


def test_a_file_is_equal_to_itself(small, limits):
    found = compared(small, small, limits)
    assert (found["first_different"], found["first_past"]) == (None, None)
    assert found["within_tolerance"] is True
    assert {one["relative"] for one in found["layers"]} == {0.0}
    assert len(found["layers"]) == 15


def test_a_layer_whose_weights_were_changed_is_named(small, changed, limits):
    found = compared(small, changed, limits)
    assert found["first_different"]["tensor"] == found["first_past"]["tensor"] == "c3"
    assert found["first_past"]["weights"] == ["w3"]
    assert found["first_past"]["relative"] == pytest.approx(0.01, rel=1e-3)
    assert found["within"] == {"layers": False}
    wide = compared(small, changed, limits.model_copy(update={"relative": 0.02}))
    assert (wide["first_past"], wide["within_tolerance"]) == (None, True)
    assert wide["first_different"]["tensor"] == "c3"


def test_runtimes_differ_by_rounding_alone(small, limits):
    found = compared(small, small, limits, ("onnxruntime", "openvino"))
    assert found["within_tolerance"] is True
    assert max(one["relative"] for one in found["layers"]) < 1e-5


def test_parts_of_any_size_give_the_same(small, changed, limits, monkeypatch):
    whole = compared(small, changed, limits)
    monkeypatch.setattr(layers, "PART_BYTES", 4 * 8 * 32 * 32)
    said = []
    sides = tuple(
        load_side(BackendModel("onnxruntime", one), "reference", Path()) for one in (small, changed)
    )
    matched = match(sides[0].graph, sides[1].graph)
    sums = compare_layers(sides, matched, PICTURES, said.append)
    assert layers_section(matched, sums, limits)["first_past"] == whole["first_past"]
    assert len(said) > 3
    assert said[-1] == "15 of 15 tensors"


def test_values_that_are_no_numbers_are_past_every_tolerance(small, limits):
    side = load_side(BackendModel("onnxruntime", small), "reference", Path())
    matched = match(side.graph, side.graph)
    nan = [HeadDifference(np.nan, np.nan, 1, np.nan, np.nan, np.nan)] * len(matched.pairs)
    found = layers_section(matched, nan, limits)
    assert found["first_past"] == found["layers"][0]


def test_what_has_no_tensors_to_show_is_refused(small, spec, tmp_path):
    (tmp_path / "model.om").write_bytes(b"IMOD" + bytes(300))
    with pytest.raises(UserError, match=r"candidate=.*model.om: is an OM .* without compare.layer"):
        load_side(BackendModel("om", spec(tmp_path / "model.om")), "candidate", tmp_path)
    # compare.dump is the candidate's alone.
    with pytest.raises(UserError, match=r"give the ONNX .* as reference, and the OM as candidate$"):
        load_side(BackendModel("om", spec(tmp_path / "model.om")), "reference", tmp_path)
    path = onnx_forms.quantised(small.path, tmp_path / "q.onnx", "qoperator")
    model = BackendModel("onnxruntime", spec(path, height=64, width=64, outputs=None))
    with pytest.raises(UserError, match=r"reference=.*q.onnx: is quantised to operators on bytes"):
        load_side(model, "reference", tmp_path)


def test_pictures_are_taken_from_all_over_the_data_set(small, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((64, 64, 3), i, np.uint8))
    paths[2].write_bytes(b"nothing")
    items = [WorkItem(f"e/{path.stem}", str(path), 1) for path in paths]
    model = load_side(BackendModel("onnxruntime", small), "reference", Path())
    rows, failures = letterboxed_pictures(items, 3, model)
    assert [row[0, 32, 32, 0] for row in rows] == [0, 4]
    assert list(failures) == ["e/2"]
    assert len(letterboxed_pictures(items, 9, model)[0]) == 5
    with pytest.raises(UserError, match="none of 1 pictures can be read; the first, e/2: "):
        letterboxed_pictures(items[2:3], 4, model)
