"""How far two models are apart on the same pictures: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfdist.decode import HeadMaps
from cfdist.detections import Detections
from cfdist.widerface.metric import box_iou

HEADS = HeadMaps._fields

MATCH_IOU = 0.9  # two boxes this alike are the same find
MATCH_SCORE = 0.1  # below it the 200 peaks of a picture are noise, whose order means nothing


@dataclass(frozen=True)
class HeadDifference:
    """The difference of one head's maps, over any number of pictures; sums, so that they add up.

    Attributes:
        largest: Largest absolute difference; NaN where either holds a NaN.
        total: Sum of absolute differences.
        count: Values compared.
        product: Sum of reference * candidate.
        reference_square: Sum of reference squared.
        candidate_square: Sum of candidate squared.
    """

    largest: float = 0.0
    total: float = 0.0
    count: int = 0
    product: float = 0.0
    reference_square: float = 0.0
    candidate_square: float = 0.0

    def __add__(self, other: HeadDifference) -> HeadDifference:
        """The difference over the pictures of both."""
        return HeadDifference(
            float(np.maximum(self.largest, other.largest)),  # keeps a NaN, unlike max
            self.total + other.total,
            self.count + other.count,
            self.product + other.product,
            self.reference_square + other.reference_square,
            self.candidate_square + other.candidate_square,
        )

    @property
    def mean(self) -> float:
        """Mean absolute difference."""
        return self.total / self.count if self.count else 0.0

    @property
    def cosine(self) -> float:
        """Cosine similarity of all values as one vector; 1 where both are all zero."""
        norms = np.sqrt(self.reference_square) * np.sqrt(self.candidate_square)
        if norms == 0:
            return 1.0 if self.reference_square == self.candidate_square else 0.0
        return float(self.product / norms)


def head_difference(
    reference: NDArray[np.float32], candidate: NDArray[np.float32]
) -> HeadDifference:
    """Compare two arrays of one shape; sums in float64."""
    a = reference.astype(np.float64).reshape(-1)
    b = candidate.astype(np.float64).reshape(-1)
    apart = np.abs(a - b)
    return HeadDifference(
        float(apart.max(initial=0.0)),
        float(apart.sum()),
        apart.size,
        float(a @ b),
        float(a @ a),
        float(b @ b),
    )


def compare_heads(reference: HeadMaps, candidate: HeadMaps) -> dict[str, HeadDifference]:
    """Head name -> difference."""
    return {
        name: head_difference(getattr(reference, name), getattr(candidate, name)) for name in HEADS
    }


@dataclass(frozen=True)
class BoxAgreement:
    """How many boxes two models share, over any number of pictures; sums, so that they add up.

    Attributes:
        reference: Boxes of the reference with a score of at least `MATCH_SCORE`.
        candidate: Those of the candidate.
        found: Boxes of the reference that the candidate has too, one to one, at `MATCH_IOU`,
            whatever score it gives them.
        confirmed: Boxes of the candidate that the reference has too.
        largest_score_difference: Of the found ones.
        score_difference: Sum of the found ones' absolute score differences.
    """

    reference: int = 0
    candidate: int = 0
    found: int = 0
    confirmed: int = 0
    largest_score_difference: float = 0.0
    score_difference: float = 0.0

    def __add__(self, other: BoxAgreement) -> BoxAgreement:
        """The agreement over the pictures of both."""
        return BoxAgreement(
            self.reference + other.reference,
            self.candidate + other.candidate,
            self.found + other.found,
            self.confirmed + other.confirmed,
            max(self.largest_score_difference, other.largest_score_difference),
            self.score_difference + other.score_difference,
        )

    @property
    def found_share(self) -> float:
        """Share of the reference's boxes that the candidate has; 1 where there are none."""
        return self.found / self.reference if self.reference else 1.0

    @property
    def confirmed_share(self) -> float:
        """Share of the candidate's boxes that the reference has; 1 where there are none."""
        return self.confirmed / self.candidate if self.candidate else 1.0


def compare_boxes(reference: Detections, candidate: Detections) -> BoxAgreement:
    """Match the boxes of one picture in both directions."""
    forward = _match(reference, candidate)
    back = _match(candidate, reference)
    apart = np.array([abs(reference.scores[i] - candidate.scores[j]) for i, j in forward])
    return BoxAgreement(
        int(np.count_nonzero(reference.scores >= MATCH_SCORE)),
        int(np.count_nonzero(candidate.scores >= MATCH_SCORE)),
        len(forward),
        len(back),
        float(apart.max(initial=0.0)),
        float(apart.sum()),
    )


def _match(these: Detections, those: Detections) -> Sequence[tuple[int, int]]:
    """Pairs of boxes: each of `these` by falling score takes its best box of `those` left."""
    strong = np.flatnonzero(these.scores >= MATCH_SCORE)
    if not len(strong) or not len(those.boxes):
        return []
    overlap = box_iou(_xywh(these.boxes[strong]), _xywh(those.boxes))
    pairs = []
    for row, i in enumerate(strong):
        j = int(overlap[row].argmax())
        if overlap[row, j] >= MATCH_IOU:
            pairs.append((int(i), j))
            overlap[:, j] = -1
    return pairs


def _xywh(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    xywh = boxes.astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    return xywh
