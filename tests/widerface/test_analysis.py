"""What an AP is made of agrees with the metric, and with plain loops over boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfdist.widerface.analysis import HARD, HEIGHTS, Analysis
from cfdist.widerface.ground_truth import DIFFICULTIES, LABELS, PictureTruth
from cfdist.widerface.metric import PROTOCOLS, WiderFaceMetric


def iou(a, b) -> float:
    """Written apart from the metric's: pixels are counted, both ends included."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]) + 1
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] + 1) * (box[3] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def pictures_of(seed: int, count: int = 6):
    """Faces of many sizes; predictions on some of them, beside some, and anywhere."""
    random = np.random.default_rng(seed)
    pictures = []
    for i in range(count):
        faces = random.uniform([0, 0, 8, 8], [300, 300, 90, 90], (random.integers(0, 9), 4)).round()
        counted = np.sort(random.random((3, len(faces))) < 0.7, axis=0)
        near = faces.repeat(2, axis=0) + random.normal(0, 3, (2 * len(faces), 4))
        boxes = np.concatenate(
            [
                near[: random.integers(0, len(near) + 1)],
                random.uniform([0, 0, 8, 8], [300, 300, 90, 90], (random.integers(0, 6), 4)),
            ]
        ).round(1)
        scores = random.random(len(boxes)).round(2)
        truth = PictureTruth(f"{i % 2}--Event/p{i}", faces, counted)
        pictures.append((truth, boxes, scores))
    return pictures


def analysed(pictures, protocol="official") -> tuple[Analysis, WiderFaceMetric]:
    metric = WiderFaceMetric()
    for picture in pictures[::-1]:  # in another order than the ground truth's
        metric.update(*picture)
    truth = {one.id: one for one, _, _ in pictures}
    return Analysis(truth, metric.matched(), protocol), metric


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([*PROTOCOLS]))
def test_curves_have_the_metrics_ap(seed, protocol):
    analysis, metric = analysed(pictures_of(seed), protocol)
    found = {name: analysis.curve(name).ap for name in DIFFICULTIES}
    assert found == metric.compute()[protocol]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([*PROTOCOLS]))
def test_misses_are_missed_and_false_positives_are_false(seed, protocol):
    pictures = pictures_of(seed)
    analysis, _ = analysed(pictures, protocol)
    threshold = PROTOCOLS[protocol].iou_threshold
    missed, wrong = set(), set()
    for truth, boxes, scores in pictures:
        taken = set()
        hit = set()
        for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
            overlaps = [iou(boxes[i], face) for face in truth.boxes]
            best = int(np.argmax(overlaps)) if overlaps else None
            if best is not None and overlaps[best] >= threshold:
                hit.add(best)
                if truth.counted[HARD, best] and best in taken:
                    wrong.add((truth.id, i))
                taken.add(best)
            elif best is not None:
                wrong.add((truth.id, i))
        counts = truth.counted.any(axis=0)
        missed |= {(truth.id, i) for i in range(len(truth.boxes)) if counts[i] and i not in hit}
    misses = [*analysis.misses()]
    assert {(one.id, one.face) for one in misses} == missed
    assert len(misses) == len(missed)
    false = [*analysis.false_positives()]
    assert {(one.id, one.prediction) for one in false} == wrong
    assert [one.score for one in false] == sorted((one.score for one in false), reverse=True)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_the_parts_add_up(seed):
    pictures = pictures_of(seed)
    analysis, _ = analysed(pictures)
    whole = analysis.share()
    assert whole.faces == sum(int(truth.counted[HARD].sum()) for truth, _, _ in pictures)
    assert sum(one.faces for one in analysis.heights()) == whole.faces
    assert sum(one.found for one in analysis.heights()) == whole.found
    assert whole.sure <= whole.found <= whole.faces
    assert sum(faces for _, faces, _ in analysis.events().values()) == whole.faces
    random = np.random.default_rng(seed)
    labels = {
        truth.id: np.stack(
            [random.integers(0, len(values), len(truth.boxes)) for values in LABELS.values()],
            axis=1,
        ).astype(np.uint8)
        for truth, _, _ in pictures
    }
    causes = analysis.causes(labels)
    for label in LABELS:
        of_label = [one for one in causes if one.name.startswith(f"{label}: ")]
        if not of_label:  # all faces have the same value
            continue
        assert sum(one.faces for one in of_label) == whole.faces
        assert sum(one.found for one in of_label) == whole.found


def test_an_event_alone_has_the_ap_that_it_has_among_others():
    pictures = pictures_of(3)
    # The highest and the lowest score of the whole set are in each event.
    pictures = [
        (t, np.concatenate([b, [[500, 500, 9, 9]] * 2]), np.concatenate([s, [1.0, 0.0]]))
        for t, b, s in pictures
    ]
    analysis, _ = analysed(pictures)
    for event, (count, _, aps) in analysis.events().items():
        alone = [one for one in pictures if one[0].id.startswith(f"{event}/")]
        assert count == len(alone)
        assert aps == analysed(alone)[1].compute()["official"]


def test_a_range_of_heights_has_only_its_own_faces_and_finds():
    truth = PictureTruth(
        "e/a", np.array([[0.0, 0, 20, 20], [100, 0, 99, 99]]), np.ones((3, 2), bool)
    )
    # Both faces are found; a wrong find as large as the large face comes first.
    boxes = np.array([[300.0, 300, 99, 99], [0, 0, 20, 20], [100, 0, 99, 99]])
    analysis, _ = analysed([(truth, boxes, np.array([0.9, 0.8, 0.7]))])
    by_name = {one.name: one for one in analysis.heights()}
    assert by_name["16 to 23"].ap == 1.0
    assert by_name["96 to 127"].ap == 0.5
    assert by_name["128 to 255"].ap is None
    assert len(by_name) == len(HEIGHTS)


def test_misses_come_from_easy_and_large_to_hard_and_small():
    faces = np.array([[0.0, 0, 9, 30], [100, 0, 9, 50], [200, 0, 9, 90], [300, 0, 9, 99]])
    counted = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
    analysis, _ = analysed([(PictureTruth("e/a", faces, counted), np.empty((0, 4)), np.empty(0))])
    found = [(one.face, one.difficulties) for one in analysis.misses()]
    assert found == [(1, DIFFICULTIES), (0, DIFFICULTIES), (2, ("hard",))]
    assert analysis.sure_score == 0.0
    assert [*analysis.false_positives()] == []


def test_the_sure_score_balances_precision_and_recall():
    faces = np.array([[100.0 * i, 0, 30, 30] for i in range(4)])
    boxes = np.concatenate([faces[:3], [[0.0, 500, 30, 30]] * 3])
    scores = np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1])
    analysis, _ = analysed([(PictureTruth("e/a", faces, np.ones((3, 4), bool)), boxes, scores)])
    assert 0.3 < analysis.sure_score <= 0.7
    assert (analysis.share().sure, analysis.share().found) == (3, 3)


@pytest.mark.slow
def test_labels_of_the_real_ground_truth(shared):
    from cfdist.widerface.ground_truth import load_face_labels, load_ground_truth

    folder = shared / "data/wider_val_mini/ground_truth"
    truth = load_ground_truth(folder)
    labels = load_face_labels(folder, truth)
    assert labels.keys() == truth.keys()
    table = np.concatenate([labels[id] for id in truth])
    assert len(table) == 39708
    assert table.max(axis=0).tolist() == [len(values) - 1 for values in LABELS.values()]
