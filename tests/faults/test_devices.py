"""Devices that fail in every way, through the whole command: it ends, and says which one it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.slow

RUN = (
    *("backend=simulated", "backend.latency_ms=30", "model.height=256", "model.width=256"),
    *("cluster.dashboard=false", "output_dir=out"),
)
# Loading Ray on a busy machine; the run itself has 60 s from its fault.
TIMEOUT = 240


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *RUN, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen, folder: Path) -> tuple[int, dict, str]:
    """The exit code, the content of results.json and what was said on stderr."""
    _, error = process.communicate(timeout=TIMEOUT)
    path = folder / "out" / "results.json"
    return process.returncode, json.loads(path.read_text()) if path.is_file() else {}, error


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("fail", "device_failed"),
        ("die", "device_lost"),
        ("nan", "device_failed"),
        ("inf_scores", "device_failed"),
        ("hang", "device_timeout"),
        ("stop", "device_timeout"),
        ("fail_opening", "device_failed"),
        ("hang_opening", None),  # the run is over before that is certain
    ],
)
def test_one_faulty_device_of_two_changes_nothing_but_the_time(tmp_path, fault, what):
    process = start(tmp_path, "devices=2", f"backend.fault={fault}", "backend.fault_device=1")
    code, results, error = end(process, tmp_path)
    assert code == 0, error
    assert results["pictures"] == {"total": 69, "done": 69, "failed": 0}
    assert results["seconds"]["run"] < 60
    assert {event["device"] for event in results["events"]} == {"device:1"}
    if what is not None:
        assert results["events"][0]["what"] == what
        assert results["events"][0]["host"] == os.uname().nodename
    assert any("device:1" in note for note in results["notes"])


@pytest.mark.parametrize("fault", ["fail", "die", "hang"])
def test_without_a_sound_device_the_run_ends_with_the_device_s_words(tmp_path, fault):
    process = start(tmp_path, "devices=1", f"backend.fault={fault}", "device.timeout=8")
    code, results, error = end(process, tmp_path)
    assert (code, results) == (1, {})
    (line,) = error.splitlines()
    words = {"fail": "507033", "die": "its process died", "hang": "device.timeout"}
    assert "no device is left" in line
    assert "device:0 (" in line
    assert words[fault] in line
    assert "; go on with: " in line
    again = subprocess.run(
        [sys.executable, str(PROJECT / "main.py"), *RUN, "devices=1"],
        cwd=tmp_path,
        capture_output=True,
        timeout=TIMEOUT,
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("number", "what"), [(signal.SIGKILL, "device_lost"), (signal.SIGSTOP, "device_timeout")]
)
def test_a_device_process_that_a_signal_ends_or_stops(tmp_path, number, what):
    process = start(tmp_path, "devices=2", "dataset.repeat=12")
    deadline = time.monotonic() + 120
    while not any((tmp_path / "out").glob("journal/segment-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    children = psutil.Process(process.pid).children(recursive=True)
    # A process of Ray is called as what it does now.
    titles = ("ray::DeviceActor", "ray::infer")
    actors = [one for one in children if " ".join(one.cmdline()).startswith(titles)]
    assert len(actors) == 2
    actors[0].send_signal(number)
    at = time.monotonic()
    code, results, error = end(process, tmp_path)
    assert code == 0, error
    assert time.monotonic() - at < 90  # some 14 s of work, and the rest of the other device's
    assert results["pictures"] == {"total": 69, "done": 69, "failed": 0}
    assert [event["what"] for event in results["events"]] == [what]


def test_the_first_failed_picture_ends_the_run_if_that_is_wanted(tmp_path):
    process = start(tmp_path, "devices=1", "backend.fault=nan", "on_error=fail")
    code, results, error = end(process, tmp_path)
    assert (code, results) == (3, {})
    (line,) = error.splitlines()
    assert "NaN or infinite values (device:0)" in line
    assert "on_error=fail" in line
    assert "; go on with: " in line
