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


def test_the_script_for_gpus_measures_without_one():
    # One way and one batch, on a few pictures: the same path as on a GPU.
    arguments = ["--device", "cpu", "--batches", "2", "--pictures", "3", "--limit", "2"]
    done = subprocess.run(
        [sys.executable, "gpu.py", *arguments, "--seconds", "0.1", "--ways", "onnx"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    *_, line = done.stdout.splitlines()
    name, batch, heads, inference, whole, *ap = (cell.strip() for cell in line.split("|")[1:-1])
    assert (name, batch) == ("ONNX Runtime, CPU, float32", "2")
    assert float(heads) < 1e-4  # batches of two against one picture at a time
    assert float(inference) > 0 and whole == "-"  # one batch has no steady rate
    assert [float(one) for one in ap] == [1.0, 1.0, 1.0]
    # A way that is not here has its reason in its row, and the others go on.
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GPU],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "refused: backend.providers: 'CUDAExecutionProvider' is not in the" in done.stdout
    assert "out of time" in done.stdout


WITHOUT_GPU = """
import sys, gpu
gpu.card = lambda device: "no card"
sys.argv = ["gpu.py", "--batches", "1", "--pictures", "1", "--ways", "CUDA, float32"]
gpu.main()
sys.argv += ["--minutes", "0"]
gpu.main()
"""
