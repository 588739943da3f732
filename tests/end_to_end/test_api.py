"""The functions for other programs, from programs as people write them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_program(code: str, folder: Path, timeout: float = 240) -> subprocess.CompletedProcess:
    """A program in a file of its own, elsewhere; it has the checkout on its path."""
    program = folder / "program.py"
    program.write_text(code)
    return subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def blocks(page: str) -> list[str]:
    """The Python of a page of docs/, block by block."""
    found = BLOCK.findall((PROJECT / "docs" / page).read_text())
    assert found
    return found


def test_the_page_runs_as_it_stands(tmp_path):
    """All blocks in one program, as the cells of a notebook are."""
    cells = [one for one in blocks("api.md") if "import optuna" not in one]
    done = run_program("\n".join(cells), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second, third, refused, agree, rates = done.stdout.splitlines()
    assert re.fullmatch(r"hard: [01]\.\d{4} \(official\), [01]\.\d{4} \(guide\)", first)
    assert re.fullmatch(r"16 pictures, \d+\.\d a second with everything", second)
    assert third.startswith(f"{tmp_path / 'first'} {{}} ('this is the embedded sample set")
    assert refused == "model.bath: no such key; did you mean model.batch?"
    assert re.fullmatch(r"True [01]\.\d+", agree)
    assert set(eval(rates)) == {1, 8}
    results = json.loads((tmp_path / "first" / "results.json").read_text())
    assert f"{results['ap']['official']['hard']:.4f}" in first


NOTEBOOK = """
import asyncio, os, signal
import ray
from cfdist import evaluate
ray.init(
    "local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
)
handlers = [signal.getsignal(number) for number in (2, 15, 1, 12)]
address = ray.get_runtime_context().gcs_address
environment = dict(os.environ)
settings = {"backend": "simulated", "backend.latency_ms": 0, "dataset.limit": 8}

async def cell():
    return [evaluate(settings), await asyncio.to_thread(evaluate, settings)]

for run in asyncio.run(cell()):
    assert (run.pictures, run.ap, run.results["simulated"]) == (8, {}, True), run
    assert len(run.results["devices"]) == 1
assert ray.is_initialized() and ray.get_runtime_context().gcs_address == address
assert ray.get(ray.remote(lambda: 3).remote()) == 3
assert environment == dict(os.environ)
after = [signal.getsignal(number) for number in (2, 15, 1, 12)]
assert after == handlers, (after, handlers)
ray.shutdown()
"""


def test_a_notebook_with_a_ray_of_its_own(tmp_path):
    """Inside of an event loop, twice, in threads; Ray is used and left running."""
    done = run_program(NOTEBOOK, tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert len(list((tmp_path / "outputs").iterdir())) == 2


@pytest.mark.skipif(not importlib.util.find_spec("optuna"), reason="optuna is not installed")
def test_the_study_of_the_page(tmp_path):
    (study,) = [one for one in blocks("api.md") if "import optuna" in one]
    done = run_program(study, tmp_path)
    assert done.returncode == 0, done.stderr
