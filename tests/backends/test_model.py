"""A model with its backend: plain data that a device loads."""

from __future__ import annotations

import pickle

import pytest

from cfdist.backends.base import Capabilities, DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.backends.om import OmBackend
from cfdist.errors import UserError
from tests.fakes import onnx_forms

OPTIONS = {"providers": ["CPUExecutionProvider"]}


def test_a_model_travels_as_plain_data(spec):
    model = BackendModel("simulated", spec(), {"latency_ms": 0})
    assert pickle.loads(pickle.dumps(model)) == model
    assert model.kind == "cpu"
    assert model.is_simulated
    assert model.capabilities.has_fixed_batch


def test_a_device_loads_it_with_the_model_s_options(spec):
    model = BackendModel("simulated", spec(batch=3), {"latency_ms": 0, "fault": None})
    backend = model.load(DeviceSettings(threads=1, streams=2))
    assert backend.streams == 2
    assert backend.contract.batch == 3


def test_a_model_that_its_backend_cannot_run_is_refused_before_a_device(spec, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(UserError, match="not a valid ONNX file"):
        BackendModel("openvino", spec(broken), {"precision": "f32"}).check()


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_file_of_another_kind_is_named(spec, tmp_path, backend):
    om = tmp_path / "model.onnx"
    om.write_bytes(b"IMOD" + bytes(100))
    with pytest.raises(UserError, match=r"is an OM of Ascend's ATC.*choose backend=om"):
        BackendModel(backend, spec(om), {"precision": "f32"}).check()


def test_a_device_whose_host_has_another_file_refuses_it(spec, tmp_path):
    path = onnx_forms.network(tmp_path / "m.onnx")
    model = BackendModel("onnxruntime", spec(path, outputs=None, height=64, width=64), OPTIONS)
    model.load(DeviceSettings())
    onnx_forms.network(path, seed=1)
    with pytest.raises(UserError, match=r"is another one on host .* than the command began with"):
        model.load(DeviceSettings())
    path.unlink()
    with pytest.raises(UserError, match=r"cannot be read on host .*\(No such file"):
        model.load(DeviceSettings())


def test_settings_that_change_numbers_are_known(spec):
    options = {"precision": "bf16", "providers": ["CPUExecutionProvider"], "streams": 2}
    assert BackendModel("openvino", spec(), options).numeric_options == {"precision": "bf16"}
    onnxruntime = BackendModel("onnxruntime", spec(), options).numeric_options
    assert onnxruntime == {"providers": ["CPUExecutionProvider"]}
    options["provider_options"] = {"trt_fp16_enable": True, "trt_engine_cache_path": "cache"}
    with_options = BackendModel("onnxruntime", spec(), options).numeric_options
    assert with_options == onnxruntime | {"provider_options": {"trt_fp16_enable": True}}
    assert BackendModel("simulated", spec(), options).numeric_options == {}


def test_a_backend_of_one_input_size_is_refused_at_own_size(spec, monkeypatch):
    monkeypatch.setattr(OmBackend, "capabilities", Capabilities())
    with pytest.raises(UserError, match=r"backend=om runs a model of one input size; choose back"):
        BackendModel("om", spec(size="own")).check()
