"""A whole command is killed as soon as it has written a file; what goes on ends with its bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.faults import IS_LONG
from tests.faults.test_full_disk import RUN, bytes_of

# Its first batch, and its end; the long test has more.
POINTS = ["journal/segment-0000.arrow", "results.json"]
if IS_LONG:
    POINTS += ["config.yaml", "journal/run.json", "predictions", "predictions.parquet"]


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def kill_after(folder: Path, point: str) -> None:
    """Start the run; SIGKILL its process group once a file of the run is there."""
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *RUN, "output_dir=out"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "out" / point).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_each_stage(command, tmp_path, capsys):
    whole = command(*RUN, f"output_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    expected, same = bytes_of(tmp_path / "whole"), []
    for number, point in enumerate(POINTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_after(folder, point)
        resumed = command(f"resume={folder / 'out'}")
        assert resumed.returncode == 0, (point, resumed.stderr)
        assert not (folder / "out" / "journal").exists()
        if bytes_of(folder / "out") == expected:
            same.append(point)
    with capsys.disabled():
        print(
            f"\nkilled once a file is there: {len(same)} of {len(POINTS)} end with the same bytes"
        )
    assert same == POINTS
