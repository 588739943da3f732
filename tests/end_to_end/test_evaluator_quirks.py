"""The table of evaluators' habits in docs/concepts.md is what the script measures."""

from __future__ import annotations

import re
import runpy
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "concepts.md").read_text()


@pytest.fixture(scope="module")
def script() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        return runpy.run_path(str(PROJECT / "benchmarks/evaluator_quirks.py"), run_name="read")


def row(habit: str) -> list[float]:
    """The figures of the page for the RetinaFace."""
    (line,) = [line for line in PAGE.split("\n") if line.startswith(f"| {habit} |")]
    return [float(cell) for cell in line.split("|")[2:5]]


def test_the_page_s_figures_of_the_retinaface(script, shared, tmp_path):
    archive = shared / "golden" / "predictions_retinaface_mnet025.tar.gz"
    with tarfile.open(archive) as members:
        members.extractall(tmp_path, filter="data")
    pictures = script["read"](tmp_path, script["GROUND_TRUTH"])
    plain = script["Habits"]()
    base = script["evaluate"](pictures, plain)
    first = "official protocol, AP in %"
    assert [round(100 * ap, 2) for ap in base] == row(first)
    for habit, changes in {
        "IoU 0.4 in place of 0.5": {"iou": 0.4},
        "widths without the + 1 pixel in the IoU": {"pixel": 0},
        "scores normalised in each picture": {"scores": "picture"},
        "boxes on ignored faces are wrong": {"ignored_count": True},
    }.items():
        found = script["evaluate"](pictures, replace(plain, **changes))
        points = [100 * (a - b) for a, b in zip(found, base, strict=True)]
        assert row(habit) == pytest.approx(points, abs=0.006), habit


def test_the_page_has_every_habit_of_the_script():
    text = (PROJECT / "benchmarks/evaluator_quirks.py").read_text()
    named = re.findall(r'\badd\(\s*"([^"]+)"', text)
    assert len(named) == 19
    for habit in named:
        assert len(row(habit)) == 3
