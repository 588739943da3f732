"""docs/extending.md to the letter: its files in an empty folder, its commands run there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the files of the page."""
    there = tmp_path_factory.mktemp("extending")
    for kind, block in BLOCKS:
        if kind in ("python", "yaml"):
            name = block.split("\n")[0].removeprefix("# ")
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_text(block)
    return there


def run(folder: Path, line: str) -> dict:
    """The results of a command of the page."""
    assert line.startswith("PYTHONPATH=. python main.py ")
    arguments = line.split()[3:]
    done = subprocess.run(
        [sys.executable, str(PROJECT / "main.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (output,) = [one.partition("=")[2] for one in arguments if one.startswith("output_dir=")]
    return json.loads((folder / output / "results.json").read_text()) | {"screen": done.stdout}


def test_the_page_s_backend_convention_and_metric(folder):
    lines = [line for kind, block in BLOCKS if kind == "sh" for line in block.strip().split("\n")]
    found = {line.rpartition("output_dir=")[2]: run(folder, line) for line in lines}
    assert list(found) == ["by_opencv", "by_mine", "with_metric", "scored"]
    plain = found["with_metric"]
    assert found["by_opencv"]["backend"] == "opencv_backend:OpenCVBackend"
    assert found["by_opencv"]["devices"][0]["runs_on"].startswith("OpenCV ")
    for other in ("by_opencv", "by_mine"):
        for protocol, ap in plain["ap"].items():
            assert found[other]["ap"][protocol] == pytest.approx(ap, abs=1e-4)
    figures = plain["metrics"]["my_metric:LargeFaces"]
    assert figures["faces"] > 0
    assert 0.5 < figures["recall"] <= 1
    assert found["scored"]["metrics"] == plain["metrics"]
    assert f"my_metric:LargeFaces: recall {figures['recall']:.6g}, faces" in plain["screen"]
