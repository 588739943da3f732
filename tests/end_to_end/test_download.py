"""`job=download` as a person calls it, from a web server on this machine."""

from __future__ import annotations

import io
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.widerface.ground_truth import load_ground_truth
from tests.conftest import PROJECT
from tests.fakes.mirror import Mirror, serving

ANY = ("download.size=null", "download.md5=null", "download.sha256=null")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture(scope="module")
def published(shared: Path):
    """A server with the real ground truth, and a small picture in place of each real one."""
    folder = shared / "data" / "wider_val_mini" / "ground_truth"
    jpeg = cv2.imencode(".jpg", np.full((64, 64, 3), 99, np.uint8))[1].tobytes()
    packed = {"WIDER_val.zip": io.BytesIO(), "eval_tools.zip": io.BytesIO()}
    with zipfile.ZipFile(packed["eval_tools.zip"], "w") as archive:
        for path in folder.glob("*.mat"):
            archive.write(path, f"eval_tools/ground_truth/{path.name}")
    with zipfile.ZipFile(packed["WIDER_val.zip"], "w") as archive:
        for id in load_ground_truth(folder):
            archive.writestr(f"WIDER_val/images/{id}.jpg", jpeg)
    with serving() as mirror:
        mirror.files = {name: file.getvalue() for name, file in packed.items()}
        yield mirror


def refused(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in words), line


def test_from_nothing_to_a_run_with_a_kill_on_the_way(published: Mirror, command, tmp_path):
    to = "download.to=my data"
    download = ("job=download", to, f"download.mirrors=[{published.address}]", *ANY)
    published.faults["WIDER_val.zip"] = ["stall", ""]
    killed = subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *download], cwd=tmp_path,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    part = tmp_path / "my data" / ".WIDER_val.zip.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "my data" / "WIDER_val.zip").exists()

    done = command(*download)
    assert (done.returncode, done.stderr) == (0, "")
    assert published.asked[1][1] is not None  # it went on where the first one had ended
    assert "CC BY-NC-ND 4.0" in done.stdout and "for research" in done.stdout
    names = {path.name for path in (tmp_path / "my data").iterdir()}
    sums = {"WIDER_val.zip.sha256", "eval_tools.zip.sha256"}
    assert names == {"WIDER_val.zip", "eval_tools.zip", *sums}
    assert not (tmp_path / "outputs").exists()

    asked = len(published.asked)
    again = command("job=download", to, *ANY)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("there already") == 2 and len(published.asked) == asked

    program, *words = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    assert program in ("python", "./run.sh")
    simulated = ("backend=simulated", "backend.latency_ms=0", "dataset.limit=4")
    run = command(*[one for one in words if "=" in one], *simulated)
    assert run.returncode == 0, run.stderr

    other = command("job=download", "download.to=two", "download.from=my data", *ANY)
    assert other.returncode == 0, other.stderr
    assert "data/WIDER_val.zip, now two/WIDER_val.zip" in other.stdout


def test_what_a_person_gets_wrong_is_one_line(published: Mirror, command, tmp_path):
    refused(command("job=download", "download.from=nowhere"), "download.from=nowhere: no such")
    refused(
        command("job=download", "download.mirrors=[ftp://h/WIDER_val.zip]"),
        "download.mirrors=[ftp://h/WIDER_val.zip]: must be a list", "an http(s) address",
    )  # fmt: skip
    refused(command("job=download", "output_dir=x"), "output_dir: job=download does not read it")
    refused(command("dataset=wider_val"), "job=download` gets both")
    (tmp_path / "file").write_text("")
    refused(command("job=download", "download.to=file/x"), "file/x", "choose another folder")

    # The published sums are those of real pictures: these are refused, and nothing is left.
    published.faults["WIDER_val.zip"] = [""]
    lost = command("job=download", f"download.mirrors=[{published.address}]")
    assert lost.returncode == 1 and len(lost.stderr.splitlines()) == 1
    assert "bytes, not 362752168" in lost.stderr
    assert not (tmp_path / "data").exists()
