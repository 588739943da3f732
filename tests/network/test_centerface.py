"""The layers against the reference network's outputs and the host's normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from cfdist.decode import CONVENTIONS  # noqa: E402
from cfdist.network.centerface import (  # noqa: E402
    VARIANTS,
    CenterFace,
    Normalize,
    fold_batch_norms,
)
from cfdist.network.checkpoint import load_network  # noqa: E402
from cfdist.preprocess import InputContract, to_model_input  # noqa: E402
from tests.network.conftest import HEADS  # noqa: E402

triples = st.tuples(*[st.floats(0.125, 2.0, width=32)] * 3)


def lively(convention: str, seed: int) -> CenterFace:
    """A network whose batch norms do something, as trained ones do."""
    generator = torch.Generator().manual_seed(seed)
    network = CenterFace(convention, neck_width=24).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.5, 2.0, generator=generator)
            for values in (module.running_mean, module.bias.data):
                values.normal_(0.0, 0.3, generator=generator)
    return network


def test_state_dict_has_the_published_names_and_shapes(state_dict_shapes):
    network = CenterFace("centerface_pytorch", 24)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == state_dict_shapes
    assert sum(p.numel() for p in network.parameters()) == 1_829_271


def test_variants_differ_only_in_their_transposed_convolutions(state_dict_shapes):
    network = CenterFace("centerface", 24)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes.keys() == state_dict_shapes.keys()
    different = [name for name in shapes if shapes[name] != state_dict_shapes[name]]
    assert different == [f"dla_up.up_{i}.up.0.weight" for i in range(3)]
    assert set(VARIANTS) == set(CONVENTIONS)


@pytest.mark.parametrize("folded", [False, True], ids=["as trained", "folded"])
@pytest.mark.parametrize("pictures", [[0], [0, 1], [1, 0, 1, 1, 0]], ids=len)
def test_outputs_are_the_reference_networks(seed_checkpoint, network_io, pictures, folded):
    network = load_network(seed_checkpoint, "centerface_pytorch")
    if folded:
        network = fold_batch_norms(network)
    with torch.inference_mode():
        heads = network(torch.from_numpy(network_io["image"][pictures]))
    for name, head in zip(HEADS, heads, strict=True):
        np.testing.assert_allclose(head.numpy(), network_io[name][pictures], rtol=0, atol=1e-4)


@settings(max_examples=6, deadline=None)
@given(convention=st.sampled_from(sorted(VARIANTS)), seed=st.integers(0, 2**31))
def test_folding_changes_rounding_only(convention, seed):
    network = lively(convention, seed)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold_batch_norms(network)
    picture = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        for plain, other in zip(network(picture), folded(picture), strict=True):
            assert (plain - other).abs().max() <= 1e-4 * max(1.0, float(plain.abs().max()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@settings(max_examples=40, deadline=None)
@given(
    color=st.sampled_from(["BGR", "RGB"]),
    scale=st.sampled_from([1.0, 1 / 255]),
    mean=st.one_of(st.just((0.0, 0.0, 0.0)), triples),
    std=st.one_of(st.just((1.0, 1.0, 1.0)), triples),
    seed=st.integers(0, 2**31),
)
def test_bits_are_those_of_the_host(color, scale, mean, std, seed):
    letterboxed = np.random.default_rng(seed).integers(0, 256, (2, 8, 6, 3), np.uint8)
    contract = InputContract(8, 6, None, "float32", "NCHW", color, mean, std, scale)
    ours = Normalize(contract)(torch.from_numpy(letterboxed))
    np.testing.assert_array_equal(ours.numpy(), to_model_input(letterboxed, contract))
