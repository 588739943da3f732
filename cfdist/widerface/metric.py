"""The WIDER FACE average precision.

Pure numpy. The functions work on the arrays of several pictures at once, because most pictures are
so small that a call for each would cost more than its work. `WiderFaceMetric` sums over all
pictures. All sums are of integers, so the result depends neither on the order of the pictures nor
on how they were grouped or spread over merged metrics.

The protocol is that of the benchmark's `eval_tools`:

1. Scores are min-max normalised over all predictions of all pictures.
2. In each picture, by falling score, a prediction is compared with the one box that it overlaps
   most. Below the IoU threshold it is a false positive. On an ignored box it is not counted at all.
   On a box that counts, the first is a true positive and later ones are false positives.
3. At 1000 score thresholds, precision and recall are computed over all pictures.
4. AP is the area under the monotone envelope of precision over recall.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Outcomes = NDArray[np.int8]

# What a prediction is at one difficulty.
NOT_COUNTED, FALSE_POSITIVE, TRUE_POSITIVE = range(3)

# Of the normalised score: t_k = 1 - (k + 1) / 1000, from strict to lenient, the last one 0.
THRESHOLDS = 1 - np.arange(1, 1001) / 1000

# Pairs of a prediction and a face in one group of pictures, which bounds the memory in use. From
# 2**16 to 2**20 the time is the same within a tenth; below, calls of numpy outweigh their work.
PAIRS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Protocol:
    """One way to measure: a prediction with an IoU of at least `iou_threshold` hits its box."""

    name: str
    iou_threshold: float

    @property
    def title(self) -> str:
        """The protocol as tables call it: "official (IoU 0.5)"."""
        return f"{self.name} (IoU {self.iou_threshold})"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("official", 0.5),  # the benchmark's own threshold
        # The CenterFace evaluation script's, used for the figures that the NPU guide publishes.
        Protocol("guide", 0.4),
    )
}


def title_of(name: str) -> str:
    """What a row of APs is called: a protocol's title, or its name with quirks as it is."""
    return PROTOCOLS[name].title if name in PROTOCOLS else name


def box_iou(predictions: Floats, boxes: Floats) -> Floats:
    """Intersection over union, counting pixels: x2 = x + w, and x1 to x2 is x2 - x1 + 1 wide.

    Args:
        predictions: (p, 4) float64, x y w h in picture pixels. Sizes of -1 or less overlap nothing.
        boxes: (g, 4) float64, likewise.

    Returns:
        (p, g) float64 in [0, 1].
    """
    return _iou(_corners(predictions)[:, :, None], _corners(boxes)[:, None, :])


def _iou(predictions: Floats, boxes: Floats) -> Floats:
    """`box_iou` of corners (4, ...) and (4, ...) that broadcast."""
    # In place: with a new array for each step this takes a third longer.
    shared = np.minimum(predictions[2:], boxes[2:])
    shared -= np.maximum(predictions[:2], boxes[:2])
    shared += 1
    width, height = np.maximum(shared, 0, out=shared)
    intersection: Floats = np.multiply(width, height, out=width)
    union = _area(predictions) + _area(boxes)
    union -= intersection
    # Only boxes of size -1 or less, which overlap nothing, can have a union of 0 or less.
    np.divide(intersection, union, where=intersection > 0, out=intersection)
    return intersection


def _area(corners: Floats) -> Floats:
    x1, y1, x2, y2 = corners
    area: Floats = (x2 - x1 + 1) * (y2 - y1 + 1)
    return area


def _corners(xywh: Floats) -> Floats:
    """Columns x1 y1 x2 y2 as (4, n), without the protocol's + 1."""
    corners = np.array(xywh.T, np.float64, order="C")
    corners[2:] += corners[:2]
    return corners


@dataclass(frozen=True, eq=False)
class PredictionsAndFaces:
    """The predictions and faces of several pictures, one picture after the other.

    Attributes:
        predictions: (p, 4) float64, x y w h in picture pixels.
        scores: (p,) float64.
        faces: (g, 4) float64, x y w h in picture pixels.
        counted: (d, g) bool: whether the face counts at that difficulty.
        prediction_counts: (n,) int64, how many predictions each picture has.
        face_counts: (n,) int64, how many faces each picture has.
    """

    predictions: Floats
    scores: Floats
    faces: Floats
    counted: NDArray[np.bool_]
    prediction_counts: Ints
    face_counts: Ints

    @classmethod
    def of(
        cls, truths: Sequence[PictureTruth], boxes_xywh: Sequence[Floats], scores: Sequence[Floats]
    ) -> PredictionsAndFaces:
        """Join one or more pictures; for the arguments see `WiderFaceMetric.update_many`."""
        return cls(
            np.concatenate(boxes_xywh),
            np.concatenate(scores),
            np.concatenate([truth.boxes for truth in truths]),
            np.concatenate([truth.counted for truth in truths], axis=1),
            np.array([len(found) for found in scores]),
            np.array([len(truth.boxes) for truth in truths]),
        )


def _meeting_pairs(
    pictures: PredictionsAndFaces, corners: Floats, face_corners: Floats
) -> tuple[Ints, Ints]:
    """All pairs of a prediction and a face of one picture that overlap, and few that do not.

    Of boxes that overlap, each starts at most a pixel after the other's end, on both axes. Rounding
    keeps the order of numbers, so these comparisons lose no pair that has an IoU above 0.

    Args:
        pictures: one or more.
        corners: (4, p) float64, of the predictions.
        face_corners: (4, g) float64, of the faces.

    Returns:
        (m,) int64 into the predictions, and (m,) int64 into the faces; face by face.
    """
    smaller = np.concatenate((corners[:2], -(corners[2:] + 1)))
    larger = np.concatenate((face_corners[2:] + 1, -face_corners[:2]))
    ends, face_ends = pictures.prediction_counts.cumsum(), pictures.face_counts.cumsum()
    starts, face_starts = ends - pictures.prediction_counts, face_ends - pictures.face_counts
    found = []
    for p1, p2, g1, g2 in np.stack((starts, ends, face_starts, face_ends), axis=1).tolist():
        meets = smaller[:, None, p1:p2] <= larger[:, g1:g2, None]
        found.append(np.logical_and.reduce(meets, axis=0).ravel().nonzero()[0])
    picture = np.arange(len(found)).repeat([len(pairs) for pairs in found])
    face, prediction = np.divmod(np.concatenate(found), pictures.prediction_counts[picture])
    return prediction + starts[picture], face + face_starts[picture]


class BestFaces(NamedTuple):
    """Of each prediction the face of its picture that it overlaps most, the first on ties.

    Attributes:
        face: (p,) int32 into the picture's own faces, -1 where none is overlapped.
        iou: (p,) float64, 0 where none is overlapped.
    """

    face: NDArray[np.int32]
    iou: Floats


def best_faces(pictures: PredictionsAndFaces) -> BestFaces:
    """The face that each prediction may hit: it never goes to its second best one."""
    corners, face_corners = _corners(pictures.predictions), _corners(pictures.faces)
    prediction, face = _meeting_pairs(pictures, corners, face_corners)
    iou = _iou(corners[:, prediction], face_corners[:, face])
    best = np.zeros(len(pictures.scores))
    np.maximum.at(best, prediction, iou)
    (chosen,) = np.nonzero((iou > 0) & (iou == best[prediction]))
    chosen = chosen[::-1]  # the last value that is assigned stays: that of the first face
    first_face = (pictures.face_counts.cumsum() - pictures.face_counts).repeat(
        pictures.prediction_counts
    )
    found = np.full(len(best), -1, np.int32)
    found[prediction[chosen]] = face[chosen] - first_face[prediction[chosen]]
    return BestFaces(found, best)


def match(
    pictures: PredictionsAndFaces, best: BestFaces, iou_thresholds: Sequence[float]
) -> Outcomes:
    """Outcome of each prediction at each IoU threshold.

    Args:
        pictures: one or more, their predictions in any order.
        best: their `best_faces`.
        iou_thresholds: t of them, one or more, in (0, 1]; at least this overlap is a hit.

    Returns:
        (t, d, p) int8 of NOT_COUNTED, FALSE_POSITIVE, TRUE_POSITIVE. In a picture without faces
        nothing is counted: the reference evaluation leaves such pictures out.
    """
    no_hit = np.where(pictures.face_counts, np.int8(FALSE_POSITIVE), np.int8(NOT_COUNTED))
    shape = (len(iou_thresholds), len(pictures.counted), len(pictures.scores))
    outcomes = np.empty(shape, np.int8)
    outcomes[:] = no_hit.repeat(pictures.prediction_counts)
    first_face = pictures.face_counts.cumsum() - pictures.face_counts
    face = best.face + first_face.repeat(pictures.prediction_counts)
    (prediction,) = np.nonzero(best.iou >= min(iou_thresholds))
    # Face by face, those of one face by falling score, those of equal score in their order.
    order = np.lexsort((-pictures.scores[prediction], face[prediction]))
    prediction = prediction[order]
    face, iou = face[prediction], best.iou[prediction]
    for outcome, iou_threshold in zip(outcomes, iou_thresholds, strict=True):
        hits = iou >= iou_threshold
        is_first_of_face = np.diff(face[hits], prepend=-1) != 0
        if_counted = np.where(is_first_of_face, TRUE_POSITIVE, FALSE_POSITIVE)
        counted = pictures.counted[:, face[hits]]
        outcome[:, prediction[hits]] = np.where(counted, if_counted, NOT_COUNTED)
    return outcomes


@dataclass(frozen=True, eq=False)
class Matched:
    """What became of the predictions of pictures, one picture after the other.

    Attributes:
        places: Picture id -> where its predictions start and stop.
        scores: (p,) float64, as given.
        heights: (p,) float32, of the boxes, pixels.
        best: Their best faces.
        outcomes: (protocols, difficulties, p) int8.
    """

    places: dict[str, tuple[int, int]]
    scores: Floats
    heights: NDArray[np.float32]
    best: BestFaces
    outcomes: Outcomes

    @classmethod
    def join(cls, parts: Sequence[Matched]) -> Matched:
        """The pictures of all parts, which share none."""
        places: dict[str, tuple[int, int]] = {}
        start = 0
        for part in parts:
            places |= {id: (start + a, start + b) for id, (a, b) in part.places.items()}
            start += len(part.scores)
        return cls(
            places,
            np.concatenate([np.empty(0), *(part.scores for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.heights for part in parts)]),
            BestFaces(
                np.concatenate([np.empty(0, np.int32), *(part.best.face for part in parts)]),
                np.concatenate([np.empty(0), *(part.best.iou for part in parts)]),
            ),
            np.concatenate([_NO_OUTCOMES, *(part.outcomes for part in parts)], axis=2),
        )

    @classmethod
    def of(cls, ids: Sequence[str], pictures: PredictionsAndFaces) -> Matched:
        """Match the pictures of these ids by all `PROTOCOLS`."""
        ends = pictures.prediction_counts.cumsum()
        starts = ends - pictures.prediction_counts
        places = zip(starts.tolist(), ends.tolist(), strict=True)
        best = best_faces(pictures)
        thresholds = [protocol.iou_threshold for protocol in PROTOCOLS.values()]
        return cls(
            dict(zip(ids, places, strict=True)),
            pictures.scores,
            pictures.predictions[:, 3].astype(np.float32),
            best,
            match(pictures, best, thresholds),
        )


_NO_OUTCOMES = np.empty((len(PROTOCOLS), len(DIFFICULTIES), 0), np.int8)


def normalise(scores: Floats) -> Floats:
    """Min-max normalised scores, as the reference computes them: min starts at 1, max at 0.

    Scores within [0, 1] therefore span [0, 1] afterwards. If all are equal, the reference divides
    by zero; here they all become 1: every prediction is as sure as the surest.

    Args:
        scores: (n,) float64 of the whole set.
    """
    low, high = scores.min(initial=1.0), scores.max(initial=0.0)
    if low == high:
        return np.ones_like(scores)
    normalised: Floats = (scores - low) / (high - low)
    return normalised


def first_thresholds(normalised: Floats) -> Ints:
    """For each normalised score, the first k with score >= t_k: (n,) int64, 0 to 999."""
    return len(THRESHOLDS) - np.searchsorted(THRESHOLDS[::-1], normalised, side="right")


def recall_and_precision(
    steps: Ints, outcomes: Outcomes, face_count: int, thresholds: int = len(THRESHOLDS)
) -> tuple[Floats, Floats]:
    """Recall and precision at each score threshold, at one difficulty.

    Args:
        steps: (n,) of the predictions, as `first_thresholds`.
        outcomes: (n,) int8 of the predictions.
        face_count: faces that count.
        thresholds: t, how many there are.

    Returns:
        Recall, (t,) float64, never falling, 0 if no face counts; and precision, (t,) float64, 0 at
        thresholds that let no counted prediction in.
    """
    kinds = TRUE_POSITIVE + 1
    table = np.bincount(steps * kinds + outcomes, minlength=thresholds * kinds)
    at_least = table.reshape(-1, kinds).cumsum(axis=0)
    found = at_least[:, TRUE_POSITIVE]
    proposed = found + at_least[:, FALSE_POSITIVE]
    return found / max(face_count, 1), found / np.maximum(proposed, 1)


def average_precision(recall: Floats, precision: Floats) -> float:
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


@dataclass(frozen=True)
class Reach:
    """How far the predictions of all pictures reach, whatever their order.

    Attributes:
        recall: Protocol name -> difficulty -> share of the faces that any prediction hits; 0 where
            no face counts.
        faces: Difficulty -> how many faces count.
        predictions: How many there are.
        scores: The lowest and the highest score, as given; `None` without a prediction.
        backward: Predictions with a negative width or height.
    """

    recall: dict[str, dict[str, float]]
    faces: dict[str, int]
    predictions: int
    scores: tuple[float, float] | None
    backward: int


class WiderFaceMetric:
    """Average precision over pictures by all `PROTOCOLS`, which share the IoU of each picture.

    Only pictures that were updated count: update a picture in which nothing was found with empty
    arrays, or its faces are left out of the recall. Metrics can be pickled and merged. A metric
    keeps about 30 bytes for each prediction.

        >>> faces = np.array([[10.0, 10, 20, 20], [60, 10, 20, 20]])
        >>> truth = PictureTruth("0--Parade/a", faces, counted=np.ones((3, 2), bool))
        >>> metric = WiderFaceMetric()
        >>> metric.update(truth, np.array([[12.0, 10, 20, 20]]), np.array([0.9]))
        >>> metric.compute()["official"]
        {'easy': 0.5, 'medium': 0.5, 'hard': 0.5}
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._parts: list[Matched] = []  # of one group of pictures each
        self._face_counts = np.zeros(len(DIFFICULTIES), np.int64)
        self._backward = 0

    def __len__(self) -> int:
        """How many pictures were updated."""
        return len(self._ids)

    def update(self, truth: PictureTruth, boxes_xywh: Floats, scores: Floats) -> None:
        """Add the predictions of one picture: `update_many` of one."""
        self.update_many([truth], [boxes_xywh], [scores])

    def update_many(
        self, truths: Sequence[PictureTruth], boxes_xywh: Sequence[Floats], scores: Sequence[Floats]
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
        ids: set[str] = set()
        pictures = []
        for truth, *found in zip(truths, boxes_xywh, scores, strict=True):
            if truth.id in self._ids or truth.id in ids:
                raise ValueError(f"{truth.id} was already updated")
            ids.add(truth.id)
            pictures.append((truth, *_checked(truth.id, *found)))
        # The + 1 lets the predictions of pictures without faces count as well.
        sizes = [len(found) * (len(truth.boxes) + 1) for truth, _, found in pictures]
        for part in _groups(sizes):
            group = PredictionsAndFaces.of(*zip(*pictures[part], strict=True))
            self._parts.append(Matched.of([truth.id for truth, *_ in pictures[part]], group))
            self._face_counts += group.counted.sum(axis=1)
            self._backward += int((group.predictions[:, 2:] < 0).any(axis=1).sum())
        self._ids |= ids

    def merge(self, other: WiderFaceMetric) -> None:
        """Take over the pictures of `other`.

        Raises:
            ValueError: a picture is in both.
        """
        twice = self._ids & other._ids
        if twice:
            raise ValueError(f"{len(twice)} pictures are in both metrics, such as {min(twice)}")
        self._ids |= other._ids
        self._parts += other._parts
        self._face_counts += other._face_counts
        self._backward += other._backward

    def compute(self) -> dict[str, dict[str, float]]:
        """AP in [0, 1]: protocol name -> difficulty -> AP. 0 where no face counts."""
        matched = self.matched()
        steps = first_thresholds(normalise(matched.scores))
        return {
            protocol: {
                difficulty: average_precision(*recall_and_precision(steps, row, int(count)))
                for difficulty, row, count in zip(
                    DIFFICULTIES, rows, self._face_counts, strict=True
                )
            }
            for protocol, rows in zip(PROTOCOLS, matched.outcomes, strict=True)
        }

    def matched(self) -> Matched:
        """What became of each prediction, of all pictures."""
        self._parts = [Matched.join(self._parts)]
        return self._parts[0]

    def reach(self) -> Reach:
        """How far the predictions reach, for notes beside the AP."""
        matched = self.matched()
        hits = (matched.outcomes == TRUE_POSITIVE).sum(axis=2)
        shares = hits / np.maximum(self._face_counts, 1)
        scores = matched.scores
        return Reach(
            {
                protocol: dict(zip(DIFFICULTIES, row, strict=True))
                for protocol, row in zip(PROTOCOLS, shares.tolist(), strict=True)
            },
            dict(zip(DIFFICULTIES, self._face_counts.tolist(), strict=True)),
            len(scores),
            (float(scores.min()), float(scores.max())) if len(scores) else None,
            self._backward,
        )


def _checked(picture_id: str, boxes_xywh: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """(p, 4) and (p,) float64 of one picture's predictions."""
    boxes_xywh, scores = np.asarray(boxes_xywh, np.float64), np.asarray(scores, np.float64)
    if boxes_xywh.size == 0:
        boxes_xywh = boxes_xywh.reshape(0, 4)
    if scores.ndim != 1 or boxes_xywh.shape != (len(scores), 4):
        raise ValueError(f"{picture_id}: boxes of shape {boxes_xywh.shape}, scores {scores.shape}")
    if not (np.isfinite(boxes_xywh).all() and np.isfinite(scores).all()):
        raise ValueError(f"{picture_id}: a prediction is not finite")
    return boxes_xywh, scores


def _groups(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut pictures into groups of about PAIRS_AT_ONCE pairs, given how many pairs each has."""
    start, pairs = 0, 0
    for end, size in enumerate(sizes, start=1):
        pairs += size
        if pairs >= PAIRS_AT_ONCE or end == len(sizes):
            yield slice(start, end)
            start, pairs = end, 0
