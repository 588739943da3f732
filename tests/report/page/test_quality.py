"""What a page shows of the finds: the gallery's misses are misses, its false positives false."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from cfdist.report.page.quality import Evidence, quality_of
from cfdist.widerface.ground_truth import LABELS, PictureTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import STYLES, prediction_text

FACES = np.array([[10.0, 10, 40, 40], [100, 10, 60, 80], [200, 100, 20, 20]])
COUNTED = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
FOUND = np.array([[12.0, 10, 40, 40, 0.9], [10, 12, 40, 40, 0.8], [300, 200, 30, 30, 0.7]])


@pytest.fixture
def evidence(tmp_path) -> Evidence:
    """Two pictures: in one a face is found twice and something is no face, in one is nothing."""
    ids = ["0--A/<one>", "1--B/two"]
    truth = {id: PictureTruth(id, FACES, COUNTED) for id in ids}
    metric = WiderFaceMetric()
    metric.update(truth[ids[0]], FOUND[:, :4], FOUND[:, 4])
    metric.update(truth[ids[1]], np.empty((0, 4)), np.empty(0))
    path = tmp_path / "one.txt"
    path.write_text(prediction_text(ids[0], FOUND, STYLES["official"]))
    picture = tmp_path / "one.jpg"
    cv2.imwrite(str(picture), np.full((300, 400, 3), 90, np.uint8))
    labels = np.zeros((3, len(LABELS)), np.uint8)
    labels[1] = [2, 1, 0, 1, 1, 0]
    return Evidence(
        truth,
        metric.matched(),
        {ids[0]: path, ids[1]: None},
        {ids[0]: str(picture)},
        lambda truth: dict.fromkeys(truth, labels),
    )


def test_galleries_show_the_worst_first(evidence):
    misses, wrong = quality_of(evidence, "official").galleries
    found = [(entry.data["picture"], entry.data["face"]) for entry in misses.entries]
    assert found == [
        ("0--A/<one>", "1"), ("1--B/two", "1"), ("1--B/two", "0"), ("0--A/<one>", "2"),
        ("1--B/two", "2"),
    ]  # fmt: skip
    assert misses.entries[0].text == (
        "face 1 of 60 x 80 pixels, easy, medium, hard, blur heavy, expression exaggerated, "
        "occlusion partial, pose atypical"
    )
    (image,) = misses.entries[0].images
    assert re.search(r'class="missed" x="100.0" y="10.0" width="60.0" height="80.0"', image)
    assert 'aria-label="0--A/&lt;one&gt;: faces and finds"' in image
    assert misses.entries[1].images == ()  # nobody knows where that picture is

    assert [entry.data["prediction"] for entry in wrong.entries] == ["1", "2"]
    assert [entry.text.partition(",")[0] for entry in wrong.entries] == [
        "score 0.800", "score 0.700",
    ]  # fmt: skip
    assert "a second find of face 0 (IoU 0.9" in wrong.entries[0].text
    assert wrong.entries[1].text.endswith("overlaps no face of the ground truth")
    assert 'class="wrong" x="10.0" y="12.0"' in wrong.entries[0].images[0]


def test_tables_and_curves(evidence):
    quality = quality_of(evidence, "guide")
    assert [row[0].text for row in quality.events.rows] == ["0--A", "1--B"]
    assert [row[2].text for row in quality.events.rows] == ["3", "3"]
    assert sum(row[1].sort for row in quality.heights.rows) == 6
    causes = {row[0].text: row for row in quality.causes.rows}
    assert [cell.text for cell in causes["blur: heavy"]] == [
        "blur: heavy",
        "2",
        "0.0 %",
        "0.0 %",
        "2",
    ]
    assert "blur: normal" not in causes
    assert [re.search(r"hard \(AP ([\d.]+) %\)", chart)[1] for chart in quality.curves] == [
        "16.67", "16.67",
    ]  # fmt: skip


def test_without_labels_there_are_no_causes(evidence):
    from dataclasses import replace

    assert quality_of(replace(evidence, labels=lambda truth: {}), "guide").causes is None

    def gone(truth):
        raise FileNotFoundError

    assert quality_of(replace(evidence, labels=gone), "guide").causes is None
