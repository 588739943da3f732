"""Where an AP comes from: curves, events, sizes, causes, and the worst single finds.

All of it is counted from the metric's own outcomes (`Matched`); nothing is matched again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cfdist.widerface.ground_truth import DIFFICULTIES, LABELS, GroundTruth
from cfdist.widerface.metric import (
    FALSE_POSITIVE,
    NOT_COUNTED,
    PROTOCOLS,
    THRESHOLDS,
    Floats,
    Ints,
    Matched,
    Outcomes,
    average_precision,
    first_thresholds,
    normalise,
    recall_and_precision,
)

HARD = DIFFICULTIES.index("hard")

# Face heights in pixels at which one row of the table ends and the next begins.
HEIGHTS = (0, 10, 16, 24, 32, 48, 64, 96, 128, 256)


@dataclass(frozen=True)
class Share:
    """How some of the faces that count as hard were found.

    Attributes:
        name: Which faces.
        faces: How many.
        found: Those hit by any prediction.
        sure: Those hit by a prediction with at least the `Analysis.sure_score`.
        ap: Of these faces alone; `None` where it is not computed.
    """

    name: str
    faces: int
    found: int
    sure: int
    ap: float | None = None


@dataclass(frozen=True)
class Curve:
    """Precision over recall at one difficulty; (1000,) float64 each."""

    recall: Floats
    precision: Floats

    @property
    def ap(self) -> float:
        """The area under it, as the metric counts it."""
        return average_precision(self.recall, self.precision)


@dataclass(frozen=True)
class Miss:
    """A face that counts and that no prediction hits.

    Attributes:
        id: The picture.
        face: The face's row in the picture's ground truth.
        difficulties: Those at which it counts.
    """

    id: str
    face: int
    difficulties: tuple[str, ...]


@dataclass(frozen=True)
class FalsePositive:
    """A prediction that counts as wrong at every difficulty, or at least as hard.

    Attributes:
        id: The picture.
        prediction: The prediction's place in the picture.
        score: Its score.
        face: The face that it overlaps most, a row of the picture's ground truth; -1: none.
        iou: The overlap.
        is_second: It hits a face that a surer prediction had hit before.
    """

    id: str
    prediction: int
    score: float
    face: int
    iou: float
    is_second: bool


class Analysis:
    """The finds of a set of pictures by one protocol.

    Attributes:
        ids: The pictures, in the ground truth's order.
        sure_score: The score from which on precision and recall of the hard faces balance best
            (largest F1); a reader's idea of "found" is rather this than any score.
    """

    def __init__(self, truth: GroundTruth, matched: Matched, protocol: str) -> None:
        """Take the pictures of `matched`; the protocol is a key of `PROTOCOLS`."""
        self.ids = [id for id in truth if id in matched.places]
        truths = [truth[id] for id in self.ids]
        places = [matched.places[id] for id in self.ids]
        order = np.concatenate([np.empty(0, np.int64), *(np.arange(*one) for one in places)])
        self._counts = np.array([stop - start for start, stop in places], np.int64)
        self._face_counts = np.array([len(one.boxes) for one in truths], np.int64)
        self._faces = np.concatenate([np.empty((0, 4)), *(one.boxes for one in truths)])
        self._counted = np.concatenate(
            [np.empty((len(DIFFICULTIES), 0), np.bool_), *(one.counted for one in truths)], axis=1
        )
        self._scores, self._heights = matched.scores[order], matched.heights[order]
        number = [*PROTOCOLS].index(protocol)
        self._outcomes: Outcomes = matched.outcomes[number][:, order]
        self._local_face, self._iou = matched.best.face[order], matched.best.iou[order]
        first_face = self._face_counts.cumsum() - self._face_counts
        self._is_hit = self._iou >= PROTOCOLS[protocol].iou_threshold
        self._face = self._local_face + first_face.repeat(self._counts)
        self._steps = first_thresholds(normalise(self._scores))
        # Of each face the highest score that hits it; -inf where none does.
        self._best_score = np.full(len(self._faces), -np.inf)
        np.maximum.at(self._best_score, self._face[self._is_hit], self._scores[self._is_hit])
        self.sure_score = self._score_of_largest_f1()

    def _curve(self, difficulty: int, outcomes: Outcomes, of: NDArray[np.bool_], n: int) -> Curve:
        return Curve(*recall_and_precision(self._steps[of], outcomes[of], n))

    def curve(self, difficulty: str) -> Curve:
        """Precision over recall of all pictures."""
        row = DIFFICULTIES.index(difficulty)
        every = np.ones(len(self._scores), np.bool_)
        return self._curve(row, self._outcomes[row], every, int(self._counted[row].sum()))

    def _score_of_largest_f1(self) -> float:
        """The lowest score that counts as sure; 0 without a prediction."""
        if not len(self._scores):
            return 0.0
        curve = self.curve("hard")
        both = curve.recall + curve.precision
        f1 = np.divide(
            curve.recall * curve.precision, both, where=both > 0, out=np.zeros(len(both))
        )
        low, high = self._scores.min(initial=1.0), self._scores.max(initial=0.0)
        return float(low + (high - low) * THRESHOLDS[int(f1.argmax())])

    def events(self) -> dict[str, tuple[int, int, dict[str, float | None]]]:
        """Event -> pictures, hard faces, and the AP at each difficulty; `None`: no face counts."""
        events = np.array([id.partition("/")[0] for id in self.ids])
        found = {}
        for event in dict.fromkeys(events.tolist()):
            pictures = events == event
            of, faces = pictures.repeat(self._counts), pictures.repeat(self._face_counts)
            counts = self._counted[:, faces].sum(axis=1).tolist()
            aps = {
                name: self._curve(row, self._outcomes[row], of, counts[row]).ap
                if counts[row]
                else None
                for row, name in enumerate(DIFFICULTIES)
            }
            found[event] = (int(pictures.sum()), counts[HARD], aps)
        return found

    def heights(self) -> list[Share]:
        """The hard faces by height in pixels, with the AP of each range.

        In a range, predictions that hit faces of other heights do not count, and of the
        predictions that hit none those whose own height is in it.
        """
        heights = self._faces[:, 3]
        shares = []
        for low, high in zip(HEIGHTS, (*HEIGHTS[1:], np.inf), strict=True):
            faces = (heights >= low) & (heights < high)
            has_face = np.flatnonzero(self._is_hit)
            belongs = (self._heights >= low) & (self._heights < high)
            belongs[has_face] = faces[self._face[has_face]]
            outcomes = np.where(belongs, self._outcomes[HARD], np.int8(NOT_COUNTED))
            name = f"{low} to {high - 1}" if high < np.inf else f"{low} and more"
            share = self._share(name, faces)
            every = np.ones(len(outcomes), np.bool_)
            ap = self._curve(HARD, outcomes, every, share.faces).ap if share.faces else None
            shares.append(replace(share, ap=ap))
        return shares

    def causes(self, labels: Mapping[str, NDArray[np.uint8]]) -> list[Share]:
        """How the hard faces were found, by their labels: "blur: heavy".

        A value that no face has, and a label that is the same for all, are left out.

        Args:
            labels: Picture id -> (faces, len(LABELS)), see `load_face_labels`.
        """
        nothing = np.empty((0, len(LABELS)), np.uint8)
        table = np.concatenate([nothing, *(labels[id] for id in self.ids)])
        shares = []
        for column, (label, names) in enumerate(LABELS.items()):
            of_label = [
                self._share(f"{label}: {name}", table[:, column] == value)
                for value, name in enumerate(names)
            ]
            occurring = [share for share in of_label if share.faces]
            shares += occurring if len(occurring) > 1 else []
        return shares

    def _share(self, name: str, faces: NDArray[np.bool_]) -> Share:
        best = self._best_score[faces & self._counted[HARD]]
        found, sure = (best > -np.inf).sum(), (best >= self.sure_score).sum()
        return Share(name, len(best), int(found), int(sure))

    def share(self) -> Share:
        """How all hard faces were found."""
        return self._share("all", np.ones(len(self._faces), np.bool_))

    def misses(self) -> Iterator[Miss]:
        """The faces that count and that nothing hits, the easiest and largest ones first."""
        easiness = self._counted.sum(axis=0)
        (missed,) = np.nonzero((easiness > 0) & (self._best_score == -np.inf))
        picture, local = self._picture_and_place(missed, self._face_counts)
        order = np.lexsort((local, picture, -self._faces[missed, 3], -easiness[missed]))
        for i in order:
            counted = self._counted[:, missed[i]].tolist()
            names = tuple(name for name, is_in in zip(DIFFICULTIES, counted, strict=True) if is_in)
            yield Miss(self.ids[picture[i]], int(local[i]), names)

    def false_positives(self) -> Iterator[FalsePositive]:
        """The predictions that count as wrong for the hard faces, the surest ones first."""
        (wrong,) = np.nonzero(self._outcomes[HARD] == FALSE_POSITIVE)
        picture, local = self._picture_and_place(wrong, self._counts)
        for i in np.lexsort((local, picture, -self._scores[wrong])):
            at = wrong[i]
            yield FalsePositive(
                self.ids[picture[i]],
                int(local[i]),
                float(self._scores[at]),
                int(self._local_face[at]),
                float(self._iou[at]),
                bool(self._is_hit[at]),
            )

    @staticmethod
    def _picture_and_place(chosen: Ints, counts: Ints) -> tuple[Ints, Ints]:
        """The picture of each, by number, and its place in the picture."""
        ends = counts.cumsum()
        picture = np.searchsorted(ends, chosen, side="right")
        return picture, chosen - (ends - counts)[picture]
