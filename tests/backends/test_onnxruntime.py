"""ONNX Runtime's own options; that it agrees with OpenVINO is in test_openvino.py."""

from __future__ import annotations

import os
import subprocess
import sys

import onnxruntime as ort
import pytest

from cfdist import backends
from cfdist.backends import onnxruntime
from cfdist.backends.base import DeviceSettings
from cfdist.backends.onnxruntime import OnnxRuntimeBackend, assigned_nodes, check_providers
from cfdist.errors import UserError
from tests.fakes import onnx_forms

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


@pytest.fixture
def small(spec, tmp_path):
    path = onnx_forms.network(tmp_path / "m.onnx")
    return spec(path, outputs=None, height=64, width=64)


def load(model, *providers: str) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(model, DeviceSettings(options={"providers": list(providers)}))


def test_a_provider_that_is_not_there_is_refused(spec):
    backend = backends.backend_class("onnxruntime")
    with pytest.raises(UserError, match="'NoSuchProvider' is not in the installed onnxruntime"):
        backend.check(spec(), {"providers": ["NoSuchProvider"]})
    with pytest.raises(UserError, match=r"onnxruntime-gpu has it .* docs/installing\.md"):
        backend.check(spec(), {"providers": [CUDA, CPU]})
    with pytest.raises(UserError, match="name at least one"):
        backend.check(spec(), {"providers": []})


def test_what_could_be_faster_than_the_cpu(monkeypatch):
    assert CPU not in onnxruntime.accelerating_providers()
    there = [TENSORRT, CUDA, "AzureExecutionProvider", CPU]
    monkeypatch.setattr(ort, "get_available_providers", lambda: there)
    assert onnxruntime.accelerating_providers() == {CUDA: "gpu", TENSORRT: "gpu"}


def test_the_device_says_what_the_session_runs_on(small):
    assert load(small, CPU).runs_on == CPU


def test_a_provider_that_the_session_gave_up_is_refused(small, monkeypatch):
    # What ONNX Runtime does where CUDA's libraries are not there: it goes on without.
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(
        ort, "InferenceSession", lambda model, options, _, **k: real(model, options, [CPU], **k)
    )
    with pytest.raises(UserError, match=f"{CUDA} could not be initialised.*go on with {CPU}"):
        load(small, CUDA, CPU)
    with pytest.raises(UserError, match=f"{TENSORRT}, {CUDA} could not be initialised"):
        load(small, TENSORRT, CUDA, CPU)


@pytest.mark.slow
def test_a_provider_that_takes_no_node_is_refused(small):
    # Every build has one that runs only operators of its own.
    azure = "AzureExecutionProvider"
    if azure not in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {azure}")
    for refuse in (
        lambda: load(small, azure, CPU),
        lambda: OnnxRuntimeBackend.check(small, {"providers": [azure, CPU]}),
    ):
        with pytest.raises(UserError, match=f"{azure} runs no operator of this model"):
            refuse()


def test_a_provider_gets_its_options_and_the_results_name_them(small, monkeypatch):
    given = {}
    real = ort.InferenceSession

    def session(model, options, providers, **keywords):
        given.update(providers)
        return real(model, options, [CPU], **keywords)

    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "used_providers", lambda *_: "as said")
    options = {
        "providers": [TENSORRT, CUDA, CPU],
        "provider_options": {"trt_fp16_enable": True, "gpu_mem_limit": 1000, "use_tf32": False},
    }
    backend = OnnxRuntimeBackend(small, DeviceSettings(index=1, options=options))
    assert given == {
        TENSORRT: {"device_id": "1", "trt_fp16_enable": "1"},
        CUDA: {
            "device_id": "1",
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "gpu_mem_limit": "1000",
        },
        CPU: {},
    }
    assert (
        backend.runs_on == "as said with gpu_mem_limit=1000, trt_fp16_enable=true, use_tf32=false"
    )


def test_an_option_that_no_provider_has_is_refused_before_a_device(small):
    options = {"providers": [CPU], "provider_options": {"use_tf32": True}}
    with pytest.raises(UserError, match=f"'use_tf32' is an option of {CUDA}, which is not in"):
        OnnxRuntimeBackend.check(small, options)


def test_what_each_provider_runs_is_told():
    class Part:
        def __init__(self, name, nodes):
            self.ep_name, self._nodes = name, nodes

        def get_nodes(self):
            return self._nodes

    class Session:
        def get_providers(self):
            return [CUDA, CPU]

        def get_provider_graph_assignment_info(self):
            return [Part(CUDA, [1, 2]), Part(CPU, [3]), Part(CUDA, [4])]

    assert assigned_nodes(Session()) == {CUDA: 3, CPU: 1}
    told = onnxruntime.used_providers(Session(), [CUDA, CPU])
    assert told == f"{CUDA} (3 nodes), {CPU} (1 nodes)"


def test_a_provider_behind_the_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    check_providers([CUDA, CPU])
    with pytest.raises(UserError, match=f"'{CUDA}' would never be used.*put {CPU} last"):
        check_providers([CPU, CUDA])


@pytest.mark.parametrize(
    ("providers", "kind"),
    [
        ([CPU], "cpu"),
        ([CUDA, CPU], "gpu"),
        ([TENSORRT, CUDA], "gpu"),
        (["MIGraphXExecutionProvider"], "gpu"),
        (["CANNExecutionProvider"], "npu"),
        ([], "cpu"),
    ],
)
def test_the_first_provider_says_what_a_device_is(providers, kind):
    assert OnnxRuntimeBackend.device_kind({"providers": providers}) == kind


@pytest.mark.slow
def test_onnx_runtime_tells_nobody_and_leaves_nothing(tmp_path):
    subprocess.run(
        [sys.executable, "-c", "import cfdist.backends.onnxruntime"],
        env={key: os.environ[key] for key in os.environ if not key.startswith("ORT_")}
        | {"TMPDIR": str(tmp_path)},
        check=True,
        timeout=120,
    )
    assert list(tmp_path.iterdir()) == []
