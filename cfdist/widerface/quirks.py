"""Habits of public WIDER FACE evaluators, and of the scripts that write their files.

Each of `QUIRKS` is one thing that a program does otherwise than the benchmark's `eval_tools`.
`QuirkyMetric` computes the AP that a program with some of them would give. Most of them change what
the metric is shown, so that `WiderFaceMetric` matches as always; the others change what is made of
its outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cfdist.errors import UserError
from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth
from cfdist.widerface.metric import (
    FALSE_POSITIVE,
    NOT_COUNTED,
    PROTOCOLS,
    THRESHOLDS,
    Floats,
    Ints,
    Matched,
    Outcomes,
    WiderFaceMetric,
    average_precision,
    first_thresholds,
    normalise,
    recall_and_precision,
)
from cfdist.widerface.predictions import STYLES, Lines, read_predictions_file

KEY = "eval.quirks"

Found = tuple[PictureTruth, Floats, Floats]  # a picture, (p, 4) x y w h and (p,) scores


@dataclass(frozen=True)
class Habits:
    """How a program does things; the defaults are the benchmark's own.

    Attributes:
        protocol: The one of `PROTOCOLS` whose IoU threshold it has.
        lines: Which lines of a file it reads.
        least_score: Boxes below it are not written.
        cuts_corners: Corners are cut to whole pixels, as `int()` does.
        size_offset: Added to widths and heights, pixels.
        box_decimals: Decimals of the written boxes, `None`: all.
        score_decimals: Decimals of the written scores, `None`: all.
        skips_empty: Pictures without a box are left out, faces and all.
        pixel: Whether x1 to x2 is x2 - x1 + 1 wide in the IoU, not x2 - x1.
        last_face: Of faces with equal overlap the last is taken, not the first.
        reverse_ties: Boxes of equal score are taken in the reverse order.
        scores: Over what scores are normalised.
        ignored_wrong: A box on a face that does not count is a false positive.
        repeats_ignored: A second box on a face is not counted.
        every_score: There is a threshold at every score, in place of 1000 of them.
        eleven: AP is the mean precision at 11 recalls (Pascal VOC 2007), in place of the area.
    """

    protocol: str
    lines: Lines = "all"
    least_score: float | None = None
    cuts_corners: bool = False
    size_offset: int = 0
    box_decimals: int | None = None
    score_decimals: int | None = None
    skips_empty: bool = False
    pixel: bool = True
    last_face: bool = False
    reverse_ties: bool = False
    scores: Literal["set", "picture", "none"] = "set"
    ignored_wrong: bool = False
    repeats_ignored: bool = False
    every_score: bool = False
    eleven: bool = False


@dataclass(frozen=True)
class Quirk:
    """One habit: what it is, for people, and the fields of `Habits` that it sets."""

    title: str
    changes: Mapping[str, Any]


def _quirk(title: str, **changes: Any) -> Quirk:
    return Quirk(title, changes)


QUIRKS: Mapping[str, Quirk] = {
    "iou_0.4": _quirk("a box is right from IoU 0.4 on", protocol="guide"),
    "iou_0.5": _quirk("a box is right from IoU 0.5 on", protocol="official"),
    "no_pixel": _quirk("widths without the + 1 pixel in the IoU", pixel=False),
    "sizes_plus_1": _quirk("sizes written one pixel too large", size_offset=1),
    "guide_style": _quirk(
        "written as the guide's script does (sizes + 1, 1 decimal, scores of 3)",
        **asdict(STYLES["guide"]),
    ),
    "whole_corners": _quirk("corners cut to whole pixels", cuts_corners=True),
    "scores_2_decimals": _quirk("scores of 2 decimals", score_decimals=2),
    "count_line": _quirk("a file is read as far as its count line says", lines="counted"),
    "first_line": _quirk(
        "only the first box of a file is read, as a constant count of 1 says", lines="first"
    ),
    "scores_from_0.5": _quirk("boxes below 0.5 not written", least_score=0.5),
    "skip_empty": _quirk("pictures without a box left out, faces and all", skips_empty=True),
    "last_face": _quirk("equal overlap: the last face", last_face=True),
    "reverse_ties": _quirk("equal score: in reverse order", reverse_ties=True),
    "raw_scores": _quirk("scores not normalised", scores="none"),
    "picture_scores": _quirk("scores normalised in each picture", scores="picture"),
    "ignored_wrong": _quirk("boxes on ignored faces are wrong", ignored_wrong=True),
    "repeats_ignored": _quirk("a second box on a face is not counted", repeats_ignored=True),
    "every_score": _quirk("a threshold at every score, not 1000", every_score=True),
    "eleven_points": _quirk("mean of 11 precisions (VOC 2007), not the area", eleven=True),
}


def quirk_sets(names: Sequence[str] | str, protocol: str) -> list[tuple[str, ...]]:
    """The sets of quirks that a person asks for by `eval.quirks`.

    Args:
        names: Of `QUIRKS`, all at once; or "each", every one alone that is not the protocol's.
        protocol: The chosen one of `PROTOCOLS`.

    Raises:
        UserError: a quirk is what the protocol does anyway, or two say the same thing otherwise.
    """
    plain = Habits(protocol)
    same = [name for name, quirk in QUIRKS.items() if replace(plain, **quirk.changes) == plain]
    if isinstance(names, str):
        return [(name,) for name in QUIRKS if name not in same]
    for name in names:
        if name in same:
            raise UserError(f"{KEY}: {name} is what eval={protocol} does anyway; leave it out")
    for one, other in combinations(names, 2):
        if QUIRKS[one].changes.keys() & QUIRKS[other].changes.keys():
            raise UserError(
                f"{KEY}: {one} ({QUIRKS[one].title}) and {other} ({QUIRKS[other].title}) decide "
                "the same thing; leave one of them out"
            )
    return [tuple(names)] if names else []


class QuirkyMetric(WiderFaceMetric):
    """The AP that a program with some quirks gives; used as a `WiderFaceMetric`.

    Its `compute` has one entry, which names the quirks: no protocol gives such a figure.
    """

    def __init__(self, names: Sequence[str], protocol: str) -> None:
        """Remember the quirks, a set of `quirk_sets`, and the protocol that they change."""
        super().__init__()
        self.name = f"{protocol} with {' and '.join(names)}"
        changes = {field: v for name in names for field, v in QUIRKS[name].changes.items()}
        self._habits = replace(Habits(protocol), **changes)

    def read(self, path: Path) -> tuple[Floats, Floats]:
        """Read a prediction file; see `read_predictions_file`."""
        return read_predictions_file(path, self._habits.lines)

    @property
    def reads_all(self) -> bool:
        """Whether `read` gives what others read."""
        return self._habits.lines == "all"

    def update_many(
        self, truths: Sequence[PictureTruth], boxes_xywh: Sequence[Floats], scores: Sequence[Floats]
    ) -> None:
        """See `WiderFaceMetric.update_many`."""
        pictures = [self._as_seen(*one) for one in zip(truths, boxes_xywh, scores, strict=True)]
        if self._habits.skips_empty:
            pictures = [picture for picture in pictures if len(picture[2])]
        if pictures:
            super().update_many(*zip(*pictures, strict=True))

    def _as_seen(self, truth: PictureTruth, boxes: Floats, scores: Floats) -> Found:
        """What the program sees of a picture, its boxes by falling score."""
        habits = self._habits
        if habits.least_score is not None:
            kept = scores >= habits.least_score
            boxes, scores = boxes[kept], scores[kept]
        if habits.cuts_corners:
            start, end = np.trunc(boxes[:, :2]), np.trunc(boxes[:, :2] + boxes[:, 2:])
            boxes = np.concatenate((start, end - start), axis=1)
        boxes = np.add(boxes, [0, 0, habits.size_offset, habits.size_offset])
        if habits.box_decimals is not None:
            boxes = np.round(boxes, habits.box_decimals)
        if habits.score_decimals is not None:
            scores = np.round(scores, habits.score_decimals)
        order = np.argsort(-scores, kind="stable")
        if habits.reverse_ties:  # the metric takes equal scores in the order in which they come
            order = order[::-1]
        boxes, scores = boxes[order], scores[order]
        if habits.last_face:  # the metric takes the first
            truth = replace(truth, boxes=truth.boxes[::-1], counted=truth.counted[:, ::-1])
        if not habits.pixel:  # the metric adds one to both
            truth = replace(truth, boxes=np.subtract(truth.boxes, [0, 0, 1, 1]))
            boxes = np.subtract(boxes, [0, 0, 1, 1])
        return truth, boxes, scores

    def compute(self) -> dict[str, dict[str, float]]:
        """The one AP: `name` -> difficulty -> AP in [0, 1]; 0 where no face counts."""
        matched = self.matched()
        steps, count = _steps(matched, self._habits)
        usable = steps < count  # a score below all thresholds is below the last one as well
        found = {}
        for difficulty, row, faces in zip(
            DIFFICULTIES, _outcomes(matched, self._habits), self._face_counts, strict=True
        ):
            at_steps = recall_and_precision(steps[usable], row[usable], int(faces), count)
            area = _mean_of_eleven if self._habits.eleven else average_precision
            found[difficulty] = area(*at_steps)
        return {self.name: found}


def _outcomes(matched: Matched, habits: Habits) -> Outcomes:
    """(difficulties, p): what each prediction is at each difficulty."""
    number = list(PROTOCOLS).index(habits.protocol)
    outcomes: Outcomes = matched.outcomes[number].copy()
    hits = matched.best.iou >= PROTOCOLS[habits.protocol].iou_threshold
    is_ignored = hits & (outcomes == NOT_COUNTED)
    is_repeat = hits & (outcomes == FALSE_POSITIVE)
    if habits.ignored_wrong:
        outcomes[is_ignored] = FALSE_POSITIVE
    if habits.repeats_ignored:
        outcomes[is_repeat] = NOT_COUNTED
    return outcomes


def _steps(matched: Matched, habits: Habits) -> tuple[Ints, int]:
    """For each prediction the first threshold that lets it in, and how many thresholds there are.

    Those of scores below all thresholds have a number past the last one.
    """
    scores = matched.scores
    if habits.scores == "set":
        scores = normalise(scores)
    elif habits.scores == "picture":
        scores = scores.copy()
        for start, end in matched.places.values():
            scores[start:end] = normalise(scores[start:end])
    if not habits.every_score:
        return first_thresholds(scores), len(THRESHOLDS)
    levels, steps = np.unique(-scores, return_inverse=True)
    return steps.astype(np.int64), max(1, len(levels))


def _mean_of_eleven(recall: Floats, precision: Floats) -> float:
    """The mean of the best precisions from recall 0, 0.1, ..., 1 on."""
    levels = np.linspace(0, 1, 11)
    return float(np.mean([precision[recall >= level].max(initial=0) for level in levels]))


def quirk_notes(sets: Sequence[Sequence[str]]) -> list[str]:
    """What a reader of figures with quirks should know: that none is official, and what each is."""
    used = [name for names in sets for name in names]
    if not used:
        return []
    meant = "; ".join(f"{name}: {QUIRKS[name].title}" for name in used)
    return [
        "a figure with quirks is no protocol's, and compares with none that is published; "
        + (meant if len(sets) == 1 else "docs/concepts.md says what each of them is")
    ]
