"""The faster CPU runtime: measured once for a machine and a model, then remembered."""

from __future__ import annotations

import json
import math
import pickle
import threading

import numpy as np
import pytest

from cfdist import backends
from cfdist.backends import child, choice
from cfdist.backends.choice import choose_cpu_backend, measure
from cfdist.backends.model import BackendModel
from cfdist.errors import UserError
from cfdist.preprocess import InputContract

OPTIONS = {"precision": "f32", "providers": ["CPUExecutionProvider"], "streams": "auto"}
FAST_OPENVINO = {"openvino": 38.04, "onnxruntime": 31.2}


@pytest.fixture
def measured(monkeypatch):
    """Replace the child process; returns the list of its calls and a setter of what it gives."""
    calls: list = []
    state = {"found": FAST_OPENVINO}

    def fake(models, threads):
        calls.append(list(models))
        return state["found"]

    monkeypatch.setattr(choice, "measure_in_child", fake)
    return calls, state


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder of the remembered rates, not the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cfdist"


def test_it_is_measured_once_and_then_remembered(spec, measured):
    first = choose_cpu_backend(spec(), OPTIONS, 2)
    second = choose_cpu_backend(spec(batch=16), OPTIONS, 2)
    assert measured[0] == [["openvino", "onnxruntime"]]
    assert (first.backend, second.backend) == ("openvino", "openvino")
    assert (second.spec.batch, second.options) == (16, OPTIONS)
    rates = "openvino, the faster CPU runtime here (38 pictures/s, onnxruntime 31.2; "
    assert first.remark == f"{rates}measured now)"
    assert second.remark == f"{rates}remembered)"


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 3},
        {"sha256": "1" * 64},
        {"height": 160},
        {"options": {"precision": "bf16"}},
        {"cpu": "another"},
        {"cores": 77},
        {"version": "9"},
    ],
)
def test_another_machine_or_model_is_measured_anew(spec, measured, monkeypatch, change):
    calls, _ = measured
    choose_cpu_backend(spec(), OPTIONS, 2)
    if "cpu" in change:
        monkeypatch.setattr(choice, "cpu_model", lambda: change["cpu"])
    if "cores" in change:
        monkeypatch.setattr(choice, "available_cores", lambda: change["cores"])
    if "version" in change:
        monkeypatch.setattr(choice, "_version", lambda name: change["version"])
    model = spec(**{key: change[key] for key in ("sha256", "height") if key in change})
    options = OPTIONS | change.get("options", {})
    choose_cpu_backend(model, options, change.get("threads", 2))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"rates": 3}',
        b'{"identity": {}, "rates": {"openvino": 1, "onnxruntime": 2}}',
        {"openvino": math.nan, "onnxruntime": 1.0},
        {"openvino": "fast", "onnxruntime": 1.0},
        {"openvino": 0.0, "onnxruntime": 1.0},
        {"openvino": 5.0},
        {"openvino": 5.0, "tensorrt": 1.0},
    ],
)
def test_a_damaged_cache_file_is_measured_again(spec, cache, measured, damage):
    calls, _ = measured
    choose_cpu_backend(spec(), OPTIONS, 2)
    (file,) = cache.iterdir()
    if isinstance(damage, dict):
        damage = json.dumps(json.loads(file.read_text()) | {"rates": damage}).encode()
    file.write_bytes(damage)
    assert "measured now" in choose_cpu_backend(spec(), OPTIONS, 2).remark
    assert "remembered" in choose_cpu_backend(spec(), OPTIONS, 2).remark  # written anew
    assert len(calls) == 2


def test_an_unwritable_cache_is_no_error(spec, tmp_path, measured):
    (tmp_path / "cache").write_text("no folder")
    for _ in range(2):
        assert "measured now" in choose_cpu_backend(spec(), OPTIONS, 2).remark
    assert len(measured[0]) == 2


def test_the_user_s_cache_folder(spec, tmp_path, cache, measured, monkeypatch):
    choose_cpu_backend(spec(), OPTIONS, 2)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    choose_cpu_backend(spec(), OPTIONS, 2)
    assert len(list((tmp_path / "home" / ".cache" / "cfdist").iterdir())) == 1


def test_a_user_without_a_home_folder(spec, measured, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/proc/nobody")
    assert "measured now" in choose_cpu_backend(spec(), OPTIONS, 2).remark


def test_the_only_runtime_is_taken_without_measuring(spec, measured, monkeypatch):
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "onnxruntime")
    found = choose_cpu_backend(spec(), OPTIONS, 2)
    assert found.backend == "onnxruntime"
    only = "onnxruntime, the only CPU runtime installed (openvino is not: "
    assert found.remark == f"{only}`pip install -r requirements.txt`)"
    monkeypatch.setattr(choice.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(choice.platform, "libc_ver", lambda: ("glibc", "2.28"))
    on_an_old_system = choose_cpu_backend(spec(), OPTIONS, 2).remark
    assert on_an_old_system.startswith(f"{only}its aarch64 wheels need glibc 2.35")
    assert "here is glibc 2.28;" in on_an_old_system
    assert measured[0] == []
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    with pytest.raises(UserError, match="neither openvino nor onnxruntime is installed"):
        choose_cpu_backend(spec(), OPTIONS, 2)


def test_a_model_that_one_cannot_load_goes_to_the_other(spec, measured):
    calls, state = measured
    state["found"] = {"openvino": "unknown operator", "onnxruntime": 12.0}
    for _ in range(2):  # what failed may have been the moment's memory: it is not remembered
        found = choose_cpu_backend(spec(), OPTIONS, 2)
        assert found.backend == "onnxruntime"
        assert "another CPU runtime failed (openvino: unknown operator)" in found.remark
    assert len(calls) == 2


def test_a_model_that_none_loads_is_the_user_s_error(spec, measured):
    _, state = measured
    state["found"] = {"openvino": "bad file", "onnxruntime": "bad file"}
    with pytest.raises(UserError, match=r"^bad file$"):
        choose_cpu_backend(spec(), OPTIONS, 2)
    state["found"] = {"openvino": "bad", "onnxruntime": "worse"}
    with pytest.raises(UserError, match=r"no CPU runtime takes it \(openvino: bad; onnxruntime: w"):
        choose_cpu_backend(spec(), OPTIONS, 2)


class TimedBackend:
    """Each inference takes so many seconds of a clock of its own."""

    contract = InputContract(4, 6, None)
    streams = 1

    def __init__(self, now: list[float], seconds: float, first: float | None = None) -> None:
        self._now, self._seconds, self._first = now, seconds, first or seconds

    def infer(self, inputs):
        assert (inputs.shape, inputs.dtype) == ((1, 4, 6, 3), np.uint8)
        self._now[0] += self._first
        self._first = self._seconds


def test_rates_are_pictures_a_second_without_the_first_inference(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(choice.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(choice, "SECONDS", 1.0)
    loaded = {"slow": TimedBackend(now, 0.25, first=9.0), "quick": TimedBackend(now, 0.125)}
    assert measure(loaded) == {"slow": pytest.approx(4.0), "quick": pytest.approx(8.0)}
    # Even one inference longer than the round is a measurement.
    assert measure({"a": TimedBackend(now, 5.0)}) == {"a": pytest.approx(0.2)}


def test_all_streams_are_busy_at_once(monkeypatch):
    class Together:
        contract = InputContract(4, 6, None)
        streams = 3
        barrier = threading.Barrier(3, timeout=30)

        def infer(self, inputs):
            self.barrier.wait()

    monkeypatch.setattr(choice, "SECONDS", 0.0)
    assert measure({"a": Together()})["a"] > 0


def test_streams_are_those_asked_for_or_what_memory_holds(spec, monkeypatch):
    backend = backends.backend_class("onnxruntime")
    assert choice._streams(spec(), backend, {"streams": 3}, 8) == 3
    monkeypatch.setattr(choice, "available_memory", lambda: 64 * 10**9)
    assert choice._streams(spec(), backend, OPTIONS, 8) == 8
    monkeypatch.setattr(choice, "available_memory", lambda: 10**9)
    assert choice._streams(spec(), backend, OPTIONS, 8) == 2


def test_a_runtime_that_kills_the_process_is_found_out(spec, monkeypatch):
    def run(command, input, **_):
        names = list(pickle.loads(input)[0])
        dies = "openvino" in names
        found = json.dumps(dict.fromkeys(names, 7.0))
        return child.subprocess.CompletedProcess(
            command, -9 if dies else 0, b"" if dies else found.encode()
        )

    monkeypatch.setattr(child.subprocess, "run", run)
    models = {name: BackendModel(name, spec(), OPTIONS) for name in ("openvino", "onnxruntime")}
    found = choice.measure_in_child(models, 2)
    reason = "the measurement ended its process, exit code -9"
    assert found == {"openvino": reason, "onnxruntime": 7.0}


@pytest.mark.slow
def test_the_real_runtimes(spec, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the child finds the package from any folder
    model = spec(height=64, width=64)
    found = choose_cpu_backend(model, OPTIONS, 2)
    (file,) = cache.iterdir()
    rates = json.loads(file.read_text())["rates"]
    assert set(rates) == {"openvino", "onnxruntime"}
    assert rates[found.backend] == max(rates.values()) > 1
    again = choose_cpu_backend(model, OPTIONS, 2)
    assert again.remark == found.remark.replace("measured now", "remembered")


@pytest.mark.slow
def test_a_file_that_is_no_model(spec, tmp_path, cache):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken.onnx: not a valid ONNX file"):
        choose_cpu_backend(spec(path), OPTIONS, 2)
    assert not cache.exists()
