"""How far two models are apart on the same pictures: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cfdist.decode import HeadMaps
from cfdist.detections import Detections
from cfdist.widerface.metric import box_iou

HEADS = HeadMaps._fields

MATCH_IOU = 0.9  # two boxes this alike are the same find
MATCH_SCORE = 0.1  # below it the 200 peaks of a picture are noise, whose order means nothing


Sums = TypeVar("Sums", bound="_Sums")


@dataclass(frozen=True)
class _Sums:
    """Figures over any number of pictures: sums, and maxima whose names begin with "largest"."""

    def __add__(self: Sums, other: Sums) -> Sums:
        """The figures over the pictures of both."""
        joined = {}
        for name in (one.name for one in fields(self)):
            a, b = getattr(self, name), getattr(other, name)
            # np.maximum keeps a NaN, unlike max.
            joined[name] = float(np.maximum(a, b)) if name.startswith("largest") else a + b
        return type(self)(**joined)


@dataclass(frozen=True)
class HeadDifference(_Sums):
    """The difference of one head's maps.

    Attributes:
        largest: Largest absolute difference; NaN if either model's map holds a NaN.
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

    @property
    def mean(self) -> float:
        """Mean absolute difference."""
        return self.total / self.count if self.count else 0.0

    @property
    def relative(self) -> float:
        """Euclidean norm of the difference by that of the reference; infinite if that is zero."""
        squares = self.reference_square - 2 * self.product + self.candidate_square
        if self.reference_square == 0:
            return 0.0 if self.largest == 0 else float("inf")
        # Rounding can leave less than nothing; of equal values it leaves nothing.
        return float(np.sqrt(np.maximum(squares, 0.0) / self.reference_square))

    @property
    def cosine(self) -> float:
        """Cosine similarity of all values as one vector; 1 if all values of both are zero."""
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
        # Not `@`, whose last digits depend on how many threads the process has.
        float((a * b).sum()),
        float((a * a).sum()),
        float((b * b).sum()),
    )


@dataclass(frozen=True)
class BoxAgreement(_Sums):
    """How many boxes two models share.

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

    @property
    def found_share(self) -> float:
        """Share of the reference's boxes that the candidate has; 1 if it has none."""
        return self.found / self.reference if self.reference else 1.0

    @property
    def confirmed_share(self) -> float:
        """Share of the candidate's boxes that the reference has; 1 if it has none."""
        return self.confirmed / self.candidate if self.candidate else 1.0


def compare_boxes(reference: Detections, candidate: Detections) -> BoxAgreement:
    """Match the boxes of one picture in both directions."""
    forward = matched_boxes(reference, candidate)
    back = matched_boxes(candidate, reference)
    apart = np.array([abs(reference.scores[i] - candidate.scores[j]) for i, j in forward])
    return BoxAgreement(
        int(np.count_nonzero(reference.scores >= MATCH_SCORE)),
        int(np.count_nonzero(candidate.scores >= MATCH_SCORE)),
        len(forward),
        len(back),
        float(apart.max(initial=0.0)),
        float(apart.sum()),
    )


def matched_boxes(these: Detections, those: Detections) -> Sequence[tuple[int, int]]:
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
