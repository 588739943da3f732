"""Normalisation in PyTorch against that of the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from cfdist.network.normalize import Normalize  # noqa: E402
from cfdist.preprocess import InputContract, to_model_input  # noqa: E402

triples = st.tuples(*[st.floats(0.125, 2.0, width=32)] * 3)


@settings(max_examples=40, deadline=None)
@given(
    color=st.sampled_from(["BGR", "RGB"]),
    scale=st.sampled_from([1.0, 1 / 255]),
    mean=st.one_of(st.just((0.0, 0.0, 0.0)), triples),
    std=st.one_of(st.just((1.0, 1.0, 1.0)), triples),
    seed=st.integers(0, 2**31),
)
def test_bits_are_those_of_the_host(color, scale, mean, std, seed):
    warped = np.random.default_rng(seed).integers(0, 256, (2, 8, 6, 3), np.uint8)
    contract = InputContract(8, 6, None, "float32", "NCHW", color, mean, std, scale)
    ours = Normalize(color, scale, mean, std)(torch.from_numpy(warped))
    np.testing.assert_array_equal(ours.numpy(), to_model_input(warped, contract))
