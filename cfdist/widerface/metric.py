"""The WIDER FACE average precision.

Pure numpy. The functions carry the protocol on the arrays of several pictures at once, because most
pictures are so small that a call for each would cost more than its work; `WiderFaceMetric` sums it
over all pictures. All that is summed is an integer, so the result depends neither on the order of
the pictures nor on how they were grouped or spread over merged metrics.

The protocol is that of the benchmark's `eval_tools`:

1. Scores are min-max normalised over all predictions of all pictures.
2. In each picture, by falling score, a prediction is held against the one box it overlaps most.
   Below the IoU threshold it is a false positive. On an ignored box it is not counted at all. On a
   box that counts, the first is a true positive and later ones are false positives.
3. At 1000 score thresholds, precision and recall are taken over all pictures.
4. AP is the area under the monotone envelope of precision over recall.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth

# What becomes of a prediction at one difficulty. A REPEAT is a false positive whose face was
# already found by a prediction with a higher score.
NOT_COUNTED, FALSE_POSITIVE, REPEAT, TRUE_POSITIVE = range(4)

THRESHOLD_COUNT = 1000

# Pairs of a prediction and a face that are looked at together, which bounds the memory in use. From
# 2**16 to 2**20 the time is the same within a tenth; below, calls of numpy outweigh their work.
PAIRS_AT_ONCE = 1 << 16


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
    return _iou(_corners(predictions)[:, :, None], _corners(boxes)[:, None, :])


def _iou(predictions: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """`box_iou` of corners (4, ...) and (4, ...) that broadcast."""
    px1, py1, px2, py2 = predictions
    gx1, gy1, gx2, gy2 = boxes
    # In place: with a new array for each step this takes a third longer.
    intersection = _overlap(px1, px2, gx1, gx2)
    intersection *= _overlap(py1, py2, gy1, gy2)
    union = (px2 - px1 + 1) * (py2 - py1 + 1) + (gx2 - gx1 + 1) * (gy2 - gy1 + 1)
    union -= intersection
    # Only boxes of size -1 or less, which overlap nothing, can have a union of 0 or less.
    np.divide(intersection, union, where=intersection > 0, out=intersection)
    return intersection


def _overlap(
    start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray
) -> np.ndarray:
    """Pixels that two ranges on one axis share, for all pairs; each includes its end."""
    overlap: np.ndarray = np.minimum(end, other_end)
    overlap -= np.maximum(start, other_start)
    overlap += 1
    np.maximum(overlap, 0, out=overlap)
    return overlap


def _corners(xywh: np.ndarray) -> np.ndarray:
    """Columns x1 y1 x2 y2 as (4, n), without the protocol's + 1."""
    corners = np.array(xywh.T, np.float64, order="C")
    corners[2:] += corners[:2]
    return corners


@dataclass(frozen=True, eq=False)
class Pictures:
    """Predictions and faces of several pictures, one picture after the other.

    Attributes:
        predictions: (p, 4) float64, x y w h in picture pixels.
        scores: (p,) float64.
        faces: (g, 4) float64, x y w h in picture pixels.
        counted: (d, g) bool: does the face count at that difficulty?
        prediction_counts: (n,) int64, how many of the predictions are each picture's.
        face_counts: (n,) int64, likewise.
    """

    predictions: np.ndarray
    scores: np.ndarray
    faces: np.ndarray
    counted: np.ndarray
    prediction_counts: np.ndarray
    face_counts: np.ndarray


def _meeting_pairs(
    predictions: np.ndarray,
    faces: np.ndarray,
    prediction_counts: np.ndarray,
    face_counts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a prediction and a face of one picture that overlap, and few that do not.

    Of boxes that overlap, each starts at most a pixel after the other's end, on both axes. Rounding
    keeps the order of numbers, so these comparisons lose no pair that has an IoU above 0.

    Args:
        predictions: (4, p) float64, corners.
        faces: (4, g) float64, corners.
        prediction_counts: (n,) int64, as in `Pictures`.
        face_counts: (n,) int64, likewise.

    Returns:
        (m,) int64 into the predictions, and (m,) int64 into the faces.
    """
    smaller = np.concatenate((predictions[:2], -(predictions[2:] + 1)))
    larger = np.concatenate((faces[2:] + 1, -faces[:2]))
    ends, face_ends = prediction_counts.cumsum(), face_counts.cumsum()
    starts, face_starts = ends - prediction_counts, face_ends - face_counts
    found = []
    for p1, p2, g1, g2 in zip(
        starts.tolist(), ends.tolist(), face_starts.tolist(), face_ends.tolist(), strict=True
    ):
        meets = smaller[:, None, p1:p2] <= larger[:, g1:g2, None]
        found.append(np.logical_and.reduce(meets, axis=0).ravel().nonzero()[0])
    picture = np.arange(len(found)).repeat([len(pairs) for pairs in found])
    face, prediction = np.divmod(np.concatenate(found), prediction_counts[picture])
    return prediction + starts[picture], face + face_starts[picture]


def find_hits(
    pictures: Pictures, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The predictions that hit a face, each with the face it overlaps most: the first on ties.

    A prediction never goes to its second best face: this is why no loop over predictions is needed.

    Args:
        pictures: one or more.
        iou_threshold: in (0, 1]; at least this overlap is a hit.

    Returns:
        (h,) int64 into the predictions, (h,) int64 into the faces and the IoU (h,) float64: face by
        face, those of one face by falling score, those of equal score in their order.
    """
    corners, face_corners = _corners(pictures.predictions), _corners(pictures.faces)
    prediction, face = _meeting_pairs(
        corners, face_corners, pictures.prediction_counts, pictures.face_counts
    )
    iou = np.empty(len(prediction))
    for start in range(0, len(iou), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        iou[part] = _iou(corners[:, prediction[part]], face_corners[:, face[part]])
    best = np.zeros(len(pictures.scores))
    np.maximum.at(best, prediction, iou)
    (hits,) = np.nonzero((iou >= iou_threshold) & (iou == best[prediction]))
    hits = hits[np.lexsort((face[hits], prediction[hits]))]
    hits = hits[_starts_run(prediction[hits])]  # one face for each prediction
    hits = hits[np.lexsort((-pictures.scores[prediction[hits]], face[hits]))]
    return prediction[hits], face[hits], iou[hits]


def _starts_run(values: np.ndarray) -> np.ndarray:
    """(n,) bool: does the value differ from the one before it?"""
    starts = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=starts[1:])
    return starts


def judge(face: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Outcome of the predictions that hit a face: the first of each face finds it.

    Args:
        face: (h,) int, the face that each hits, in the order of `find_hits`.
        counted: (d, g) bool: does the face count at that difficulty?

    Returns:
        (d, h) int8 of NOT_COUNTED, REPEAT, TRUE_POSITIVE.
    """
    if_counted = np.where(_starts_run(face), np.int8(TRUE_POSITIVE), np.int8(REPEAT))
    return np.where(counted[:, face], if_counted, np.int8(NOT_COUNTED))


def match(pictures: Pictures, iou_thresholds: Sequence[float]) -> np.ndarray:
    """Outcome of each prediction at each IoU threshold.

    Args:
        pictures: one or more, their predictions in any order.
        iou_thresholds: t of them, in (0, 1]; at least this overlap is a hit.

    Returns:
        (t, d, p) int8 of NOT_COUNTED, FALSE_POSITIVE, REPEAT, TRUE_POSITIVE. In a picture without
        faces nothing is counted: the reference evaluation leaves such pictures out.
    """
    no_hit = np.where(pictures.face_counts, np.int8(FALSE_POSITIVE), np.int8(NOT_COUNTED))
    shape = (len(iou_thresholds), len(pictures.counted), len(pictures.scores))
    outcomes = np.empty(shape, np.int8)
    outcomes[:] = no_hit.repeat(pictures.prediction_counts)
    prediction, face, iou = find_hits(pictures, min(iou_thresholds, default=1.0))
    for outcome, iou_threshold in zip(outcomes, iou_thresholds, strict=True):
        hits = iou >= iou_threshold
        outcome[:, prediction[hits]] = judge(face[hits], pictures.counted)
    return outcomes


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
    normalised: np.ndarray = (scores - low) / (high - low)
    return normalised


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

    scores: np.ndarray  # (p,) float64
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
            ValueError: as in `update_many`.
        """
        self.update_many([truth], [boxes_xywh], [scores])

    def update_many(
        self,
        truths: Sequence[PictureTruth],
        boxes_xywh: Sequence[np.ndarray],
        scores: Sequence[np.ndarray],
    ) -> None:
        """Add the predictions of several pictures, all or none of them.

        The result is that of one `update` after the other; for hundreds of pictures it takes a
        fifth of the time.

        Args:
            truths: each picture's faces.
            boxes_xywh: (p, 4) for each picture, x y w h in picture pixels, in any order.
            scores: (p,) for each picture; predictions of equal score keep their order.

        Raises:
            ValueError: the lists differ in length; or, with the picture's id, it was updated
                before, shapes do not fit, or a number is not finite.
        """
        self._refuse_twice(truth.id for truth in truths)
        rows = [
            (truth, *_checked(truth.id, *found))
            for truth, *found in zip(truths, boxes_xywh, scores, strict=True)
        ]
        judged: dict[str, _Judged] = {}
        # The + 1 lets the predictions of pictures without faces count as well.
        for group in _groups([len(found) * (len(truth.boxes) + 1) for truth, _, found in rows]):
            judged.update(self._judge(*zip(*rows[group], strict=True)))
        self._judged.update(judged)

    def _refuse_twice(self, ids: Iterable[str]) -> None:
        seen: set[str] = set()
        for id in ids:
            if id in self._judged or id in seen:
                raise ValueError(f"{id} was already updated")
            seen.add(id)

    def _judge(
        self,
        truths: Sequence[PictureTruth],
        boxes_xywh: Sequence[np.ndarray],
        scores: Sequence[np.ndarray],
    ) -> dict[str, _Judged]:
        """What is to keep of one group of pictures."""
        pictures = Pictures(
            np.concatenate(boxes_xywh),
            np.concatenate(scores),
            np.concatenate([truth.boxes for truth in truths]),
            np.concatenate([truth.counted for truth in truths], axis=1),
            np.array([len(found) for found in scores]),
            np.array([len(truth.boxes) for truth in truths]),
        )
        _refuse_not_finite(truths, pictures)
        outcomes = match(pictures, [protocol.iou_threshold for protocol in self.protocols])
        ends = pictures.prediction_counts.cumsum().tolist()
        return {
            # Copies, so that the arrays of the whole group do not stay for the sake of one picture.
            truth.id: _Judged(
                found.copy(),
                outcomes[:, :, end - len(found) : end].copy(),
                truth.counted.sum(axis=1),
            )
            for truth, found, end in zip(truths, scores, ends, strict=True)
        }

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


def _checked(
    picture_id: str, boxes_xywh: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(p, 4) and (p,) float64 of one picture's predictions."""
    boxes_xywh, scores = np.asarray(boxes_xywh, np.float64), np.asarray(scores, np.float64)
    if boxes_xywh.size == 0:
        boxes_xywh = boxes_xywh.reshape(0, 4)
    if scores.ndim != 1 or boxes_xywh.shape != (len(scores), 4):
        raise ValueError(f"{picture_id}: boxes of shape {boxes_xywh.shape}, scores {scores.shape}")
    return boxes_xywh, scores


def _refuse_not_finite(truths: Sequence[PictureTruth], pictures: Pictures) -> None:
    if np.isfinite(pictures.predictions).all() and np.isfinite(pictures.scores).all():
        return
    finite = np.isfinite(pictures.predictions).all(axis=1) & np.isfinite(pictures.scores)
    ends = pictures.prediction_counts.cumsum()
    truth = truths[np.searchsorted(ends, finite.argmin(), side="right")]
    raise ValueError(f"{truth.id}: a prediction is not finite")


def _groups(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut pictures into runs of about PAIRS_AT_ONCE pairs, given how many pairs each has."""
    start, pairs = 0, 0
    for end, size in enumerate(sizes, start=1):
        pairs += size
        if pairs >= PAIRS_AT_ONCE:
            yield slice(start, end)
            start, pairs = end, 0
    if start < len(sizes):
        yield slice(start, len(sizes))


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
