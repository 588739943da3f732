"""Results as typed figures."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from cfdist.api.types import AveragePrecision, Comparison, Detection, Evaluation, Face, Run, Score
from cfdist.detecting.files import LINES, write_lines
from cfdist.detections import Detections

AP = {"easy": 0.9, "medium": 0.8, "hard": 0.7}
RESULTS = {
    "pictures": {"total": 3, "done": 2, "failed": 1},
    "failures": [{"picture": "0--Parade/a", "reason": "empty file (0 bytes)"}],
    "notes": ["a note"],
    "expected": None,
    "ap": {"guide": AP, "official": AP},
    "throughput": {"steady": None, "end_to_end": 7.5},
}


def test_a_run_says_what_its_results_say():
    run = Evaluation.of(Path("out"), RESULTS)
    assert run.output_dir == Path("out")
    assert (run.exit_code, run.pictures, run.notes) == (3, 2, ("a note",))
    assert run.reason.startswith("1 of 3 pictures failed; the first, 0--Parade/a: empty file")
    assert run.failures == {"0--Parade/a": "empty file (0 bytes)"}
    assert list(run.ap) == ["guide", "official"]
    assert run.ap["official"] == AveragePrecision(0.9, 0.8, 0.7)
    assert (run.pictures_per_second, run.end_to_end_pictures_per_second) == (None, 7.5)
    assert run.results is RESULTS
    assert run.test is None  # of an earlier version
    assert Evaluation.of(Path("out"), RESULTS | {"test": "mirrored"}).test == "mirrored"
    assert "throughput" not in repr(run)
    assert isinstance(run, Score)
    with pytest.raises(FrozenInstanceError):
        run.pictures = 3


def test_a_simulated_run_has_no_ap():
    assert Score.of(Path("out"), RESULTS | {"ap": {}}).ap == {}


def test_a_comparison_has_the_aps_of_both():
    sides = {"reference": {"ap": {"official": AP}}, "candidate": {"ap": {"official": AP}}}
    found = {"within_tolerance": False, **sides}
    run = Comparison.of(Path("out"), RESULTS | {"failures": [], "comparison": found})
    assert not run.within_tolerance
    assert (run.exit_code, run.reason) == (4, "the models are too far apart")
    assert run.candidate["official"].hard == 0.7
    assert run.test is None
    assert isinstance(run, Run)


def test_a_detection_has_the_faces_by_picture(tmp_path):
    points = [[1.0, 2.0]] * 5
    faces = [{"box": [1.0, 2.0, 3.0, 4.5], "score": 0.5, "landmarks": points}]
    lines = [
        {"path": "ü", "width": 9, "height": 9, "faces": faces},
        {"path": "b", "width": None, "height": None, "faces": None, "error": "empty"},
        {"path": "c", "width": 9, "height": 9, "faces": []},
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tmp_path / "detections.jsonl").write_text(text, encoding="utf-8")
    run = Detection.of(tmp_path, RESULTS)
    face = Face((1.0, 2.0, 3.0, 4.5), 0.5, ((1.0, 2.0),) * 5)
    assert run.faces == {"ü": (face,), "c": ()}


def test_a_name_may_hold_what_ends_a_line_elsewhere(tmp_path):
    name = "a\u2028b\x85.jpg"
    write_lines(tmp_path / LINES, [Detections(name)])
    assert Detection._figures(tmp_path, {}) == {"faces": {name: ()}}
