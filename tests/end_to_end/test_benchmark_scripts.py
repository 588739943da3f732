"""The scripts in benchmarks/ keep up with the code that they measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.name for path in BENCHMARKS.glob("*.py")))
def test_what_a_script_imports_is_there(script):
    load = "import runpy, sys; sys.path.insert(0, ''); runpy.run_path(sys.argv[1], run_name='read')"
    done = subprocess.run(
        [sys.executable, "-c", load, script],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
