"""The stand-in for ais_bench has the real one's traps; without them it would prove nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.fakes.ascend import GENERATIONS, install_double, small_network

BATCH = 3
SHAPE = (BATCH, 3, 64, 64)


@pytest.fixture(params=GENERATIONS)
def generation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    install_double(monkeypatch, request.param)
    return request.param


@pytest.fixture
def om(generation: str, tmp_path: Path) -> Path:
    import aclruntime

    return aclruntime.make_om(small_network(), tmp_path / "net_bs3.om", BATCH)


@pytest.fixture
def open_session(om: Path) -> Callable[..., Any]:
    from ais_bench.infer.interface import InferSession

    return lambda index=0, path=om: InferSession(index, str(path))


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


def reference(array: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(small_network(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": array})


def test_members_of_the_generation(open_session, generation):
    session = open_session()
    old = {"sumary", "reset_sumaryinfo"}
    new = {"summary", "reset_summaryinfo", "free_resource", "infer_pipeline"}
    there, absent = (old, new) if generation == "0.0.2" else (new, old)
    assert all(hasattr(session, name) for name in there)
    assert not any(hasattr(session, name) for name in absent)


def test_describes_the_om(open_session):
    import aclruntime

    session = open_session()
    (picture,) = session.get_inputs()
    assert (picture.name, picture.datatype) == ("image", aclruntime.dtype.float32)
    assert (picture.shape, picture.realsize) == ([3, 3, 64, 64], 3 * 3 * 64 * 64 * 4)
    assert [output.name for output in session.get_outputs()][:2] == [
        "Sigmoid_103:0:output1",
        "Conv_output2:0:output2",
    ]
    assert [output.shape[1] for output in session.get_outputs()] == [1, 2, 2, 10]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_real_numbers(open_session, pictures, engine, monkeypatch):
    monkeypatch.setenv("AIS_BENCH_DOUBLE_ENGINE", engine)
    for found, expected in zip(open_session().infer([pictures]), reference(pictures), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_wrong_dtype_of_the_right_size_runs_and_returns_nonsense(open_session, pictures):
    half = pictures.astype(np.float16)
    feed = np.concatenate([half, half])
    assert feed.nbytes == pictures.nbytes
    found = open_session().infer([feed])
    assert found[0].shape == (BATCH, 1, 16, 16)
    assert not np.allclose(found[3], reference(pictures)[3], equal_nan=True)


def test_wrong_number_of_bytes_is_refused(open_session, pictures):
    with pytest.raises(RuntimeError, match="needsize:147456 not match"):
        open_session().infer([pictures[:2]])


def test_non_contiguous_array(open_session, pictures, generation):
    view = pictures.transpose(0, 1, 3, 2)
    found = open_session().infer([view])[3]
    # The old generation reads the memory behind the view, in the order it lies there.
    seen = pictures if generation == "0.0.2" else view
    np.testing.assert_allclose(found, reference(np.ascontiguousarray(seen))[3], atol=1e-5)


def test_one_time_an_execution_and_loop(open_session, pictures, generation):
    session = open_session()
    times = session.sumary if generation == "0.0.2" else session.summary
    reset = session.reset_sumaryinfo if generation == "0.0.2" else session.reset_summaryinfo
    session.infer([pictures])
    session.set_loop_count(4)
    session.infer([pictures])
    assert len(times().exec_time_list) == 5
    assert all(0 < time < 10_000 for time in times().exec_time_list)
    reset()
    assert times().exec_time_list == []


def test_released_session_is_gone(open_session, pictures, generation):
    session = open_session()
    (session.finalize if generation == "0.0.2" else session.free_resource)()
    with pytest.raises(RuntimeError, match="released"):
        session.infer([pictures])


@pytest.mark.parametrize(
    ("visible", "index", "chip"), [(None, 0, 0), (None, 1, 1), ("1", 0, 1), ("1,0", 1, 0)]
)
def test_index_counts_within_the_visible_devices(
    open_session, visible, index, chip, monkeypatch, tmp_path
):
    log = tmp_path / "log.jsonl"
    monkeypatch.setenv("AIS_BENCH_DOUBLE_LOG", str(log))
    if visible:
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    open_session(index)
    entry = json.loads(log.read_text())
    assert (entry["pid"], entry["index"], entry["chip"]) == (os.getpid(), index, chip)


def test_index_that_is_not_visible(open_session, monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    with pytest.raises(RuntimeError, match="invalid device=1, input visible devices:1"):
        open_session(1)


@pytest.mark.parametrize(("visible", "index"), [(None, 2), ("2", 0)])
def test_chip_that_is_not_there(open_session, visible, index, monkeypatch):
    if visible:
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    with pytest.raises(RuntimeError, match="507033"):
        open_session(index)


def test_file_that_is_no_om(open_session, tmp_path):
    garbled = tmp_path / "garbled.om"
    garbled.write_bytes(b"IMOD and no more")
    for path in (garbled, tmp_path / "missing.om"):
        with pytest.raises(RuntimeError, match=r"\[1450\d\d\]"):
            open_session(0, path)


def test_later_generation_checks_its_arguments(open_session, generation, om):
    if generation == "later":
        with pytest.raises(RuntimeError, match="device_id"):
            open_session("0")
        with pytest.raises(RuntimeError, match="not a dymbatch model"):
            open_session().infer([np.zeros(SHAPE, np.float32)], mode="dymbatch")
    with pytest.raises(RuntimeError, match="infer_mode"):
        open_session().infer([np.zeros(SHAPE, np.float32)], mode="dymhw")


def run_cli(om: Path, folder: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "ais_bench", "--model", str(om), "--output", str(folder)]
    command += ["--output_dirname", "dumpout_bs3", "--batchsize", "3", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "dumpout_bs3"


def write_inputs(folder: Path, pictures: np.ndarray) -> list[str]:
    folder.mkdir()
    stems = ["c", "a.part", "b", "d", "e"]  # a name ends at its first dot
    for stem, picture in zip(stems, pictures, strict=True):
        picture.tofile(folder / f"{stem}.bin")
    return [stem.split(".")[0] for stem in stems]


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["0", "0,1"])
def test_command_line(generation, om, tmp_path, devices):
    pictures = np.random.default_rng(2).normal(size=(5, *SHAPE[1:])).astype(np.float32)
    stems = write_inputs(tmp_path / "in", pictures)
    options = ["--input", str(tmp_path / "in"), "--device", devices]
    if "," in devices and generation == "later":
        options += ["--divide_input", "1"]  # else each chip gets all files
    folder = run_cli(om, tmp_path / "result", *options)
    assert len(list(folder.rglob("*.bin"))) == 5 * 4
    expected = reference(pictures)
    for i, stem in enumerate(stems):
        for k in range(4):
            (path,) = folder.rglob(f"{stem}_{k}.bin")
            found = np.fromfile(path, "<f4").reshape(expected[k][i].shape)
            np.testing.assert_allclose(found, expected[k][i], atol=1e-5)
    if devices == "0":
        summary = json.loads((tmp_path / "result" / "dumpout_bs3_summary.json").read_text())
        mean = summary["NPU_compute_time"]["mean"]
        assert summary["throughput"] == pytest.approx(3000 / mean)
    else:
        # Two contiguous halves of the sorted names, one process each.
        halves = [
            {path.stem[0] for path in half.glob("*.bin")} for half in folder.glob("device?_?")
        ]
        assert sorted(map(sorted, halves)) == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.slow
def test_command_line_without_input(om, tmp_path):
    folder = run_cli(om, tmp_path / "result", "--loop=3")
    summary = json.loads(folder.with_name("dumpout_bs3_summary.json").read_text())
    assert summary["throughput"] > 0
