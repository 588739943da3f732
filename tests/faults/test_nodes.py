"""Whole commands whose reducer or head dies or hangs: they end by themselves, with nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.slow

LONGEST_SECONDS = 60
REDUCER, HEAD = "ray::ReducerActor", "gcs_server"
SETTINGS = ("dataset.limit=60", "model.height=128", "model.width=128", "backend=openvino")


def process_named(parent: int, name: str) -> int:
    """The process of a command whose command line begins with a name, or a path that ends so."""
    for one in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            first = " ".join(one.cmdline()).split(" --")[0]
            if first.startswith(name) or first.endswith(name):
                return one.pid
    raise AssertionError(f"no {name}")


@pytest.fixture
def disturbed(tmp_path) -> Callable[..., tuple[subprocess.CompletedProcess, float]]:
    """Runs a command, and signals one of its processes once detections are on disk.

    Gives what became of the command, and the seconds from the signal to its end.
    """

    def run(name: str, number: int, *arguments: str) -> tuple:
        output = tmp_path / "disturbed"
        command = [sys.executable, PROJECT / "main.py", f"output_dir={output}", *arguments]
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            deadline = time.monotonic() + 120
            while not any(part.stat().st_size for part in output.glob("journal/segment-*")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(process_named(process.pid, name), number)
            began = time.monotonic()
            said = process.communicate(timeout=LONGEST_SECONDS + 60)
            done = subprocess.CompletedProcess(command, process.returncode, *said)
            return done, time.monotonic() - began

    return run


def predictions(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "predictions").rglob("*.txt"), folder / "predictions.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reducer_that_dies_or_hangs_changes_no_byte(command, disturbed, tmp_path, number):
    whole = command(*SETTINGS, "output_dir=whole")
    assert whole.returncode == 0, whole.stderr
    done, seconds = disturbed(REDUCER, number, *SETTINGS, "dataset.repeat=8")
    assert done.returncode == 0, done.stderr
    assert seconds < LONGEST_SECONDS
    assert predictions(tmp_path / "disturbed") == predictions(tmp_path / "whole")
    results = json.loads((tmp_path / "disturbed" / "results.json").read_text())
    assert [event["what"] for event in results["events"]] == ["reducer_restarted"]


def test_a_lost_head_ends_the_run_and_the_next_one_goes_on(command, disturbed, tmp_path):
    settings = ("backend=simulated", "backend.latency_ms=200", "dataset.repeat=4")
    done, seconds = disturbed(HEAD, signal.SIGKILL, *settings, "cluster.wait_s=5")
    assert done.returncode == 1
    assert seconds < LONGEST_SECONDS
    lines = [line for line in done.stderr.splitlines() if line.startswith("cfdist: ")]
    assert len(lines) == 1, done.stderr
    assert "the head of the Ray cluster" in lines[0]
    assert "Traceback" not in done.stderr
    resumed = command(*settings[:1], "backend.latency_ms=0", settings[2], "output_dir=disturbed")
    assert resumed.returncode == 0, resumed.stderr
    results = json.loads((tmp_path / "disturbed" / "results.json").read_text())
    assert results["done"] == results["total"] == 69
    assert any("were done by an earlier" in note for note in results["notes"])
