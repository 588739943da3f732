"""A disk that fills up ends a run with one line and exit code 6, and nothing of it is lost."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = ("backend=onnxruntime", "model.height=64", "model.width=64", "cluster.dashboard=false")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system with little room."""
    folder = tmp_path / "small"
    folder.mkdir()

    def make(limit: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", folder], check=False)
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        return folder

    yield make
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The lasting files that have no times in them."""
    files = [folder / "predictions.parquet", *(folder / "predictions").rglob("*.txt")]
    assert len(files) > 60
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "moves"), [("size=300k", False), ("nr_inodes=60,size=9m", True)])
def test_a_run_goes_on_after_its_disk_was_full(command, tmp_path, small_disk, limit, moves):
    out = small_disk(limit) / "out"
    ended = command(*RUN, f"output_dir={out}")
    assert ended.returncode == 6, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "No space left on device" in line
    printed = shlex.split(line.split("go on with: ")[1])
    assert printed[-1] == "resume=small/out"
    if moves:
        shutil.copytree(out, tmp_path / "moved")
        out, printed[-1] = tmp_path / "moved", "resume=moved"
    else:
        subprocess.run(["mount", "-o", "remount,size=9m", out.parent], check=True)
    resumed = subprocess.run(printed, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["pictures"]["done"] == 69
    assert any("were done by an earlier" in note for note in results["notes"])

    whole = command(*RUN, f"output_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
