"""A model with its backend: plain data that a device loads."""

from __future__ import annotations

import pickle

import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.errors import UserError


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
