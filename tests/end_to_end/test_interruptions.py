"""Ctrl-C: a run goes on where it stopped, with the same settings only."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT

RUN = (
    "backend=openvino",
    "model.height=256",
    "model.width=256",
    "cluster.dashboard=false",
    "output_dir=out",
)


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *RUN],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job of a shell, as the tests may be, ignores Ctrl-C, and so would its child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_progress(folder: Path) -> None:
    """Until something is in the journal."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(p.stat().st_size > 20_000 for p in (folder / "out").glob("journal/segment-*")):
            return
        time.sleep(0.02)
    pytest.fail("the run did not begin")


def test_an_interrupted_command_goes_on(warm_command, tmp_path):
    """tests/faults has the other signals, and more moments."""
    process = start(tmp_path)
    wait_for_progress(tmp_path)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert len(error.splitlines()) == 1, error
    assert "interrupted" in error
    other = warm_command(*RUN, "model.nms=null")
    assert other.returncode == 2
    assert "other settings, weights or pictures (model.nms: 0.3 then, null now)" in other.stderr

    # Both lines print the command that goes on with the run.
    printed = shlex.split(error.split(": ")[-1])
    assert printed == shlex.split(other.stderr.split(": ")[-1])
    assert printed == [sys.executable, str(PROJECT / "main.py"), "resume=out"]
    again = warm_command(*printed[2:])
    assert again.returncode == 0, again.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["pictures"]["done"] == 69
    assert any("were done by an earlier" in note for note in results["notes"])
    assert len(list((tmp_path / "out" / "predictions").rglob("*.txt"))) == 69
    assert not (tmp_path / "out" / "journal").exists()
