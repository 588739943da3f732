"""AP and speed of both forms on each runtime."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from cfdist.backends.model import BackendModel
from cfdist.errors import StoppedError
from cfdist.quantization import trade

RATES = {
    "openvino float32": 10.0,
    "openvino int8": 25.0,
    "onnxruntime float32": 8.0,
    "onnxruntime int8": 12.0,
}


@dataclass
class There:
    """What `execution.start` gives."""

    models: list[BackendModel]


@pytest.fixture
def pairs(spec):
    floats = [BackendModel(name, spec()) for name in ("openvino", "onnxruntime")]
    return [(one, replace(one, spec=spec(top_k=7))) for one in floats]


@pytest.fixture
def measured(monkeypatch):
    """Neither Ray nor a model runs; returns what is asked to be compared."""
    compared = []

    @contextlib.contextmanager
    def start(config, models, streams, pictures):
        yield There(models)

    def run_comparison(there, manifest, make_work, tally, progress):
        compared.append([(one.backend, one.spec.top_k) for one in there.models])
        tally.failures["e/a"] = "broken"
        return [f"event {len(compared)}"]

    monkeypatch.setattr(trade.execution, "start", start)
    monkeypatch.setattr(trade.execution, "device_work", lambda *_: None)
    monkeypatch.setattr(trade.screen, "print_plan", lambda *_: None)
    monkeypatch.setattr(trade, "run_comparison", run_comparison)
    monkeypatch.setattr(trade, "measure_in_child", lambda models, threads: RATES)
    return compared


def measure(compose, pairs, tmp_path):
    manifest = SimpleNamespace(items=())
    return trade.measure_trade(compose("job=quantize"), pairs, {}, manifest, tmp_path)


def test_each_runtime_is_compared_with_itself(compose, pairs, measured, tmp_path):
    found = measure(compose, pairs, tmp_path)
    assert measured == [
        [("openvino", 200), ("openvino", 7)],
        [("onnxruntime", 200), ("onnxruntime", 7)],
    ]
    assert list(found.runtimes) == ["openvino", "onnxruntime"]
    assert found.runtimes["openvino"]["speedup"] == 2.5
    assert found.runtimes["onnxruntime"]["pictures_per_second"] == {"float32": 8.0, "int8": 12.0}
    assert set(found.runtimes["openvino"]["ap"]) == {"float32", "int8"}
    assert found.failures == {"e/a": "broken"}
    assert found.events == ["event 1", "event 2"]


def test_a_speed_that_could_not_be_measured_is_no_speed(
    compose, pairs, measured, tmp_path, monkeypatch
):
    rates = RATES | {"onnxruntime int8": "ended with exit code -9"}
    monkeypatch.setattr(trade, "measure_in_child", lambda models, threads: rates)
    with pytest.raises(StoppedError, match="onnxruntime int8: ended with exit code -9"):
        measure(compose, pairs, tmp_path)
