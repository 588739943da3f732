"""Whole commands at the pictures' own sizes: the same bytes whatever the devices, and refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample
from jobs import convert
from tests.conftest import PROJECT
from tests.fakes import onnx_forms
from tests.fakes.ascend import install_atc, install_double, install_npu_smi

PRESET = ("experiment=authors_own_size", "dataset.limit=6", "cluster.dashboard=false")
SMALL = (f"model.outputs=[{','.join(onnx_forms.HEADS)}]", "model.score=0.9")
TEST = (
    "pictures at their own size (sides to the next multiple of 32), not mirrored; all "
    "cells with scores above 0.02, no cap; suppression at IoU 0.3"
)


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def files_of(folder: Path) -> dict[str, bytes]:
    """What a run has found."""
    paths = [*folder.glob("predictions/*/*.txt"), folder / "predictions.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def two_chips(monkeypatch, tmp_path) -> None:
    """A host with ATC and two chips."""
    install_double(monkeypatch)
    install_atc(monkeypatch, tmp_path / "bin")
    install_npu_smi(monkeypatch, tmp_path / "bin")


def kill_in_the_middle(folder: Path, *settings: str) -> None:
    """Start a run; SIGKILL its process group once something is in its journal."""
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *settings, f"output_dir={folder}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder.parent,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not (folder / "journal" / "segment-0000.arrow").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


def test_the_same_bytes_on_any_devices(command, tmp_path):
    runs = {"one": ("devices=1",), "two": ("devices=2", "model.batch=3")}
    for name, settings in runs.items():
        done = command(*PRESET, "backend=openvino", *settings, f"output_dir={name}")
        assert done.returncode == 0, done.stderr
        assert f"test: {TEST}" in done.stdout
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert (results["test"], results["pictures"]["done"]) == (TEST, 6)
    assert TEST in (tmp_path / "two" / "report.html").read_text()
    expected = files_of(tmp_path / "one")
    assert len(expected) == 7
    assert files_of(tmp_path / "two") == expected


@pytest.mark.usefixtures("two_chips")
def test_an_om_of_several_sizes_gives_the_same_bytes_on_any_chips_and_after_a_kill(
    command, tmp_path
):
    onnx_forms.network(tmp_path / "small.onnx")
    model = (SMALL[0], "dataset.limit=24")
    made = command(
        *("job=convert", "model.path=small.onnx", "convert.sizes=dataset", "convert.batches=[2]"),
        *("convert.output=om", *model),
    )
    assert made.returncode == 0, made.stderr
    run = (*PRESET[:1], *model, "model.batch=2", "backend=om", "report=false", SMALL[1])
    run += ("model.path=om/small_bs{batch}_sizes.om", "cluster.dashboard=false")
    kill_in_the_middle(tmp_path / "killed", *run, "devices=2")
    again = command("resume=killed")
    assert again.returncode == 0, again.stderr
    assert "pictures 0/24" not in again.stdout
    for count in (1, 2):
        done = command(*run, f"devices={count}", f"output_dir={count}")
        assert done.returncode == 0, done.stderr
    expected = files_of(tmp_path / "1")
    assert len(expected) == 25 and max(map(len, expected.values())) > 1000
    assert files_of(tmp_path / "2") == files_of(tmp_path / "killed") == expected

    # A letterboxed run takes one of its sizes, and is told which there are.
    wrong = command(
        SMALL[0], "job=benchmark", "model.batch=2", "backend=om", "model.path=om/small_bs2_sizes.om"
    )
    assert wrong.returncode == 2
    size = re.search(
        r"800x800 \(rows x columns\) is none of them; choose one of (\d+x\d+)", wrong.stderr
    )
    assert size, wrong.stderr


def test_an_om_is_made_for_each_scale(compose):
    few = ("job=convert", "convert.sizes=dataset", "dataset.limit=6")
    one, two = (compose(*few, *more) for more in ((), ("preprocess.scales=[0.5,1]",)))
    assert {*convert._sizes(one)} < {*convert._sizes(two)}
    assert min(convert._sizes(two)) < min(convert._sizes(one))


def test_several_views_give_the_same_bytes_on_any_devices(command, tmp_path):
    onnx_forms.network(tmp_path / "small.onnx")
    views = ("preprocess.scales=[0.5,1]", "preprocess.flip=true", "preprocess.merge=vote")
    views += (*SMALL, "model.path=small.onnx")
    for name, settings in {"one": ("devices=1",), "two": ("devices=2", "model.batch=2")}.items():
        done = command(*PRESET, *views, "backend=openvino", *settings, f"output_dir={name}")
        assert done.returncode == 0, done.stderr
        assert "also mirrored, 4 views merged by box voting" in done.stdout
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert sum(device["pictures"] for device in results["devices"]) == 6
    assert not any("Ray's object store" in note for note in results["notes"])
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    for settings, line in (
        (("preprocess.scales=[0.02]",), "preprocess.scales: 0.02 makes"),
        (("preprocess.scales=[16000]",), "need about"),
    ):
        refused = command(*PRESET, "backend=openvino", *settings)
        assert refused.returncode == 2
        assert line in refused.stderr and len(refused.stderr.splitlines()) == 1
        assert "preprocess.scales" in refused.stderr


def test_other_jobs_follow_or_refuse_in_one_line(command, tmp_path):
    root = ensure_sample(SAMPLE_FOLDER).root
    picture = next(root.rglob("*.jpg"))
    faces = {}
    for size in ("own", "letterbox"):
        done = command(
            *(f"input={picture}", "job=detect", f"preprocess.size={size}", f"output_dir={size}"),
            *("backend=openvino", "detect.annotate=false", "cluster.dashboard=false"),
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / size / "detections.jsonl").read_text().splitlines()
        faces[size] = json.loads(lines[0])["faces"]
    assert faces["own"] != faces["letterbox"]
    refused = command(*PRESET, "job=benchmark")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "preprocess.size=own: job=benchmark takes letterboxed pictures" in refused.stderr
    assert not (tmp_path / "outputs").exists()
