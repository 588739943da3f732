"""The int8 file: the same bytes for the same recipe, whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.backends.onnx_operators import quantised_operators
from cfdist.backends.onnxruntime import OnnxRuntimeBackend
from cfdist.backends.provider_options import CPU_PROVIDER
from cfdist.errors import UserError
from cfdist.quantization import quantizer
from cfdist.quantization.calibration import CalibrationSet
from cfdist.quantization.quantizer import quantise
from tests.fakes import onnx_forms


class Noise(CalibrationSet):
    """Pictures of noise, the same each time."""

    def letterboxed(self, spec):
        random = np.random.default_rng(0)
        for _ in range(self.count):
            yield random.integers(0, 256, (1, spec.height, spec.width, 3), np.uint8)

    def digest(self):
        return "noise"


PICTURES = Noise("noise", (), 3)


@pytest.fixture(scope="module")
def small(tmp_path_factory, spec):
    path = onnx_forms.network(tmp_path_factory.mktemp("small") / "m.onnx")
    return spec(path, height=64, width=64, outputs=onnx_forms.HEADS)


@pytest.fixture
def settings(compose):
    return compose("job=quantize", "quantize.keep=[heads]").quantize


def test_the_same_recipe_gives_the_same_bytes_and_is_followed_once(small, settings, tmp_path):
    said: list[str] = []
    made = quantise(small, settings, PICTURES, tmp_path / "a.onnx", said.append)
    model = onnx.load(str(made.path))
    onnx.checker.check_model(model, full_check=True)
    assert quantised_operators(model) == ["DequantizeLinear", "QuantizeLinear"]
    assert (made.made, made.layers) == (True, 5)
    assert made.kept == ["heat", *onnx_forms.HEADS[1:]]
    weights = {one.name: one for one in model.graph.initializer}
    assert list(weights["w2_scale"].dims) == [8]  # one for each channel
    assert weights["h2"].data_type == onnx.TensorProto.FLOAT
    record = json.loads((tmp_path / "a.onnx.json").read_text())
    assert record["onnx_sha256"] == small.sha256
    assert record["int8_sha256"] == made.sha256
    assert record["calibration"] == {"pictures": 3, "sha256": PICTURES.digest()}

    again = quantise(small, settings, PICTURES, tmp_path / "a.onnx", said.append)
    assert again == replace(made, made=False)
    other = quantise(small, settings, PICTURES, tmp_path / "b.onnx", said.append)
    assert (other.sha256, other.made) == (made.sha256, True)
    assert ["made in" in said[0], said[1].endswith("a.onnx: up to date")] == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.onnx", "a.onnx.json", "b.onnx", "b.onnx.json")
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "percentile"},
        {"per_channel": False},
        {"reduce_range": True},
        {"keep": []},
    ],
)
def test_another_recipe_gives_other_bytes(small, settings, tmp_path, change):
    path = tmp_path / "a.onnx"
    first = quantise(small, settings, PICTURES, path, str)
    second = quantise(small, settings.model_copy(update=change), PICTURES, path, str)
    assert second.made
    assert second.sha256 != first.sha256
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)


def test_one_scale_for_a_layer_leaves_the_channels_as_they_are(small, settings, tmp_path):
    made = {
        quantise(
            small,
            settings.model_copy(update={"per_channel": False, "equalise": is_equalised}),
            *(PICTURES, tmp_path / f"{is_equalised}.onnx", str),
        ).sha256
        for is_equalised in (True, False)
    }
    assert len(made) == 1
    assert json.loads((tmp_path / "True.onnx.json").read_text())["equalise"] is False


def test_each_pass_over_the_pictures_says_what_it_measures(small, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(quantizer, "_SECONDS", -1)
    said: list[str] = []
    quantise(small, settings, PICTURES, tmp_path / "a.onnx", said.append)
    assert [line for line in said if ": 2 of" in line] == [
        f"calibrating, {what}: 2 of 3 pictures"
        for what in ("ranges of channels", "means of channels", "ranges of tensors")
    ]


def test_a_file_that_was_changed_is_made_anew(small, settings, tmp_path):
    first = quantise(small, settings, PICTURES, tmp_path / "a.onnx", str)
    (tmp_path / "a.onnx").write_bytes(b"cut")
    assert quantise(small, settings, PICTURES, tmp_path / "a.onnx", str) == first


def test_a_failure_leaves_what_was_there(small, settings, tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.onnx"
    monkeypatch.setattr(quantizer, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantise(small, settings, PICTURES, path, str)
    assert not any(path.parent.iterdir())
    with pytest.raises(UserError, match=r"quantize.output=.*m.onnx: is the model itself"):
        quantise(small, settings, PICTURES, small.path, str)


def test_onnx_runtime_leaves_in_float32_what_the_file_keeps(small, settings, tmp_path, monkeypatch):
    # Its optimiser quantises such a layer between int8 ones unless it is told not to.
    keep = settings.model_copy(update={"keep": ["heads", "c2"]})
    made = quantise(small, keep, PICTURES, tmp_path / "a.onnx", lambda line: None)
    real = ort.InferenceSession

    def keeping(model, options, *others, **more):
        options.optimized_model_filepath = str(tmp_path / "run.onnx")
        return real(model, options, *others, **more)

    monkeypatch.setattr(ort, "InferenceSession", keeping)
    OnnxRuntimeBackend(
        replace(small, path=made.path), DeviceSettings(options={"providers": [CPU_PROVIDER]})
    )
    run = Counter(node.op_type for node in onnx.load(str(tmp_path / "run.onnx")).graph.node)
    assert [run["Conv"], run["QLinearConv"]] == [5, 3]  # c2 and the heads; gray, c1, c3
