"""Every reader of files from outside takes what is damaged: an answer or its own error, in time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutations.py")
READERS = {
    *("jpeg", "progressive", "cmyk", "png", "bmp", "gif", "tiff", "webp"),
    *("compressed ground truth", "plain ground truth", "predictions"),
    *("journal", "journal identity", "record", "raw output", "npu-smi table", "archive"),
}
COUNT = 300
LONGEST_SECONDS = 10


@pytest.mark.slow
def test_damaged_files(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert {one["reader"] for one in found} == READERS
    assert len(lines) == len(READERS) * (COUNT + 1)
    wrong = [one for one in found if one["unexpected"] or one["longest"] > LONGEST_SECONDS]
    assert wrong == []
