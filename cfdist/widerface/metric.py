"""The WIDER FACE average precision.

Pure numpy. The functions carry the protocol on the arrays of one picture; `WiderFaceMetric` sums
it over pictures. All that is summed is an integer, so the result depends neither on the order of
the pictures nor on how they were spread over merged metrics.

The protocol is that of the benchmark's `eval_tools`:

1. Scores are min-max normalised over all predictions of all pictures.
2. In each picture, by falling score, a prediction is held against the one box it overlaps most.
   Below the IoU threshold it is a false positive. On an ignored box it is not counted at all. On a
   box that counts, the first is a true positive and later ones are false positives.
3. At 1000 score thresholds, precision and recall are taken over all pictures.
4. AP is the area under the monotone envelope of precision over recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth

# What becomes of a prediction at one difficulty. A REPEAT is a false positive whose face was
# already found by a prediction with a higher score.
NOT_COUNTED, FALSE_POSITIVE, REPEAT, TRUE_POSITIVE = range(4)

THRESHOLD_COUNT = 1000


@dataclass(frozen=True)
class Protocol:
    """One way to measure: predictions with an IoU of at least `iou_threshold` hit their box."""

    name: str
    iou_threshold: float

    def __post_init__(self) -> None:
        """Refuse a threshold that everything or nothing would pass."""
        if not 0 < self.iou_threshold <= 1:
            raise ValueError(
                f"IoU threshold of protocol {self.name} is {self.iou_threshold}, not in (0, 1]"
            )


OFFICIAL = Protocol("official", 0.5)
"""The benchmark's own threshold."""
GUIDE = Protocol("guide", 0.4)
"""The threshold of the CenterFace evaluation script, behind the NPU guide's published figures."""
PROTOCOLS = (OFFICIAL, GUIDE)


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall at each score threshold, from strict to lenient.

    Attributes:
        thresholds: (1000,) float64, of the normalised score.
        precision: (1000,) float64; 0 where nothing is proposed.
        recall: (1000,) float64, never falling; 0 where no face counts.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def score_thresholds() -> np.ndarray:
    """The protocol's thresholds of the normalised score: t_k = 1 - (k + 1) / 1000, k = 0..999."""
    return 1 - np.arange(1, THRESHOLD_COUNT + 1) / THRESHOLD_COUNT


def box_iou(predictions: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union, counting pixels: x2 = x + w, and x1 to x2 is x2 - x1 + 1 wide.

    Args:
        predictions: (p, 4) float64, x y w h in picture pixels. Sizes of -1 or less overlap nothing.
        boxes: (g, 4) float64, likewise.

    Returns:
        (p, g) float64 in [0, 1].
    """
    px1, py1, px2, py2 = _corners(predictions)[:, :, None]
    gx1, gy1, gx2, gy2 = _corners(boxes)[:, None, :]
    # In place: with a new (p, g) array for each step this takes a third longer.
    intersection = _overlap(px1, px2, gx1, gx2)
    intersection *= _overlap(py1, py2, gy1, gy2)
    union = (px2 - px1 + 1) * (py2 - py1 + 1) + (gx2 - gx1 + 1) * (gy2 - gy1 + 1)
    union -= intersection
    # Only boxes of size -1 or less, which overlap nothing, can have a union of 0 or less.
    return np.divide(intersection, union, where=intersection > 0, out=intersection)


def _overlap(
    start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray
) -> np.ndarray:
    """Pixels that two ranges on one axis share, for all pairs; each includes its end."""
    overlap = np.minimum(end, other_end)
    overlap -= np.maximum(start, other_start)
    overlap += 1
    return np.maximum(overlap, 0, out=overlap)


def _corners(xywh: np.ndarray) -> np.ndarray:
    """Columns x1 y1 x2 y2 as (4, n), without the protocol's + 1."""
    corners = np.array(xywh.T, np.float64, order="C")
    corners[2:] += corners[:2]
    return corners


def best_box(predictions: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each prediction, the box it overlaps most: the first one on ties.

    Args:
        predictions: (p, 4) float64, x y w h in picture pixels.
        boxes: (g, 4) float64, likewise, g > 0.

    Returns:
        index (p,) int64 into `boxes`, and the IoU (p,) float64 with it.
    """
    iou = box_iou(predictions, boxes)
    index = iou.argmax(axis=1)
    return index, iou[np.arange(len(iou)), index]


def judge(
    index: np.ndarray, iou: np.ndarray, counted: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Outcome of each prediction, given its best box.

    A prediction never goes to its second best box: this is why one pass without a loop will do.

    Args:
        index: (p,) int, the best box of each prediction, predictions by falling score.
        iou: (p,) float64, the overlap with it.
        counted: (d, g) bool: does the box count at that difficulty?
        iou_threshold: at least this overlap is a hit.

    Returns:
        (d, p) int8 of NOT_COUNTED, FALSE_POSITIVE, REPEAT, TRUE_POSITIVE.
    """
    outcome = np.full((len(counted), len(index)), FALSE_POSITIVE, np.int8)
    (hits,) = np.nonzero(iou >= iou_threshold)
    hit_boxes, first = np.unique(index[hits], return_index=True)
    outcome[:, hits] = np.where(counted[:, index[hits]], REPEAT, NOT_COUNTED)
    outcome[:, hits[first]] = np.where(counted[:, hit_boxes], TRUE_POSITIVE, NOT_COUNTED)
    return outcome


def match(
    predictions: np.ndarray, boxes: np.ndarray, counted: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Outcome of each prediction of one picture.

    Args:
        predictions: (p, 4) float64, x y w h in picture pixels, by falling score.
        boxes: (g, 4) float64, likewise, the picture's faces.
        counted: (d, g) bool: does the face count at that difficulty?
        iou_threshold: at least this overlap is a hit.

    Returns:
        (d, p) int8 of NOT_COUNTED, FALSE_POSITIVE, REPEAT, TRUE_POSITIVE. In a picture without
        boxes nothing is counted: the reference evaluation leaves such pictures out.
    """
    if len(boxes) == 0:
        return np.full((len(counted), len(predictions)), NOT_COUNTED, np.int8)
    return judge(*best_box(predictions, boxes), counted, iou_threshold)


def normalise(scores: np.ndarray) -> np.ndarray:
    """Min-max normalised scores, as the reference does it: min starts at 1, max at 0.

    So scores within [0, 1] span [0, 1] afterwards. Where all are equal the reference divides by
    zero; here they all become 1, that is, every prediction is as sure as the surest.

    Args:
        scores: (n,) float64 of the whole set.
    """
    low, high = scores.min(initial=1.0), scores.max(initial=0.0)
    if low == high:
        return np.ones_like(scores)
    return (scores - low) / (high - low)


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the monotone precision envelope (Pascal VOC 2010), with sentinels at both ends.

    Args:
        recall: (n,) float64, never falling.
        precision: (n,) float64.
    """
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([0.0], precision, [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    (steps,) = np.nonzero(np.diff(recall))
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))


@dataclass(frozen=True, eq=False)
class _Judged:
    """What is kept of one picture: 8 + 3 bytes a protocol for each prediction."""

    scores: np.ndarray  # (p,) float64, falling
    outcomes: np.ndarray  # (protocols, 3, p) int8
    faces: np.ndarray  # (3,) int64


class WiderFaceMetric:
    """Average precision over pictures, for one or several protocols at once.

    Only pictures that were updated count: update a picture in which nothing was found with empty
    arrays, or its faces are left out of the recall. Instances can be pickled and merged.

    Args:
        protocols: with distinct names; they share the IoU of each picture.
    """

    def __init__(self, protocols: Sequence[Protocol] = PROTOCOLS) -> None:
        self.protocols = tuple(protocols)
        if len({protocol.name for protocol in self.protocols}) != len(self.protocols):
            raise ValueError(f"two protocols of one name in {self.protocols}")
        self._judged: dict[str, _Judged] = {}

    def __len__(self) -> int:
        """How many pictures were updated."""
        return len(self._judged)

    def __contains__(self, picture_id: object) -> bool:
        """Was this picture updated?"""
        return picture_id in self._judged

    def update(self, truth: PictureTruth, boxes_xywh: np.ndarray, scores: np.ndarray) -> None:
        """Add the predictions of one picture.

        Args:
            truth: the picture's faces.
            boxes_xywh: (p, 4), x y w h in picture pixels, in any order.
            scores: (p,); predictions of equal score keep their order.

        Raises:
            ValueError: the picture was updated before, shapes do not fit, or a number is not
                finite.
        """
        if truth.id in self._judged:
            raise ValueError(f"{truth.id} was already updated")
        boxes_xywh = np.asarray(boxes_xywh, np.float64).reshape(-1, 4)
        scores = np.asarray(scores, np.float64)
        if scores.shape != (len(boxes_xywh),):
            raise ValueError(f"{truth.id}: {len(boxes_xywh)} boxes, scores {scores.shape}")
        if not (np.isfinite(boxes_xywh).all() and np.isfinite(scores).all()):
            raise ValueError(f"{truth.id}: a prediction is not finite")
        order = np.argsort(-scores, kind="stable")
        self._judged[truth.id] = _Judged(
            scores[order],
            self._outcomes(truth, boxes_xywh[order]),
            np.count_nonzero(truth.counted, axis=1),
        )

    def _outcomes(self, truth: PictureTruth, predictions: np.ndarray) -> np.ndarray:
        """`match` under each protocol: (protocols, 3, p) int8."""
        shape = (len(self.protocols), len(DIFFICULTIES), len(predictions))
        outcomes = np.full(shape, NOT_COUNTED, np.int8)
        if len(truth.boxes) and len(predictions):
            index, iou = best_box(predictions, truth.boxes)
            for row, protocol in zip(outcomes, self.protocols, strict=True):
                row[:] = judge(index, iou, truth.counted, protocol.iou_threshold)
        return outcomes

    def merge(self, other: WiderFaceMetric) -> None:
        """Take over the pictures of `other`.

        Raises:
            ValueError: the protocols differ, or a picture is in both.
        """
        if other.protocols != self.protocols:
            raise ValueError(f"cannot merge {other.protocols} into {self.protocols}")
        twice = self._judged.keys() & other._judged.keys()
        if twice:
            raise ValueError(f"{len(twice)} pictures are in both metrics, such as {min(twice)}")
        self._judged.update(other._judged)

    def compute(self) -> dict[str, dict[str, float]]:
        """AP in [0, 1]: protocol name -> difficulty -> AP. 0 where no face counts."""
        return {
            protocol: {
                difficulty: average_precision(curve.recall, curve.precision)
                for difficulty, curve in curves.items()
            }
            for protocol, curves in self.curves().items()
        }

    def curves(self) -> dict[str, dict[str, Curve]]:
        """Precision and recall: protocol name -> difficulty -> `Curve`."""
        thresholds = score_thresholds()
        judged = self._judged.values()
        scores = np.concatenate([np.empty(0), *(picture.scores for picture in judged)])
        empty = np.empty((len(self.protocols), len(DIFFICULTIES), 0), np.int8)
        outcomes = np.concatenate([empty, *(picture.outcomes for picture in judged)], axis=2)
        faces = sum((picture.faces for picture in judged), np.zeros(len(DIFFICULTIES), np.int64))
        step = _first_threshold(normalise(scores), thresholds)
        return {
            protocol.name: {
                difficulty: _curve(step, outcome, face_count, thresholds)
                for difficulty, outcome, face_count in zip(DIFFICULTIES, rows, faces, strict=True)
            }
            for protocol, rows in zip(self.protocols, outcomes, strict=True)
        }


def _first_threshold(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """For each normalised score, the first k with score >= t_k; the last threshold is 0."""
    return len(thresholds) - np.searchsorted(thresholds[::-1], scores, side="right")


def _curve(step: np.ndarray, outcome: np.ndarray, face_count: int, thresholds: np.ndarray) -> Curve:
    """Curve of one difficulty.

    Args:
        step: (n,) int, from which threshold on a prediction is in.
        outcome: (n,) int8.
        face_count: faces that count.
        thresholds: (1000,) float64, falling.
    """
    kinds = TRUE_POSITIVE + 1
    table = np.bincount(step * kinds + outcome, minlength=len(thresholds) * kinds)
    at_least = table.reshape(len(thresholds), kinds).cumsum(axis=0)
    found = at_least[:, TRUE_POSITIVE]
    proposed = at_least.sum(axis=1) - at_least[:, NOT_COUNTED]
    return Curve(
        thresholds,
        precision=found / np.maximum(proposed, 1),
        recall=found / max(int(face_count), 1),
    )
