"""The page of a comparison: both models' boxes side by side, the most different pictures first."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from cfdist.comparison.device import ComparedChunk
from cfdist.comparison.differences import HeadDifference
from cfdist.comparison.page import comparison_parts, layer_parts
from cfdist.comparison.tally import MOST_APART, Tally
from cfdist.detections import Detections
from cfdist.report.page.tables import Cell
from cfdist.widerface.ground_truth import PictureTruth


def found(id: str, *lefts: float) -> Detections:
    boxes = np.array([[left, 10, left + 40, 50] for left in lefts], np.float32).reshape(-1, 4)
    scores = np.linspace(0.9, 0.5, len(boxes)).astype(np.float32)
    return Detections(id, boxes, scores, np.zeros((len(boxes), 5, 2), np.float32), 400, 100)


@pytest.fixture
def tally() -> Tally:
    faces, counted = np.array([[10.0, 10, 40, 40]]), np.ones((3, 1), bool)
    ids = [f"e/{i:02}" for i in range(MOST_APART + 3)]
    return Tally({id: PictureTruth(id, faces, counted) for id in ids}, "official")


def test_the_most_different_pictures_are_kept_whatever_their_order(tally):
    pairs = [(found("e/00", 10), found("e/00", 10)), (found("e/01", 10), found("e/01", 200))]
    pairs += [(found(id, 10, 100), found(id, 10)) for id in [*tally.truth][2:]]
    orders = []
    for arrival in (pairs, pairs[::-1]):
        other = Tally(tally.truth, "official")
        for pair in arrival:
            other.add(ComparedChunk([pair[0]], [pair[1]], {}))
        orders.append([one.reference.id for one in other.apart])
    assert orders[0] == orders[1]
    assert orders[0][:2] == ["e/01", "e/02"]  # two boxes alone, then one
    assert len(orders[0]) == MOST_APART
    assert "e/00" not in orders[0]  # nothing differs


def test_both_models_boxes_stand_side_by_side(tally, compose, tmp_path):
    picture = tmp_path / "a.jpg"
    cv2.imwrite(str(picture), np.full((100, 400, 3), 90, np.uint8))
    heads = {"hm": HeadDifference(0.5, 1.0, 4, 2.0, 2.0, 2.0)}
    pair = found("e/00", 10, 100), found("e/00", 10)
    tally.add(ComparedChunk([pair[0]], [pair[1]], heads))
    summary = tally.summary(compose("job=compare").compare)
    parts = comparison_parts(summary, tally, {"e/00": str(picture)})
    (gallery,) = parts.galleries
    (entry,) = gallery.entries
    reference, candidate = entry.images
    assert re.findall(r'rect class="(face|missed)" x="([\d.]+)"', reference) == [
        ("face", "10.0"), ("missed", "100.0"),
    ]  # fmt: skip
    assert re.findall(r'rect class="(face|missed)" x="([\d.]+)"', candidate) == [("face", "10.0")]
    assert entry.text.startswith("1 of 2 boxes of the reference are not the candidate's, 0 of 1 ")
    ap, boxes, limits, head_maps = parts.tables
    assert [cell.text for cell in ap.rows[0]] == ["official (IoU 0.5), reference"] + [
        "100.00 %"
    ] * 3
    assert [cell.text for cell in boxes.rows[0][1:]] == ["2", "1", "50.00 %"]
    assert [cell.text for cell in limits.rows[1]] == ["boxes", "PAST THE TOLERANCE"]
    assert head_maps.rows[0][1] == Cell("5.00e-01", 0.5)  # sorted by the figure, not the text
    assert len(parts.charts) == 3


def test_every_tensor_is_a_row():
    entry = {
        "tensor": "c1",
        "operator": "Conv",
        "shape": [8, 32, 32],
        "max": 0.5,
        "relative": 0.1,
        "cosine": 0.98,
        "within": False,
    }
    (table,) = layer_parts({"matched": "every operator", "layers": [entry]}).tables
    texts = [cell.text for cell in table.rows[0]]
    assert texts == [*("c1", "Conv", "8x32x32", "5.00e-01", "1.00e-01", "0.98000000", "PAST")]
    assert len(table.columns) == len(texts)
