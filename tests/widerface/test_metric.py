"""The metric: published numbers, a plain loop over predictions, and its algebra."""

from __future__ import annotations

import doctest
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfdist.widerface import metric as metric_module
from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth, load_ground_truth
from cfdist.widerface.metric import (
    FALSE_POSITIVE,
    NOT_COUNTED,
    PROTOCOLS,
    THRESHOLDS,
    TRUE_POSITIVE,
    PredictionsAndFaces,
    WiderFaceMetric,
    average_precision,
    best_faces,
    box_iou,
    first_thresholds,
    match,
    normalise,
    recall_and_precision,
)
from cfdist.widerface.predictions import find_prediction_files, read_predictions_file

# By the reference evaluation.
GOLDEN_AP = {
    "predictions_synthetic": {
        "official": (0.3147687916939724, 0.409519260541037, 0.47408660152147586),
        "guide": (0.5393660203083324, 0.6134154318730162, 0.63965570673175),
    },
    "predictions_retinaface_mnet025": {
        "official": (0.9069584243856689, 0.8815790551288838, 0.7382863255381045),
        "guide": (0.9244388271031333, 0.9037263273683458, 0.7965864697070987),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictions_synthetic", "predictions_retinaface_mnet025"])
def test_golden_average_precision(shared: Path, tmp_path, name: str):
    with tarfile.open(shared / "golden" / f"{name}.tar.gz") as archive:
        # Python before 3.10.12 and 3.11.4 knows no filter.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **safe)
    truth = load_ground_truth(shared / "data/wider_val_mini/ground_truth")
    there = find_prediction_files(tmp_path, truth)
    files = there.found
    assert (len(files), there.missing, there.unknown, there.renamed) == (3226, [], [], [])
    metric = WiderFaceMetric()
    boxes, scores = zip(*map(read_predictions_file, files.values()), strict=True)
    metric.update_many([truth[picture_id] for picture_id in files], boxes, scores)
    for protocol, average_precisions in metric.compute().items():
        found = [average_precisions[difficulty] for difficulty in DIFFICULTIES]
        np.testing.assert_allclose(found, GOLDEN_AP[name][protocol], rtol=0, atol=1e-14)


# --- A plain loop, to hold the vectorised functions to ---------------------------------------


def loop_iou(a, b) -> float:
    ax2, ay2, bx2, by2 = a[0] + a[2], a[1] + a[3], b[0] + b[2], b[1] + b[3]
    width = min(ax2, bx2) - max(a[0], b[0]) + 1
    height = min(ay2, by2) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a = (ax2 - a[0] + 1) * (ay2 - a[1] + 1)
    area_b = (bx2 - b[0] + 1) * (by2 - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def loop_match(predictions, boxes, counted, iou_threshold: float) -> list[int]:
    """Outcomes at one difficulty, prediction by prediction."""
    found = set()
    outcomes = []
    for prediction in predictions:
        best, best_overlap = None, -1.0
        for index, box in enumerate(boxes):
            overlap = loop_iou(prediction, box)
            if overlap > best_overlap:
                best, best_overlap = index, overlap
        if best is None:
            outcomes.append(NOT_COUNTED)
        elif best_overlap < iou_threshold:
            outcomes.append(FALSE_POSITIVE)
        elif not counted[best]:
            outcomes.append(NOT_COUNTED)
        elif best in found:
            outcomes.append(FALSE_POSITIVE)
        else:
            found.add(best)
            outcomes.append(TRUE_POSITIVE)
    return outcomes


def loop_average_precision(pictures, difficulty: int, iou_threshold: float) -> float:
    """AP over `(truth, boxes, scores)`, threshold by threshold."""
    every = [score for _, _, scores in pictures for score in scores]
    low, high = min([1.0, *every]), max([0.0, *every])
    proposed, found, faces = np.zeros(1000), np.zeros(1000), 0
    for truth, boxes, scores in pictures:
        faces += int(truth.counted[difficulty].sum())
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        counted = truth.counted[difficulty]
        outcomes = loop_match([boxes[i] for i in order], truth.boxes, counted, iou_threshold)
        for i, outcome in zip(order, outcomes, strict=True):
            score = 1.0 if high == low else (scores[i] - low) / (high - low)
            for k in range(1000):
                if score >= 1 - (k + 1) / 1000:
                    proposed[k] += outcome != NOT_COUNTED
                    found[k] += outcome == TRUE_POSITIVE
    if faces == 0:
        return 0.0
    recall = [0.0, *(found / faces), 1.0]
    precision = [0.0, *(f / p if p else 0.0 for f, p in zip(found, proposed, strict=True)), 0.0]
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    return sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))


# Whole coordinates in a small field: ties, duplicates and touching boxes are then common.
whole = st.integers(-3, 8).map(float)
fractional = st.floats(-10, 10, allow_nan=False)
box = st.one_of(st.tuples(whole, whole, whole, whole), st.tuples(*[fractional] * 4))
score = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.999, 1.0]), st.floats(0, 1))


def box_array(boxes) -> np.ndarray:
    return np.array(boxes, np.float64).reshape(-1, 4)


@st.composite
def pictures(draw, picture_id: str = "e/p"):
    """`(truth, boxes, scores)` of one picture; some predictions copy a face."""
    faces = box_array(draw(st.lists(box, max_size=6)))
    counted = draw(hnp.arrays(bool, (3, len(faces))))
    candidates = st.one_of(box, st.sampled_from(faces.tolist())) if len(faces) else box
    boxes = box_array(draw(st.lists(candidates, max_size=10)))
    scores = draw(st.lists(score, min_size=len(boxes), max_size=len(boxes)))
    return PictureTruth(picture_id, faces, counted), boxes, np.array(scores, np.float64)


@st.composite
def picture_sets(draw, least: int = 0):
    count = draw(st.integers(least, 4))
    return [draw(pictures(f"e/{index}")) for index in range(count)]


@settings(deadline=None)
@given(pictures())
def test_iou_equals_the_loop(picture):
    truth, boxes, _ = picture
    expected = [[loop_iou(a, b) for b in truth.boxes] for a in boxes]
    found = box_iou(boxes, truth.boxes)
    assert found.shape == (len(boxes), len(truth.boxes))
    np.testing.assert_array_equal(found, np.reshape(expected, found.shape))
    assert ((found >= 0) & (found <= 1)).all()


def together(picture_set) -> PredictionsAndFaces:
    return PredictionsAndFaces.of(*zip(*picture_set, strict=True))


def outcomes_of(pictures: PredictionsAndFaces, iou_thresholds):
    return match(pictures, best_faces(pictures), iou_thresholds)


def loop_match_unsorted(truth, boxes, scores, difficulty: int, iou_threshold: float) -> list[int]:
    """Outcomes at one difficulty in the order of the predictions."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    counted = truth.counted[difficulty]
    outcomes = loop_match([boxes[i] for i in order], truth.boxes, counted, iou_threshold)
    return [outcome for _, outcome in sorted(zip(order, outcomes, strict=True))]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    picture_sets(least=1), st.lists(st.sampled_from([0.1, 0.4, 0.5, 1.0]), min_size=1, max_size=3)
)
def test_match_equals_the_loop(picture_set, iou_thresholds):
    outcomes = outcomes_of(together(picture_set), iou_thresholds)
    assert outcomes.dtype == np.int8
    assert outcomes.shape[:2] == (len(iou_thresholds), 3)
    for rows, iou_threshold in zip(outcomes, iou_thresholds, strict=True):
        for difficulty, row in enumerate(rows):
            expected = [
                outcome
                for picture in picture_set
                for outcome in loop_match_unsorted(*picture, difficulty, iou_threshold)
            ]
            assert row.tolist() == expected


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(picture_sets())
def test_average_precision_equals_the_loop(picture_set):
    found = evaluate(picture_set).compute()
    for protocol in PROTOCOLS.values():
        for index, difficulty in enumerate(DIFFICULTIES):
            expected = loop_average_precision(picture_set, index, protocol.iou_threshold)
            assert found[protocol.name][difficulty] == pytest.approx(expected, abs=1e-12)


def evaluate(picture_set) -> WiderFaceMetric:
    metric = WiderFaceMetric()
    for truth, boxes, scores in picture_set:
        metric.update(truth, boxes, scores)
    return metric


def evaluate_together(picture_set, pairs_at_once: int) -> WiderFaceMetric:
    metric = WiderFaceMetric()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_module, "PAIRS_AT_ONCE", pairs_at_once)
        metric.update_many(*(zip(*picture_set, strict=True) if picture_set else ([], [], [])))
    return metric


@pytest.mark.slow
@settings(deadline=None)
@given(picture_sets(), st.sampled_from([1, 7, 30, 1 << 16]))
def test_pictures_together_equal_one_by_one(picture_set, pairs_at_once):
    metric = evaluate_together(picture_set, pairs_at_once)
    assert len(metric) == len(picture_set)
    assert metric.compute() == evaluate(picture_set).compute()


@pytest.mark.slow
@settings(deadline=None)
@given(picture_sets(), st.randoms(use_true_random=False))
def test_order_and_merging_do_not_matter(picture_set, random):
    expected = evaluate(picture_set).compute()
    shuffled = random.sample(picture_set, len(picture_set))
    cut = random.randint(0, len(shuffled))
    merged = evaluate(shuffled[:cut])
    merged.merge(pickle.loads(pickle.dumps(evaluate(shuffled[cut:]))))
    assert len(merged) == len(picture_set)
    assert merged.compute() == expected


@settings(deadline=None)
@given(
    st.lists(st.tuples(score, st.sampled_from([NOT_COUNTED, FALSE_POSITIVE, TRUE_POSITIVE]))),
    st.integers(0, 3),
)
def test_recall_and_precision_are_those_of_a_plain_count(predictions, missed):
    scores = np.array([one for one, _ in predictions], np.float64)
    outcomes = np.array([one for _, one in predictions], np.int8)
    faces = np.count_nonzero(outcomes == TRUE_POSITIVE) + missed
    recall, precision = recall_and_precision(first_thresholds(scores), outcomes, faces)
    for k, threshold in enumerate(THRESHOLDS):
        kept = outcomes[scores >= threshold]
        found = np.count_nonzero(kept == TRUE_POSITIVE)
        assert recall[k] == found / max(faces, 1)
        assert precision[k] == found / max(np.count_nonzero(kept != NOT_COUNTED), 1)


# --- Cases with a known answer ----------------------------------------------------------------

TWO_FACES = np.array([[0.0, 0, 9, 9], [100, 0, 9, 9]])
ALL_COUNT = np.ones((3, 2), bool)


def truth_of(boxes=TWO_FACES, counted=ALL_COUNT, picture_id="e/p") -> PictureTruth:
    return PictureTruth(picture_id, np.asarray(boxes, np.float64), np.asarray(counted))


def one_picture(predictions, faces=TWO_FACES, counted=ALL_COUNT, scores=None):
    """One picture; without scores, the predictions come by falling score."""
    scores = np.arange(len(predictions), 0.0, -1) if scores is None else scores
    return together([(truth_of(faces, counted), predictions, scores)])


def test_iou_counts_pixels():
    # 10 x 10 pixels each, 5 columns shared.
    assert box_iou(np.array([[5.0, 0, 9, 9]]), TWO_FACES).tolist() == [[50 / 150, 0.0]]
    # One column shared, though x2 == x1.
    assert box_iou(np.array([[9.0, 0, 9, 9]]), TWO_FACES)[0, 0] == 10 / 190


def test_first_box_wins_a_tie():
    same = np.array([[0.0, 0, 9, 9], [0, 0, 9, 9]])
    face, iou = best_faces(one_picture(same, same))
    assert face.tolist() == [0, 0]
    assert iou.tolist() == [1.0, 1.0]


def test_of_equal_scores_the_first_hits():
    picture = one_picture(TWO_FACES[[1, 0, 0, 0]], scores=np.array([0.9, 0.2, 0.8, 0.8]))
    hit, late = TRUE_POSITIVE, FALSE_POSITIVE
    assert outcomes_of(picture, [0.5])[0, 0].tolist() == [hit, late, hit, late]


def test_best_faces_count_within_their_picture():
    far = np.array([[500.0, 500, 9, 9]])
    picture_set = [
        (truth_of(), TWO_FACES[[1]], np.array([0.9])),
        (truth_of(), np.concatenate([far, TWO_FACES[[1, 0]]]), np.array([0.9, 0.8, 0.7])),
    ]
    face, iou = best_faces(together(picture_set))
    assert face.tolist() == [1, -1, 1, 0]
    assert iou.tolist() == [1.0, 0.0, 1.0, 1.0]


def test_overlap_equal_to_the_threshold_hits():
    # 10 x 5 pixels inside 10 x 10.
    half = np.array([[0.0, 0, 9, 4]])
    hit, miss = outcomes_of(one_picture(half), [0.5, 0.51]).tolist()
    assert hit == [[TRUE_POSITIVE]] * 3
    assert miss == [[FALSE_POSITIVE]] * 3


def test_outcomes_by_difficulty():
    predictions = np.array([[0.0, 0, 9, 9], [0, 0, 9, 9], [100, 0, 9, 9], [50, 50, 9, 9]])
    counted = np.array([[True, False], [True, True], [False, True]])
    assert outcomes_of(one_picture(predictions, counted=counted), [0.5])[0].tolist() == [
        [TRUE_POSITIVE, FALSE_POSITIVE, NOT_COUNTED, FALSE_POSITIVE],
        [TRUE_POSITIVE, FALSE_POSITIVE, TRUE_POSITIVE, FALSE_POSITIVE],
        [NOT_COUNTED, NOT_COUNTED, TRUE_POSITIVE, FALSE_POSITIVE],
    ]


def test_no_second_best_box():
    faces = np.array([[0.0, 0, 9, 9], [1, 0, 9, 9]])
    predictions = np.array([[0.0, 0, 9, 9], [0, 0, 9, 9]])
    picture = one_picture(predictions, faces)
    assert outcomes_of(picture, [0.5])[0, 0].tolist() == [TRUE_POSITIVE, FALSE_POSITIVE]


def test_perfect_predictions():
    metric = WiderFaceMetric()
    metric.update(truth_of(), TWO_FACES, np.array([0.9, 0.8]))
    assert metric.compute() == {name: dict.fromkeys(DIFFICULTIES, 1.0) for name in PROTOCOLS}


def test_unsorted_predictions_are_sorted():
    boxes = np.array([[0.0, 0, 9, 9], [300, 0, 9, 9], [100, 0, 9, 9]])
    scores = np.array([0.1, 0.9, 0.5])
    order = [1, 2, 0]
    assert (
        evaluate([(truth_of(), boxes, scores)]).compute()
        == evaluate([(truth_of(), boxes[order], scores[order])]).compute()
    )


def test_faces_of_a_picture_without_predictions_are_missed():
    metric = WiderFaceMetric()
    metric.update(truth_of(), TWO_FACES, np.array([0.9, 0.8]))
    metric.update(truth_of(picture_id="e/q"), np.empty((0, 4)), np.empty(0))
    assert metric.compute()["official"]["hard"] == 0.5


def test_predictions_in_a_picture_without_boxes_count_only_for_the_score_range():
    nobody = truth_of(np.empty((0, 4)), np.empty((3, 0), bool), "e/q")
    metric = WiderFaceMetric()
    predictions = np.concatenate((TWO_FACES, [[200.0, 0, 9, 9]]))
    metric.update(truth_of(), predictions, np.array([0.9, 0.5008, 0.5]))
    assert metric.compute()["official"]["easy"] == 1.0
    metric.update(nobody, TWO_FACES, np.array([1.0, 0.0]))
    # Over the range from 0 to 1, no threshold lies between the last face and the false positive.
    assert metric.compute()["official"]["easy"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_no_face_counts_at_a_difficulty():
    metric = WiderFaceMetric()
    metric.update(truth_of(counted=[[0, 0], [1, 0], [1, 1]]), TWO_FACES, np.array([0.9, 0.8]))
    assert metric.compute()["guide"] == {"easy": 0.0, "medium": 1.0, "hard": 1.0}


def test_nothing_updated():
    expected = {name: dict.fromkeys(DIFFICULTIES, 0.0) for name in PROTOCOLS}
    assert WiderFaceMetric().compute() == expected


def test_normalise():
    assert normalise(np.array([0.75, 0.25, 0.5])).tolist() == [1.0, 0.0, 0.5]
    # The range starts at [1, 0], so it spans at least from the least score to 0 or from 1 on.
    assert normalise(np.array([-1.0, -2.0])).tolist() == [0.5, 0.0]
    assert normalise(np.array([2.0, 3.0])).tolist() == [0.5, 1.0]
    assert normalise(np.array([0.3, 0.3])).tolist() == [1.0, 1.0]
    assert normalise(np.empty(0)).tolist() == []


def test_thresholds():
    assert THRESHOLDS.tolist() == [1 - (k + 1) / 1000 for k in range(1000)]
    assert THRESHOLDS[-1] == 0
    # t_499 = 0.5 and t_749 = 0.25.
    assert first_thresholds(np.array([1, 0.5, 0.25, 0])).tolist() == [0, 499, 749, 999]


def test_titles():
    assert [one.title for one in PROTOCOLS.values()] == ["official (IoU 0.5)", "guide (IoU 0.4)"]


def test_the_examples_of_the_docstrings():
    result = doctest.testmod(metric_module)
    assert result.attempted > 0
    assert result.failed == 0


def test_average_precision_takes_the_envelope():
    # By hand: 0.5 * max(0.5, 0.75) + 0.25 * 0.75 + 0.25 * 0.
    recall, precision = np.array([0.5, 0.75]), np.array([0.5, 0.75])
    assert average_precision(recall, precision) == pytest.approx(0.5625)


def test_picture_updated_twice():
    metric = WiderFaceMetric()
    metric.update(truth_of(), TWO_FACES, np.array([0.9, 0.8]))
    with pytest.raises(ValueError, match="e/p was already updated"):
        metric.update(truth_of(), TWO_FACES, np.array([0.9, 0.8]))


def test_a_picture_twice_in_one_call():
    truths = [truth_of(), truth_of(picture_id="e/q"), truth_of()]
    boxes, scores = [TWO_FACES] * 3, [np.array([0.1, 0.2]), np.array([0.3, 0.4]), np.ones(2)]
    metric = WiderFaceMetric()
    with pytest.raises(ValueError, match="e/p was already updated"):
        metric.update_many(truths, boxes, scores)
    assert len(metric) == 0


def test_one_bad_picture_keeps_all_out(monkeypatch):
    truths = [truth_of(picture_id=f"e/{i}") for i in range(4)]
    scores = [np.array([0.9, 0.8]), np.empty(0), np.array([0.9, np.inf]), np.array([0.9, 0.8])]
    boxes = [TWO_FACES[: len(found)] for found in scores]
    metric = WiderFaceMetric()
    for pairs_at_once in (1, 1 << 16):
        monkeypatch.setattr(metric_module, "PAIRS_AT_ONCE", pairs_at_once)
        with pytest.raises(ValueError, match="e/2: a prediction is not finite"):
            metric.update_many(truths, boxes, scores)
    assert len(metric) == 0


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        WiderFaceMetric().update_many([truth_of()], [TWO_FACES], [])


def test_merge_refuses_a_picture_in_both_and_keeps_its_own():
    one, other = (evaluate([(truth_of(), TWO_FACES, np.array([0.9, 0.8]))]) for _ in range(2))
    before = one.compute()
    with pytest.raises(ValueError, match="in both metrics, such as e/p"):
        one.merge(other)
    assert one.compute() == before


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [
        (TWO_FACES, [0.9]),
        (TWO_FACES, [[0.9], [0.8]]),
        (TWO_FACES.T, [0.9, 0.8]),
        (TWO_FACES[:, :3], [0.9, 0.8]),
        (TWO_FACES, []),
        (TWO_FACES, [0.9, np.nan]),
        (np.where(TWO_FACES > 50, np.inf, TWO_FACES), [0.9, 0.8]),
    ],
)
def test_update_refuses_bad_arrays(boxes, scores):
    metric = WiderFaceMetric()
    with pytest.raises(ValueError, match="e/p"):
        metric.update(truth_of(), boxes, np.array(scores))
    assert len(metric) == 0


def test_reach_of_predictions():
    faces = np.array([[10.0, 10, 20, 20], [60, 10, 20, 20], [100, 10, 20, 20]])
    counted = np.array([[0, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    metric = WiderFaceMetric()
    assert metric.reach().scores is None
    assert metric.reach().faces == {"easy": 0, "medium": 0, "hard": 0}
    boxes = np.array([[10.0, 10, 20, 20], [10, 10, 20, 20], [5, 5, -3, 4], [60, 18.5, 20, 20]])
    metric.update(PictureTruth("e/a", faces, counted), boxes, np.array([0.9, 0.8, 0.2, 0.3]))
    other = WiderFaceMetric()
    other.update(PictureTruth("e/b", faces, counted), np.array([[1.0, 1, 2, -2]]), np.array([7.0]))
    metric.merge(other)
    reach = metric.reach()
    # IoU 0.42: the second face is hit by the lenient protocol only.
    assert reach.recall["official"] == {"easy": 0, "medium": 1 / 4, "hard": 1 / 6}
    assert reach.recall["guide"] == {"easy": 0, "medium": 2 / 4, "hard": 2 / 6}
    assert reach.faces == {"easy": 0, "medium": 4, "hard": 6}
    assert (reach.predictions, reach.scores, reach.backward) == (5, (0.2, 9.0 - 2.0), 2)
