"""The columns of `predictions.parquet` that say what became of each box."""

from __future__ import annotations

import numpy as np

from cfdist.detections import Detections, from_arrow, to_arrow
from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth
from cfdist.widerface.matches import OUTCOMES, outcome_column, with_matches
from cfdist.widerface.metric import (
    PROTOCOLS,
    WiderFaceMetric,
    average_precision,
    first_thresholds,
    normalise,
    recall_and_precision,
)

FACES = np.array([[0.0, 0, 40, 40], [100, 0, 40, 40], [0, 100, 40, 40]])
COUNTED = np.array([[True, False, False], [True, True, False], [True, True, True]])


def found(id: str, boxes, scores) -> Detections:
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    xyxy[:, 2:] += xyxy[:, :2]
    return Detections(id, xyxy, np.array(scores, np.float32), np.zeros((len(xyxy), 5, 2)))


def scored(detections: list[Detections]) -> WiderFaceMetric:
    metric = WiderFaceMetric()
    for one in detections:
        if one.error is None:
            boxes = one.boxes.astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            metric.update(PictureTruth(one.id, FACES, COUNTED), boxes, one.scores)
    return metric


DETECTIONS = [
    found("e/a", [[0, 0, 40, 40], [102, 0, 40, 40], [300, 300, 9, 9], [1, 0, 40, 40]],
          [0.9, 0.8, 0.7, 0.6]),
    Detections("e/b", error="broken"),
    found("e/c", [], []),
    found("e/d", [[0, 112, 40, 40]], [0.5]),  # IoU about 0.55
    found("e/e", [[0, 120, 40, 40]], [0.4]),  # IoU about 0.35
]  # fmt: skip


def test_each_box_has_its_face_its_overlap_and_its_outcomes():
    table = with_matches(to_arrow(DETECTIONS), scored(DETECTIONS).matched())
    assert [one.id for one in from_arrow(table)] == [one.id for one in DETECTIONS]
    rows = table.to_pylist()
    assert rows[0]["face"] == [0, 1, None, 0]
    assert rows[0]["iou"][0] == 1.0 > rows[0]["iou"][1] > 0.9
    assert rows[0]["iou"][2] == 0.0
    assert rows[0]["official_easy"] == ["TP", "ignored", "FP", "FP"]
    assert rows[0]["guide_medium"] == ["TP", "TP", "FP", "FP"]
    assert rows[1]["face"] is rows[1]["iou"] is rows[1]["official_hard"] is None
    assert rows[2]["face"] == rows[2]["iou"] == rows[2]["official_hard"] == []
    assert rows[3]["official_hard"] == rows[3]["guide_hard"] == ["TP"]
    assert rows[3]["official_easy"] == ["ignored"]
    assert rows[4]["face"] == [2]
    assert 0.3 < rows[4]["iou"][0] < 0.4
    assert rows[4]["official_easy"] == rows[4]["guide_hard"] == ["FP"]


def test_the_columns_give_the_metrics_ap_to_the_last_bit():
    metric = scored(DETECTIONS)
    # The order of the rows is not that in which the metric was updated.
    rows = with_matches(to_arrow(DETECTIONS[::-1]), metric.matched()).to_pylist()
    scores = np.concatenate([row["written_scores"] or [] for row in rows])
    steps = first_thresholds(normalise(scores))
    counts = COUNTED.sum(axis=1) * sum(one.error is None for one in DETECTIONS)
    for protocol in PROTOCOLS:
        for difficulty, count in zip(DIFFICULTIES, counts, strict=True):
            words = [
                word for row in rows for word in row[outcome_column(protocol, difficulty)] or []
            ]
            outcomes = np.array([OUTCOMES.index(word) for word in words], np.int8)
            curve = recall_and_precision(steps, outcomes, int(count))
            assert average_precision(*curve) == metric.compute()[protocol][difficulty] > 0
