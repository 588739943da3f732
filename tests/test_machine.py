"""Cores within container limits."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from cfdist.machine import available_cores, available_memory


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_quota(tmp_path, files, expected):
    unlimited = available_cores(tmp_path / "none")
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert available_cores(tmp_path) == (expected or unlimited)
    assert unlimited >= 1


def test_memory():
    assert available_memory() > 0


def python(code: str) -> list[float]:
    """Numbers that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_a_process_knows_its_age():
    start = time.perf_counter()
    (age,) = python(
        "import time; time.sleep(0.5); from cfdist.machine import process_age; print(process_age())"
    )
    # The kernel counts in hundredths of a second.
    assert 0.48 <= age <= time.perf_counter() - start + 0.02


def test_peak_memory_is_in_bytes_and_does_not_fall():
    before, after = python(
        "from cfdist.machine import peak_memory as peak; before = peak();"
        "block = b'x' * 200_000_000; del block; print(before, peak())"
    )
    assert 150e6 < after - before < 250e6
