"""The PyTorch backend on a GPU, against itself on the CPU; skipped where there is none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

from cfdist.backends.base import DeviceSettings  # noqa: E402
from cfdist.backends.torch import TorchBackend  # noqa: E402
from cfdist.decode import HeadMaps, Peaks, select_peaks  # noqa: E402
from cfdist.model import ModelSpec  # noqa: E402
from cfdist.network.centerface import CenterFace  # noqa: E402


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> ModelSpec:
    """A network with random weights, as a checkpoint."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "random.pth"
    torch.save({"state_dict": CenterFace("centerface_pytorch", 24).state_dict()}, path)
    return ModelSpec(
        name="m", path=path, sha256="", convention="centerface_pytorch", outputs=None,
        height=160, width=224, color="BGR", scale=1 / 255, mean=(0.4,) * 3, std=(0.3,) * 3,
        batch=4, top_k=50, nms=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 160, 224, 3), np.uint8)


def backend(spec, device="cuda", precision="f32", **settings) -> TorchBackend:
    options = {"device": device, "precision": precision}
    return TorchBackend(spec, DeviceSettings(threads=4, options=options, **settings))


@pytest.mark.parametrize(("precision", "near"), [("f32", 1e-4), ("f16", 0.01), ("bf16", 0.08)])
def test_head_maps_are_those_of_the_cpu(spec, pictures, precision, near):
    expected = backend(spec, "cpu").infer(pictures[:4])
    found = backend(spec, precision=precision, needs_heads=True).infer(pictures[:4])
    assert isinstance(found, HeadMaps)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32 and ours.flags.c_contiguous
        assert np.abs(ours - theirs).max() <= near * np.abs(theirs).max()


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_the_gpu_s_peaks_are_those_of_its_head_maps(spec, pictures, precision):
    heads = backend(spec, precision=precision, needs_heads=True).infer(pictures[:4])
    found = backend(spec, precision=precision).infer(pictures[:4])
    assert isinstance(found, Peaks)
    for ours, theirs in zip(found, select_peaks(heads, 50), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_picture_gives_the_same_in_any_batch_and_stream(spec, pictures):
    one = backend(spec, streams=2)
    whole = one.infer(pictures[:4])
    for i in range(4):
        for ours, theirs in zip(one.infer(pictures[i : i + 1]), whole, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[i])
    with ThreadPoolExecutor(2) as pool:
        again = list(pool.map(one.infer, [pictures[:4], pictures[4:]] * 20))
    for found, expected in zip(again, [whole, one.infer(pictures[4:])] * 20, strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_pictures_at_their_own_size_come_in_any(spec, pictures):
    own = backend(replace(spec, size="own"))
    assert len(own.infer(pictures[:3, :96, :128]).score) == 3
    assert len(own.infer(pictures[:4]).score) == 4
