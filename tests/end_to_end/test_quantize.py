"""A float32 ONNX to int8, and what that costs and gains; bad input is one line, before Ray."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from cfdist.backends.onnx_operators import quantised_operators
from cfdist.distributed import session
from cfdist.errors import UserError
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.report.screen import console
from cfdist.sample import ensure_sample
from jobs import quantize
from tests.fakes import onnx_forms
from tests.report.page.checks import checked

SIZE = ("model.height=256", "model.width=256")


def run(compose, folder: Path, *overrides: str) -> tuple[int, dict, str]:
    """The job in this process: exit code, results and what it prints."""
    folder.mkdir(parents=True)
    with console.capture() as capture:
        code = quantize.main(compose("job=quantize", *overrides), folder, time.time())
    return code, json.loads((folder / "results.json").read_text()), capture.get()


@pytest.mark.usefixtures("ray_session")
def test_the_authors_network_in_int8(compose, tmp_path):
    calibration = tmp_path / "pictures"
    calibration.mkdir()
    for number, path in enumerate(sorted((SAMPLE_FOLDER / "WIDER_val").glob("images/*/*"))[::9]):
        mirrored = cv2.flip(cv2.imread(str(path)), 1)
        cv2.imwrite(str(calibration / f"{number}.jpg"), mirrored)
    target = tmp_path / "models" / "int8.onnx"
    overrides = (
        *SIZE, "dataset.limit=12", "model.batch=4", f"quantize.calibration={calibration}",
        "quantize.pictures=6", f"quantize.output={target}",
    )  # fmt: skip
    code, results, text = run(compose, tmp_path / "a", *overrides)
    assert code == 0
    assert quantised_operators(onnx.load(str(target))) == ["DequantizeLinear", "QuantizeLinear"]
    made = results["quantize"]
    assert (made["made"], made["layers"], made["calibration"]["pictures"]) == (True, 54, 6)
    assert made["kept"] == ["363", "366", "369", "371", "374", "536", "538", "539", "540"]
    assert list(made["runtimes"]) == ["openvino", "onnxruntime"]
    html = (tmp_path / "a" / "report.html").read_text()
    assert checked(html).table("int8 against float32")[1][0].startswith("openvino, official")
    assert html.count("The pictures that differ most on ") == 2
    assert len(html) < 5_000_000
    for found in made["runtimes"].values():
        rates = found["pictures_per_second"]
        assert found["speedup"] == pytest.approx(rates["int8"] / rates["float32"])
        assert min(rates.values()) > 0
        assert found["ap"]["float32"]["official"]["easy"] > 0.9
        assert found["boxes"]["reference"] > 50
        assert 0.7 < found["boxes"]["found_share"] < 1  # int8 is not float32
        for apart in found["ap_difference"].values():
            assert max(map(abs, apart.values())) < 0.05
    assert "54 layers in int8, 9 operators kept in float32" in text


def test_one_runtime_or_all(compose):
    assert quantize._runtimes(compose("job=quantize")) == ["openvino", "onnxruntime"]
    assert quantize._runtimes(compose("job=quantize", "backend=onnxruntime")) == ["onnxruntime"]


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """Files that are no input for it, and a folder that holds an evaluated picture."""
    small = onnx_forms.network(tmp_path / "small.onnx")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.om").write_bytes(b"IMOD" + bytes(300))
    (tmp_path / "model.pth").write_bytes(b"\x80\x02}q\x00.")
    evaluated = sorted(ensure_sample(SAMPLE_FOLDER).root.glob("WIDER_val/images/*/*"))[0]
    (tmp_path / "held").mkdir()
    shutil.copy(evaluated, tmp_path / "held" / "renamed.jpg")
    cv2.imwrite(str(tmp_path / "held" / "other.jpg"), np.zeros((60, 60, 3), np.uint8))
    onnx_forms.quantised(small, tmp_path / "int8.onnx", "qdq")
    return {"small": small, "folder": tmp_path}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.path={folder}/int8.onnx"], r"model .*int8.onnx: is quantised already"),
        (["model.path={folder}/model.om"], r"model.om: is an OM of Ascend's ATC; give the ONNX"),
        (["model.path={folder}/model.pth"], r"model.pth: .*make an ONNX of it first \(job=export"),
        (["quantize.calibration={folder}/empty"], r"calibration=.*empty: holds no picture"),
        (["quantize.calibration={folder}/held"], r"held: holds 1 of the 69 .*renamed.jpg"),
        (["quantize.calibration={folder}/gone"], r"gone: no such file or folder"),
        (["quantize.keep=[nothing]"], r"quantize.keep: 'nothing' is no operator of"),
        (["quantize.output={small}"], r"quantize.output=.*small.onnx: is the model itself"),
        (["quantize.output={folder}/small.onnx/x"], r"small.onnx/x: cannot be written"),
        (["quantize.output={folder}"], r"quantize.output=.*: cannot be written \(Is a directory"),
        (["backend=torch"], r"backend=torch: the int8 file is for openvino and onnxruntime"),
        (["backend=simulated"], r"backend=simulated: the int8 file is for"),
        (["quantize.percentile=99"], r"quantize.percentile: has no effect .*quantize.method=per"),
        (["eval.gate=true"], r"eval.gate: job=quantize does not read it"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(
    compose, tmp_path, places, monkeypatch, overrides, words
):
    monkeypatch.setattr(session, "session", None)  # is not come to
    named = [one.format(**places) for one in overrides]
    out = tmp_path / "out"
    small = [f"model.path={places['small']}", "model.outputs=[output1,output2,output3,output4]"]
    keys = {one.partition("=")[0] for one in named}
    defaults = [one for one in small if one.partition("=")[0] not in keys]
    config = compose("job=quantize", "quantize.pictures=1", *defaults, *named)
    config.mark_typed(frozenset(keys))
    out.mkdir()
    with pytest.raises(UserError, match=words):
        quantize.main(config, out, time.time())
    assert not any(out.iterdir())
