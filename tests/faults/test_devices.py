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


def results_of(folder: Path) -> dict:
    """The content of results.json; empty if there is none."""
    path = folder / "out" / "results.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("fail", "device_failed"),
        ("die", "device_lost"),
        ("nan", "device_failed"),
        ("inf_scores", "device_failed"),
        ("hang", "device_timeout"),
        ("fail_opening", "device_failed"),
        ("hang_opening", None),  # the run is over before that is certain
    ],
)
def test_one_faulty_device_of_two_changes_nothing_but_the_time(warm_command, tmp_path, fault, what):
    settings = ("devices=2", f"backend.fault={fault}", "backend.fault_device=1")
    settings += ("device.timeout=8",) if fault == "hang" else ()
    done = warm_command(*RUN, *settings, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path)
    assert results["pictures"] == {"total": 69, "done": 69, "failed": 0}
    assert results["seconds"]["run"] < 60
    assert {event["device"] for event in results["events"]} == {"device:1"}
    if what is not None:
        assert results["events"][0]["what"] == what
        assert results["events"][0]["host"] == os.uname().nodename
    assert any("device:1" in note for note in results["notes"])


@pytest.mark.parametrize("fault", ["fail", "die", "hang"])
def test_without_a_sound_device_the_run_ends_with_the_device_s_words(warm_command, tmp_path, fault):
    settings = ("devices=1", f"backend.fault={fault}", "device.timeout=5")
    done = warm_command(*RUN, *settings, timeout=TIMEOUT)
    assert (done.returncode, results_of(tmp_path)) == (1, {})
    (line,) = done.stderr.splitlines()
    words = {"fail": "507033", "die": "its process died", "hang": "device.timeout"}
    assert "no device is left" in line
    assert "device:0 (" in line
    assert words[fault] in line
    assert "; go on with: " in line
    again = warm_command(*RUN, "devices=1", timeout=TIMEOUT)
    assert again.returncode == 0, again.stderr


def test_device_processes_of_which_a_signal_ends_one_and_stops_another(tmp_path):
    process = start(tmp_path, "devices=2", "dataset.repeat=8")
    deadline = time.monotonic() + 120
    while not any((tmp_path / "out").glob("journal/segment-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    # A process of Ray is called as what it does now.
    titles = ("ray::DeviceActor", "ray::infer")
    actors: list[psutil.Process] = []
    while len(actors) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        children = psutil.Process(process.pid).children(recursive=True)
        actors = [one for one in children if " ".join(one.cmdline()).startswith(titles)]
    at = time.monotonic()
    for actor, number in zip(actors, (signal.SIGKILL, signal.SIGSTOP), strict=True):
        actor.send_signal(number)
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, error
    results = results_of(tmp_path)
    assert time.monotonic() - at < 90  # the limit of such a device is some 30 s
    assert results["pictures"] == {"total": 69, "done": 69, "failed": 0}
    assert {event["what"] for event in results["events"]} == {"device_lost", "device_timeout"}


def test_the_first_failed_picture_ends_the_run_if_that_is_wanted(warm_command, tmp_path):
    settings = ("devices=1", "backend.fault=nan", "on_error=fail")
    done = warm_command(*RUN, *settings, timeout=TIMEOUT)
    assert (done.returncode, results_of(tmp_path)) == (3, {})
    (line,) = done.stderr.splitlines()
    assert "NaN or infinite values (device:0)" in line
    assert "on_error=fail" in line
    assert "; go on with: " in line
