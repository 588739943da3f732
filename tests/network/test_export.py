"""The exported ONNX, in all its forms, in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from cfdist.backends.onnx_file import load_onnx  # noqa: E402
from cfdist.decode import HeadMaps, Peaks, decode_boxes, select_peaks  # noqa: E402
from cfdist.errors import UserError  # noqa: E402
from cfdist.network import export  # noqa: E402
from cfdist.network.checkpoint import load_network  # noqa: E402
from cfdist.network.export import (  # noqa: E402
    export_onnx,
)
from cfdist.network.from_onnx import load_onnx_network  # noqa: E402
from cfdist.preprocess import InputContract, to_model_input  # noqa: E402
from tests.network.conftest import (  # noqa: E402
    HEADS,
    TRAINING_INPUT,
    run_onnxruntime,
    run_openvino,
)

HEIGHT, WIDTH = 160, 224  # the golden's
CELLS = (HEIGHT // 4, WIDTH // 4)
TOP_K = 50
CONTRACT = InputContract(HEIGHT, WIDTH, None, "float32", "NCHW", **TRAINING_INPUT)


@pytest.fixture(scope="module")
def seed_network(seed_checkpoint):
    return load_network(seed_checkpoint, "centerface_pytorch")


@pytest.fixture(scope="module")
def reports(seed_network, small_letterboxed, tmp_path_factory) -> dict[str, dict]:
    """Each export form of the seed network, once for all tests."""
    folder = tmp_path_factory.mktemp("export")
    return {
        name: export_onnx(
            seed_network,
            folder / f"{name}.onnx",
            CONTRACT,
            takes_u8="u8" in name,
            top_k=TOP_K if "peaks" in name else None,
            pictures=small_letterboxed,
        )
        for name in ("f32", "u8", "peaks", "u8 peaks")
    }


@pytest.fixture(scope="module")
def pictures(small_letterboxed):
    """(5, 160, 224, 3) u8: real ones, noise, and one all black."""
    noise = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    return np.concatenate([small_letterboxed, noise, np.zeros_like(noise)])


@pytest.mark.parametrize("chosen", [[0], [1, 0, 1, 1, 0]], ids=len)
def test_f32_gives_the_reference_networks_outputs(reports, network_io, run, chosen):
    outputs = run(reports["f32"]["path"], network_io["image"][chosen])
    for name, output in zip(HEADS, outputs, strict=True):
        np.testing.assert_allclose(output, network_io[name][chosen], rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 5])
def test_u8_normalises_as_the_host_does(reports, seed_network, pictures, run, batch):
    inputs = pictures[:batch]
    with torch.inference_mode():
        heads = seed_network(torch.from_numpy(to_model_input(inputs, CONTRACT)))
    outputs = run(reports["u8"]["path"], inputs)
    for head, output in zip(heads, outputs, strict=True):
        np.testing.assert_allclose(output, head.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["peaks", "u8 peaks"])
@pytest.mark.parametrize("batch", [1, 5])
def test_peaks_decode_to_the_boxes_of_the_head_maps(reports, pictures, run, form, batch):
    floats = to_model_input(pictures[:batch], CONTRACT)
    expected = select_peaks(HeadMaps(*run(reports["f32"]["path"], floats)), TOP_K)
    inputs = pictures[:batch] if form == "u8 peaks" else floats
    scores, cells, values = run(reports[form]["path"], inputs)
    assert scores.shape == cells.shape == (batch, TOP_K)
    assert cells.dtype == np.int64
    assert values.shape == (batch, TOP_K, 14)
    actual = Peaks(scores, cells.astype(np.int32), values)
    np.testing.assert_allclose(actual.score, expected.score, rtol=0, atol=1e-5)
    # Picture sizes that are the input's: boxes in input pixels.
    sizes = np.full((batch, 2), (WIDTH, HEIGHT))
    ours, theirs = (
        decode_boxes(peaks, "centerface_pytorch", sizes, (WIDTH, HEIGHT))
        for peaks in (actual, expected)
    )
    for i in range(batch):
        # The seed network's heat maps are flat enough for scores that differ in the last bit:
        # pair by cell, among those safely inside the top K.
        inside = expected.score[i] > expected.score[i, -1] + 1e-5
        order = {cell: row for row, cell in enumerate(actual.cell[i])}
        rows = [order[cell] for cell in expected.cell[i, inside]]
        for our, their in zip(ours, theirs, strict=True):  # boxes, landmarks
            np.testing.assert_allclose(our[i, rows], their[i, inside], atol=0.01)


@pytest.fixture(scope="module")
def peak_picker(reports, tmp_path_factory):
    """The part of the exported graph after the heads: heat map and others to peaks."""
    model = onnx.shape_inference.infer_shapes(onnx.load(reports["peaks"]["path"]))
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    heads = next(node for node in model.graph.node if node.op_type == "Concat")
    inputs = [pool.input[0], *heads.input]
    part = onnx.utils.Extractor(model).extract_model(inputs, list(export.PEAK_OUTPUTS))
    path = tmp_path_factory.mktemp("picker") / "picker.onnx"
    onnx.save(part, str(path))

    import onnxruntime as ort

    session = ort.InferenceSession(str(path))
    return lambda heads: session.run(None, dict(zip(inputs, heads, strict=True)))


@settings(max_examples=40, deadline=None)
@given(levels=st.sampled_from([1, 2, 5, 40, 10_000]), seed=st.integers(0, 2**31))
def test_onnx_runtime_picks_peaks_in_the_order_of_select_peaks(peak_picker, levels, seed):
    """Ties included: the lower cell first, as ONNX defines TopK."""
    random = np.random.default_rng(seed)
    hm = (random.integers(0, levels, (2, 1, *CELLS)) / levels).astype(np.float32)
    others = [random.normal(size=(2, c, *CELLS)).astype(np.float32) for c in (2, 2, 10)]
    expected = select_peaks(HeadMaps(hm, *others), TOP_K)
    scores, cells, values = peak_picker([hm, *others])
    np.testing.assert_array_equal(scores, expected.score)
    is_peak = expected.score > 0
    np.testing.assert_array_equal(cells[is_peak], expected.cell[is_peak])
    np.testing.assert_array_equal(values[is_peak], expected.values[is_peak])


def test_report_and_declared_shapes(reports):
    heads = {f"output{i}": ("batch", c, *CELLS) for i, c in enumerate((1, 2, 2, 10), start=1)}
    peaks = dict.fromkeys(("scores", "cells"), ("batch", TOP_K))
    peaks["values"] = ("batch", TOP_K, 14)
    for form, report in reports.items():
        is_u8 = form.startswith("u8")
        assert report["opset"] == onnx.load(report["path"]).opset_import[0].version == 11
        assert report["bytes"] == Path(report["path"]).stat().st_size
        sides = (HEIGHT, WIDTH)
        assert report["input"] == {
            "dtype": "uint8" if is_u8 else "float32",
            "shape": ("batch", *sides, 3) if is_u8 else ("batch", 3, *sides),
        }
        assert report["outputs"] == (peaks if form.endswith("peaks") else heads)
        assert set(report["max_difference"]) == {"random", "real"}
        for by_output in report["max_difference"].values():
            assert set(by_output) == set(report["outputs"])
            assert all(0 < value < 2e-4 for value in by_output.values())


def test_authors_network_with_peaks_on_real_pictures(
    authors_onnx, spec, small_letterboxed, tmp_path, run
):
    network = load_onnx_network(load_onnx(spec()), authors_onnx)
    paths = {}
    for peaks in (False, True):
        paths[peaks] = tmp_path / f"{peaks}.onnx"
        own = InputContract(HEIGHT, WIDTH, None, "float32", "NCHW", "RGB")
        form = {"takes_u8": True, "top_k": 8 if peaks else None}
        report = export_onnx(network, paths[peaks], own, **form, pictures=small_letterboxed)
        assert max(report["max_difference"]["real"].values()) < 5e-4
    expected = select_peaks(HeadMaps(*run(paths[False], small_letterboxed)), 8)
    scores, cells, values = run(paths[True], small_letterboxed)
    np.testing.assert_allclose(scores, expected.score, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(cells, expected.cell)
    np.testing.assert_allclose(values, expected.values, rtol=0, atol=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_opsets(seed_network, pictures, tmp_path, opset):
    path = tmp_path / "m.onnx"
    own = InputContract(64, 96, None, "float32", "NCHW")
    export_onnx(seed_network, path, own, opset=opset, takes_u8=True, top_k=200)
    assert onnx.load(str(path)).opset_import[0].version == opset
    inputs = np.ascontiguousarray(pictures[:2, :64, :96])
    by_runtime = [run(path, inputs)[0] for run in (run_onnxruntime, run_openvino)]
    np.testing.assert_allclose(*by_runtime, rtol=0, atol=1e-5)


def test_quiet_and_the_same_bytes_every_time(
    seed_network, reports, small_letterboxed, tmp_path, capfd
):
    path = tmp_path / "again.onnx"
    training = seed_network.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(seed_network, path, CONTRACT, pictures=small_letterboxed)
    assert capfd.readouterr() == ("", "")
    assert path.read_bytes() == Path(reports["f32"]["path"]).read_bytes()
    assert seed_network.training == training
    assert str(Path.cwd()).encode() not in path.read_bytes()


def test_mismatch_leaves_no_file(seed_network, tmp_path, monkeypatch):
    def wrong_fold(network):
        folded = fold(network)
        folded.wh.bias.data += 0.01
        return folded

    fold = export.fold_batch_norms
    monkeypatch.setattr(export, "fold_batch_norms", wrong_fold)
    with pytest.raises(UserError, match=r"output2 differs from PyTorch by 0\.01 on"):
        export_onnx(seed_network, tmp_path / "m.onnx", CONTRACT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("top_k", [0, 65])
def test_more_peaks_than_cells(seed_network, tmp_path, top_k):
    own = replace(CONTRACT, height=32, width=32)
    with pytest.raises(UserError, match=rf"model\.top_k={top_k}: .* choose 1 to 64"):
        export_onnx(seed_network, tmp_path / "m.onnx", own, top_k=top_k)
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_written(seed_network, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "m.onnx", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            export_onnx(seed_network, output, replace(CONTRACT, height=32, width=32))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
