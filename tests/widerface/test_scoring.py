"""Scoring on several processes gives the figures of one."""

from __future__ import annotations

import numpy as np
import pytest

from cfdist.errors import UserError
from cfdist.widerface import scoring
from cfdist.widerface.ground_truth import PictureTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import read_predictions_file


@pytest.fixture
def predictions(tmp_path):
    random = np.random.default_rng(1)
    truth, files = [], {}
    for i in range(20):
        boxes = random.integers(1, 50, (5, 4)).astype(float)
        truth.append(PictureTruth(f"e/{i}", boxes, np.ones((3, 5), bool)))
        lines = [f"{x} {y} {w} {h} {random.random():.3f}" for x, y, w, h in boxes + 1]
        files[f"e/{i}"] = tmp_path / f"{i}.txt"
        files[f"e/{i}"].write_text("\n".join([f"e/{i}.jpg", "5", *lines]))
    return {picture.id: picture for picture in truth}, files


def test_processes_do_not_change_the_figures(monkeypatch, predictions):
    truth, files = predictions
    one = scoring.score_files(truth, files, cores=8)[0]
    monkeypatch.setattr(scoring, "FILES_A_PROCESS", 6)
    several = scoring.score_files(truth, files, cores=8)[0]
    assert len(one) == len(several) == 20
    assert one.compute() == several.compute()
    assert one.compute()["official"]["hard"] > 0


def test_quirks_stand_beside_the_protocols_and_read_files_their_way(monkeypatch, predictions):
    truth, files = predictions
    text = files["e/4"].read_text()
    files["e/4"].write_text(text.replace("\n5\n", "\n1\n", 1))  # as the guide's script does
    wanted = scoring.Wanted(
        quirks=[("count_line",), ("first_line",), ("no_pixel",)], protocol="guide"
    )
    plain = scoring.score_files(truth, files, cores=1).ap()
    found = scoring.score_files(truth, files, cores=1, wanted=wanted).ap()
    monkeypatch.setattr(scoring, "FILES_A_PROCESS", 6)
    assert scoring.score_files(truth, files, cores=8, wanted=wanted).ap() == found
    counted, first, without = (
        found.pop(f"guide with {name}")["hard"] for name in ("count_line", "first_line", "no_pixel")
    )
    assert found == plain
    assert first < counted < plain["guide"]["hard"]
    assert without != plain["guide"]["hard"]
    files["e/4"].write_text("\n".join(text.split("\n")[:3]))
    files["e/4"].write_text(files["e/4"].read_text().replace("\n5\n", "\n1\n", 1))
    cut = scoring.score_files(truth, files, cores=1).ap()["guide"]["hard"]
    assert cut == counted  # the other four lines might as well not be there


def test_figures_are_those_of_one_picture_after_the_other(predictions):
    truth, files = predictions
    metric = WiderFaceMetric()
    for id, path in files.items():
        metric.update(truth[id], *read_predictions_file(path))
    assert scoring.score_files(truth, files, cores=1)[0].compute() == metric.compute()


def test_a_picture_without_a_file_counts_its_faces(monkeypatch, predictions):
    truth, files = predictions
    files["e/3"].write_text("e/3.jpg\n0\n")
    written = scoring.score_files(truth, files, cores=1)[0]
    for minimum in (400, 6):
        monkeypatch.setattr(scoring, "FILES_A_PROCESS", minimum)
        absent = scoring.score_files(truth, files | {"e/3": None}, cores=2)[0]
        assert absent.compute() == written.compute()
        assert absent.reach().faces == {"easy": 100, "medium": 100, "hard": 100}
    left_out = {id: path for id, path in files.items() if id != "e/3"}
    assert scoring.score_files(truth, left_out, cores=1)[0].reach().faces["hard"] == 95


def test_a_bad_file_is_named_from_any_process(monkeypatch, predictions):
    truth, files = predictions
    files["e/7"].write_text("e/7.jpg\n1\n1 2 3 4 nan\n")
    monkeypatch.setattr(scoring, "FILES_A_PROCESS", 6)
    with pytest.raises(UserError, match=r"7\.txt.*line 3"):
        scoring.score_files(truth, files, cores=2)[0]
