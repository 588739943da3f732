"""Models that a runtime may not run are tried in another process."""

from __future__ import annotations

import pytest

from cfdist.backends import child, trial
from cfdist.errors import UserError

OPTIONS = {"latency_ms": 0, "preset": None, "fault": None, "fault_device": None}


@pytest.fixture(autouse=True)
def _forget():
    trial._reason.cache_clear()


def test_a_model_that_runs_passes(spec):
    assert trial.failure("simulated", spec(height=64, width=64), OPTIONS) == ""
    trial.refuse_if_it_fails("simulated", spec(height=64, width=64), OPTIONS, ["BFLOAT16"])


@pytest.mark.slow
def test_the_runtime_s_reason_comes_back(spec, tmp_path):
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"nothing in particular")
    with pytest.raises(
        UserError, match=r"backend=onnxruntime cannot run it \(.*not a valid ONNX.*BFLOAT16"
    ):
        trial.refuse_if_it_fails(
            "onnxruntime", spec(path), {"providers": ["CPUExecutionProvider"]}, ["BFLOAT16"]
        )


def test_a_runtime_that_ends_its_process_is_survived(spec, monkeypatch):
    monkeypatch.setattr(child.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="one picture ended its process, exit code 1"):
        trial.refuse_if_it_fails("simulated", spec(), OPTIONS, ["INT8"])


def test_a_model_is_tried_once(spec, monkeypatch):
    calls = []

    monkeypatch.setattr(
        child.subprocess,
        "run",
        lambda *a, **k: calls.append(1) or type("Done", (), {"stdout": b'\n""', "returncode": 0}),
    )
    for batch in (1, 4):
        trial.refuse_if_it_fails("simulated", spec(batch=batch), OPTIONS, ["INT8"])
    assert len(calls) == 1
