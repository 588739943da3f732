"""OpenVINO's own files: the tensors inside of an IR against those of the ONNX it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, numpy_helper

from cfdist.backends.model import BackendModel
from cfdist.backends.onnx_file import load_onnx
from cfdist.backends.openvino import picture_model
from cfdist.comparison.layers import compare_layers, layers_section, load_side
from cfdist.comparison.topology import match
from cfdist.errors import UserError
from cfdist.model import ModelSpec, model_sha256
from tests.fakes import onnx_forms

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)


def as_ir(source: Path, compressed: bool = False) -> Path:
    """The IR that OpenVINO's converter makes of an ONNX, beside that."""
    target = source.with_name(f"{source.stem}_{compressed}.xml")
    ov.save_model(ov.convert_model(str(source)), str(target), compress_to_fp16=compressed)
    return target


@pytest.fixture
def model(tmp_path) -> Path:
    return onnx_forms.network(tmp_path / "m.onnx")


@pytest.fixture
def at_64(spec):
    def make(path: Path) -> ModelSpec:
        return spec(path, height=64, width=64, outputs=None)

    return make


@pytest.fixture
def compared(compose, at_64):
    """The results' section of two files, both run by OpenVINO."""

    def run(reference: Path, candidate: Path):
        sides = tuple(
            load_side(BackendModel("openvino", at_64(path)), "reference", path.parent)
            for path in (reference, candidate)
        )
        matched = match(sides[0].graph, sides[1].graph)
        sums = compare_layers(sides, matched, [PICTURE], str)
        return layers_section(matched, sums, compose("job=compare", "compare.layers=true").compare)

    return run


@pytest.mark.parametrize("form", ["float32", "float16", "bfloat16", "qdq"])
def test_an_ir_and_its_onnx_are_equal_both_ways_round(compared, model, form):
    if form in ("float16", "bfloat16"):
        kind = TensorProto.FLOAT16 if form == "float16" else TensorProto.BFLOAT16
        model = onnx_forms.in_one_format(model, model.with_name("h.onnx"), kind)
    elif form == "qdq":
        model = onnx_forms.quantised(model, model.with_name("q.onnx"), "qdq")
    ir = as_ir(model)
    for found in (compared(model, ir), compared(ir, model)):
        assert (found["matched"], found["first_past"]) == ("every operator", None)
        assert len(found["layers"]) == (11 if form == "qdq" else 15)


def test_weights_kept_in_16_bits_are_near(compared, model):
    found = compared(model, as_ir(model, compressed=True))
    assert 1e-5 < max(one["relative"] for one in found["layers"]) < 1e-3
    brief = onnx_forms.in_one_format(model, model.with_name("b.onnx"), TensorProto.BFLOAT16)
    found = compared(model, brief)
    assert 1e-4 < max(one["relative"] for one in found["layers"]) < 0.02


def test_a_quantised_ir_is_paired_with_the_float_onnx(compared, model):
    quantised = onnx_forms.quantised(model, model.with_name("q.onnx"), "qdq")
    straight = quantised.with_name("read.xml")  # bytes and all, as the ONNX has them
    ov.save_model(ov.Core().read_model(str(quantised)), str(straight))
    for ir in (as_ir(quantised), straight):
        found = compared(model, ir)
        assert found["matched"] == "every layer with its batch norm and activation"
        assert {one["tensor"] for one in found["layers"]} > {"r1", "r3", *onnx_forms.HEADS}
        assert 1e-3 < max(one["relative"] for one in found["layers"]) < 0.1


def test_a_weight_that_somebody_changed_is_found_by_name(compared, model):
    changed = onnx.load(str(model))
    weights = next(one for one in changed.graph.initializer if one.name == "w3")
    values = numpy_helper.to_array(weights) * np.float32(1.01)
    weights.CopyFrom(numpy_helper.from_array(values, "w3"))
    onnx.save(changed, str(model.with_name("changed.onnx")))
    ir = as_ir(model.with_name("changed.onnx"))
    for found in (compared(model, ir), compared(ir, model)):
        first = found["first_past"]
        assert (first["tensor"], first["candidate_tensor"], first["weights"]) == (
            "c3",
            "c3",
            ["w3"],
        )
        assert first["relative"] == pytest.approx(0.01, rel=0.02)


def test_a_batch_norm_that_is_folded_into_nothing_is_one_operator(compared, model):
    network = onnx.load(str(model))
    place = next(i for i, node in enumerate(network.graph.node) if node.name == "neck")
    parts = ("scale", "shift", "mean", "variance")
    for part, value in zip(parts, (0.9, 0.1, 0.2, 1.5), strict=True):
        values = np.linspace(value, 2 * value, 8, dtype=np.float32)
        network.graph.initializer.append(numpy_helper.from_array(values, part))
    norm = onnx.helper.make_node("BatchNormalization", ["sum", *parts], ["normed"], "norm")
    network.graph.node[place].input[0] = "normed"
    network.graph.node.insert(place, norm)
    onnx.save(network, str(model))
    found = compared(model, as_ir(model))
    assert (found["matched"], found["first_past"]) == ("every operator", None)
    assert "BatchNormalization" in {one["operator"] for one in found["layers"]}


def test_an_ir_that_takes_bytes_is_fed_with_these(compared, model, at_64):
    ir = model.with_name("bytes.xml")
    built = picture_model(load_onnx(at_64(model)), at_64(model), 4)
    ov.save_model(built, str(ir), compress_to_fp16=False)
    found = compared(model, ir)
    assert found["matched"] == "every operator from the first layer to the last"
    assert found["first_past"] is None


def test_an_ir_that_cannot_be_read_is_refused(model, at_64):
    ir = as_ir(model)
    weights = ir.with_suffix(".bin")
    whole = weights.read_bytes()
    digest = model_sha256(ir)

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            load_side(BackendModel("openvino", at_64(ir)), "reference", ir.parent)
        return str(caught.value)

    weights.write_bytes(whole[:-4] + b"\0\0\0\1")
    assert model_sha256(ir) != digest
    weights.write_bytes(whole[:9])
    assert "OpenVINO cannot read it" in refusal()
    weights.unlink()
    assert f"its weights, {weights.name}, are not beside it" in refusal()
    weights.write_bytes(whole)
    text = ir.read_text()
    ir.write_text(text[:5000])
    assert "OpenVINO cannot read it" in refusal()
    shuffled = ov.Core().read_model(text.encode(), ov.Tensor(np.frombuffer(whole, np.uint8)))
    wrong = ov.Model(shuffled.outputs[::-1], shuffled.get_parameters(), "shuffled")
    ov.save_model(wrong, str(ir), compress_to_fp16=False)
    assert "expected (1, 1, 16, 16); another network" in refusal()
