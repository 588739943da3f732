"""Weights on the int8 file's steps, and outputs whose means stay."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cfdist.quantization.calibration import CalibrationSet
from cfdist.quantization.channels import pooled
from cfdist.quantization.quantizer import quantise
from cfdist.quantization.rounding import round_weights
from tests.fakes import onnx_forms
from tests.quantization.test_equalising import PICTURES, network

INPUTS = [{"x": np.abs(one)} for one in PICTURES]


@pytest.mark.parametrize(
    ("change", "steps", "axes"),
    [
        ({}, 127, (1, 2, 3)),
        ({"reduce_range": True}, 64, (1, 2, 3)),
        ({"per_channel": False}, 127, None),
    ],
)
def test_weights_lie_on_the_steps_of_their_scale_and_means_stay(compose, change, steps, axes):
    config = compose("job=quantize").quantize.model_copy(update=change)
    model = network()
    for node in model.graph.node:
        node.name = node.output[0]
    before = copy.deepcopy(model)
    assert round_weights(model, config, ["y"], INPUTS) == 2

    old, new = (
        {one.name: numpy_helper.to_array(one) for one in each.graph.initializer}
        for each in (before, model)
    )
    np.testing.assert_array_equal(new["w3"], old["w3"])  # kept
    for name in ("w1", "w2"):
        scale = np.abs(old[name]).max(axis=axes, keepdims=True) / steps
        np.testing.assert_allclose(new[name] / scale, np.round(old[name] / scale), atol=1e-4)
    # The depthwise convolution had no bias; what its first and last rows read is not counted.
    assert [*model.graph.node[2].input] == ["b", "w2", "c_bias"]
    kept = [pooled(each, ["a"], "mean", INPUTS)["a"].mean(0) for each in (before, model)]
    np.testing.assert_allclose(kept[1], kept[0], atol=1e-5)
    mean = pooled(before, ["b"], "mean", INPUTS)["b"].mean(0)
    lost = (old["w2"] - new["w2"]).sum(axis=(1, 2, 3)) * mean
    np.testing.assert_allclose(new["c_bias"], lost, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"reduce_range": True}, {"per_channel": False}])
def test_the_file_holds_the_weights_that_the_biases_were_corrected_for(
    compose, spec, tmp_path, change
):
    path = onnx_forms.network(tmp_path / "m.onnx")
    small = spec(path, height=64, width=64, outputs=onnx_forms.HEADS)
    config = compose("job=quantize", "quantize.keep=[heads]").quantize
    config = config.model_copy(update={"equalise": False, **change})
    made = quantise(small, config, CalibrationSet("drawn", (), 1), tmp_path / "a.onnx", str)
    held = {
        one.name: numpy_helper.to_array(one) for one in onnx.load(str(made.path)).graph.initializer
    }
    expected = onnx.load(str(path))
    for number, node in enumerate(expected.graph.node):
        node.name = node.name or str(number)
    blank = [{onnx_forms.INPUT: np.zeros((1, 3, 64, 64), np.float32)}]
    round_weights(expected, config, [*onnx_forms.HEADS, "heat"], blank)
    for one in expected.graph.initializer:
        if one.name in ("w1", "w2", "w3"):
            scale = held[f"{one.name}_scale"].reshape(-1, 1, 1, 1)
            np.testing.assert_allclose(
                held[f"{one.name}_quantized"] * scale, numpy_helper.to_array(one), atol=1e-6
            )
