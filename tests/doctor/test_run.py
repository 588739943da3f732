"""What a run needs besides the host; Ray is left out here."""

from __future__ import annotations

import ast
import re

import pytest

from cfdist.doctor import run
from cfdist.doctor.run import run_findings
from cfdist.doctor.table import can_run
from cfdist.errors import UserError
from tests.conftest import PROJECT

SIMULATED = ("job=doctor", "backend=simulated", "backend.latency_ms=0")


@pytest.fixture
def look(compose, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "host_findings", lambda _: [])
    monkeypatch.setattr(run, "_ray", lambda *_: [])

    def found(*settings: str) -> dict:
        return {one.what: one for one in run_findings(compose(*settings), tmp_path / "out")}

    return found


@pytest.mark.slow
def test_a_runtime_is_tried_and_the_one_that_is_chosen_has_to_work(look, monkeypatch):
    broken = {"openvino": "no kernel", "onnxruntime": "EP Error"}
    monkeypatch.setattr(run, "reason_against", lambda name, *_: broken.get(name, ""))
    monkeypatch.setattr(run, "remedy_of", lambda name: f"repair {name}")
    found = look("job=doctor", "backend=onnxruntime")
    assert found["onnxruntime"].state == "FAULT" and found["onnxruntime"].found == "EP Error"
    assert found["onnxruntime"].remedy.startswith("repair onnxruntime, or choose another backend")
    assert "openvino" not in found
    broken.clear()
    found = look("job=doctor", "backend=onnxruntime")
    assert can_run(found.values()) and found["model"].found.startswith("centerface.onnx, sha256 ")


def test_a_model_that_is_not_there(look):
    found = look("job=doctor", "backend=openvino", "model.path=none.onnx")
    assert found["model"].state == "FAULT" and "none.onnx" in found["model"].found
    assert found["model"].remedy == "give the path of a model file"


@pytest.mark.slow
def test_data_that_is_missing_or_a_part(look, shared, monkeypatch):
    missing = look(*SIMULATED, "dataset=wider_val")
    assert missing["ground truth"].state == missing["pictures"].state == "FAULT"
    assert "job=download" in missing["pictures"].remedy
    mini = shared / "data" / "wider_val_mini"
    data = (f"dataset.root={mini}", f"dataset.ground_truth={mini / 'ground_truth'}")
    part = look(*SIMULATED, "dataset=wider_val", *data)
    assert part["ground truth"].found == "3226 pictures, 39708 boxes"
    assert part["pictures"].state == "note" and "610 of 3226" in part["pictures"].found
    assert can_run(part.values())


def test_what_ray_says_is_the_fault_and_its_remedy(compose, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise UserError("no loopback; ip link set lo up")

    monkeypatch.setattr(run, "host_findings", lambda _: [])
    monkeypatch.setattr(run.execution, "start", refuse)
    *_, last = run_findings(compose(*SIMULATED), tmp_path / "out")
    assert (last.what, last.found, last.remedy) == ("Ray", "no loopback", "ip link set lo up")


@pytest.mark.slow
def test_each_symptom_of_the_page_is_a_message_of_the_program():
    said = "\0".join(
        node.value
        for path in PROJECT.glob("cfdist/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    page = (PROJECT / "docs" / "troubleshooting.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    symptoms = [text for row in rows for text in re.findall("`([^`]*)`", row)]
    assert len(symptoms) > 20
    assert [one for text in symptoms for one in text.split("…") if one not in said] == []
