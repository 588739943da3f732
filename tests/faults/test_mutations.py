"""Every reader of files from outside takes what is damaged: an answer or its own error, in time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutations.py")
READERS = (
    *("jpeg", "progressive", "cmyk", "png", "bmp", "gif", "tiff", "webp"),
    *("compressed ground truth", "plain ground truth", "predictions"),
    *("journal", "journal identity", "record", "raw output", "npu-smi table", "archive"),
)
LONGEST_SECONDS = 10


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_300_damaged_files(reader, tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), reader, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    *seeds, unexpected, longest = lines
    assert len(seeds) == 300
    assert unexpected == ""
    assert float(longest) < LONGEST_SECONDS
