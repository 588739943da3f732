"""What channels hold is measured by picture."""

from __future__ import annotations

import numpy as np

from cfdist.quantization.channels import pooled
from tests.quantization.test_equalising import PICTURES, network, outputs


def test_means_and_largest_absolute_values_by_picture_and_channel():
    model, inputs = network(), [{"x": one} for one in PICTURES]
    found = np.concatenate([outputs(model, ["y", "a"], one)[1] for one in PICTURES])
    assert found.min() < 0
    means, largest = (pooled(model, ["a"], way, inputs)["a"] for way in ("mean", "largest"))
    assert means.shape == (2, 6)
    np.testing.assert_allclose(means, found.mean(axis=(2, 3)), atol=1e-6)
    np.testing.assert_array_equal(largest, np.abs(found).max(axis=(2, 3)))
    assert pooled(model, [], "mean", inputs) == {}
