"""Each quirk against a plain loop that does things that way."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from cfdist.config.schema import Quirk as QuirkName
from cfdist.errors import UserError
from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth
from cfdist.widerface.metric import PROTOCOLS, WiderFaceMetric
from cfdist.widerface.quirks import QUIRKS, Habits, QuirkyMetric, quirk_notes, quirk_sets

# Those that decide what is read of a file.
READING = {"count_line", "first_line"}


def pictures(seed: int = 0, count: int = 12) -> list[tuple]:
    """Faces on a grid, finds beside them, with equal scores, equal overlaps and repeats."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        faces = random.integers(0, 12, (5, 4)).astype(float) * [8, 8, 1, 1] + [0, 0, 4, 4]
        faces[1] = faces[0]  # any box overlaps both equally
        counted = random.random((3, 5)) < 0.6
        boxes = np.repeat(faces, 3, axis=0) + random.uniform(-2.5, 2.5, (15, 4))
        scores = random.choice([0.031, 0.033, 0.4, 0.4, 0.74, 0.9, 0.9004], 15)
        kept = slice(0, 0 if number == 3 else 15)
        order = np.argsort(-scores[kept], kind="stable")
        truth = PictureTruth(f"e/{number}", faces, counted)
        found.append((truth, boxes[kept][order], scores[kept][order]))
    return found


def changed(picture: tuple, habits: Habits) -> tuple:
    """What an evaluator with these habits reads of a picture."""
    truth, boxes, scores = picture
    rows = []
    for (x, y, w, h), score in zip(boxes.tolist(), scores.tolist(), strict=True):
        if habits.least_score is not None and score < habits.least_score:
            continue
        if habits.cuts_corners:
            x, y, w, h = int(x), int(y), int(x + w) - int(x), int(y + h) - int(y)
        box = [x, y, w + habits.size_offset, h + habits.size_offset]
        if habits.box_decimals is not None:
            box = [round(value, habits.box_decimals) for value in box]
        if habits.score_decimals is not None:
            score = round(score, habits.score_decimals)
        rows.append((score, box))
    rows.sort(key=lambda row: -row[0])
    return truth, [box for _, box in rows], [score for score, _ in rows]


def overlap(a, b, extra: int) -> float:
    """IoU of x y w h, where a width is w + extra."""
    (ax, ay, ax2, ay2), (bx, by, bx2, by2) = [(x, y, x + w, y + h) for x, y, w, h in (a, b)]
    across, down = min(ax2, bx2) - max(ax, bx) + extra, min(ay2, by2) - max(ay, by) + extra
    if across <= 0 or down <= 0:
        return 0.0
    areas = (ax2 - ax + extra) * (ay2 - ay + extra) + (bx2 - bx + extra) * (by2 - by + extra)
    return across * down / (areas - across * down)


def outcomes(picture: tuple, row: int, habits: Habits) -> list[bool | None]:
    """For each box: right, wrong, or not counted."""
    truth, boxes, scores = picture
    found: list[bool | None] = [False] * len(boxes)
    order = list(range(len(boxes)))
    if habits.reverse_ties:
        order.reverse()
    order.sort(key=lambda one: -scores[one])
    taken = set()
    for one in order:
        overlaps = [overlap(boxes[one], face, int(habits.pixel)) for face in truth.boxes.tolist()]
        best = max(overlaps)
        if best < PROTOCOLS[habits.protocol].iou_threshold:
            continue
        face = overlaps.index(best)
        if habits.last_face:
            face = len(overlaps) - 1 - overlaps[::-1].index(best)
        if not truth.counted[row, face]:
            found[one] = False if habits.ignored_wrong else None
        elif face in taken:
            found[one] = None if habits.repeats_ignored else False
        else:
            taken.add(face)
            found[one] = True
    return found


def span(scores: list[float]) -> list[float]:
    low, high = min([1.0, *scores]), max([0.0, *scores])
    return [(score - low) / (high - low) for score in scores]


def plain_ap(shown: list[tuple], row: int, habits: Habits) -> float:
    """The AP at a difficulty, by loops."""
    shown = [changed(picture, habits) for picture in shown]
    if habits.skips_empty:
        shown = [picture for picture in shown if picture[1]]
    kinds = [kind for picture in shown for kind in outcomes(picture, row, habits)]
    scores = [score for *_, found in shown for score in found]
    if habits.scores == "set":
        scores = span(scores)
    elif habits.scores == "picture":
        scores = [score for *_, found in shown for score in (span(found) if found else [])]
    faces = sum(int(truth.counted[row].sum()) for truth, *_ in shown)
    levels = (1 - np.arange(1, 1001) / 1000).tolist()
    if habits.every_score:
        levels = sorted(set(scores), reverse=True)
    is_taken = np.array(scores) >= np.array(levels)[:, None]
    right = is_taken @ np.array([kind is True for kind in kinds], int)
    proposed = is_taken @ np.array([kind is not None for kind in kinds], int)
    points = list(zip(right / faces, right / np.maximum(proposed, 1), strict=True))
    if habits.eleven:
        steps = [step / 10 for step in range(11)]
        return float(np.mean([max([p for r, p in points if r >= s], default=0) for s in steps]))
    best, area, after = 0.0, 0.0, points[-1][0]
    for recall, precision in reversed(points):
        area += (after - recall) * best
        best, after = max(best, precision), recall
    return area + after * best


def quirky_ap(shown: list[tuple], *names: str, protocol: str = "official") -> dict[str, float]:
    metric = QuirkyMetric(names, protocol)
    metric.update_many(*map(list, zip(*shown, strict=True)))
    return metric.compute()[metric.name]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_quirk_gives_the_figures_of_a_plain_loop(protocol):
    shown = pictures()
    plain = quirky_ap(shown, protocol=protocol)
    metric = WiderFaceMetric()
    metric.update_many(*map(list, zip(*shown, strict=True)))
    assert plain == metric.compute()[protocol]
    unlike = set()
    sets = [*quirk_sets("each", protocol), ("no_pixel", "scores_from_0.5", "skip_empty")]
    sets += [("guide_style", "reverse_ties", "ignored_wrong"), ("raw_scores", "every_score")]
    for names in sets:
        changes = {k: v for name in names for k, v in QUIRKS[name].changes.items()}
        habits = replace(Habits(protocol), **changes)
        expected = {name: plain_ap(shown, row, habits) for row, name in enumerate(DIFFICULTIES)}
        found = quirky_ap(shown, *names, protocol=protocol)
        assert found == pytest.approx(expected, abs=1e-12), names
        if found != plain:
            unlike |= set(names)
    # None of them goes unnoticed on these pictures but those that scores from 0 to 1 leave out.
    assert unlike >= QUIRKS.keys() - READING - {"iou_0.4", "iou_0.5"}


def test_figures_depend_neither_on_order_nor_on_parts():
    shown = pictures(1)
    for names in (("every_score", "reverse_ties"), ("picture_scores", "last_face")):
        whole = quirky_ap(shown, *names)
        parts = [QuirkyMetric(names, "official") for _ in range(2)]
        for number, picture in enumerate(reversed(shown)):
            parts[number % 2].update(*picture)
        parts[0].merge(parts[1])
        assert parts[0].compute() == {"official with " + " and ".join(names): whole}


def test_scores_beyond_0_and_1_that_are_not_normalised_have_a_place():
    face = PictureTruth("e/a", np.array([[0.0, 0, 9, 9], [50, 50, 9, 9]]), np.ones((3, 2), bool))
    boxes = np.array([[0.0, 0, 9, 9], [50, 50, 9, 9]])
    # A negative score is below every threshold.
    assert quirky_ap([(face, boxes, np.array([7.0, -0.1]))], "raw_scores")["hard"] == 0.5
    assert quirky_ap([(face, boxes, np.array([7.0, 0.1]))], "raw_scores")["hard"] == 1
    assert quirky_ap([(face, boxes[:0], np.empty(0))], "every_score")["hard"] == 0
    assert quirky_ap([(face, boxes[:0], np.empty(0))], "skip_empty")["hard"] == 0


def test_the_names_are_those_of_the_setting():
    assert get_args(QuirkName) == tuple(QUIRKS)
    fields = set(Habits.__dataclass_fields__)
    assert all(quirk.changes and quirk.changes.keys() <= fields for quirk in QUIRKS.values())


def test_sets_of_quirks():
    assert quirk_sets([], "guide") == []
    assert quirk_sets(["no_pixel", "iou_0.4"], "official") == [("no_pixel", "iou_0.4")]
    each = quirk_sets("each", "guide")
    assert each == [(name,) for name in QUIRKS if name != "iou_0.4"]
    assert quirk_notes([]) == []
    (note,) = quirk_notes([("no_pixel",)])
    assert "no protocol's" in note and QUIRKS["no_pixel"].title in note
    assert len(quirk_notes(each)[0]) < 200


@pytest.mark.parametrize(
    ("names", "protocol", "words"),
    [
        (["iou_0.4"], "guide", "iou_0.4 is what eval=guide does anyway"),
        (["no_pixel", "iou_0.5"], "official", "iou_0.5 is what eval=official does anyway"),
        (["raw_scores", "no_pixel", "picture_scores"], "guide", "raw_scores .* and picture_scores"),
        (["guide_style", "scores_2_decimals"], "guide", "decide the same thing"),
        (["count_line", "first_line"], "guide", "leave one of them out"),
    ],
)
def test_quirks_that_do_nothing_or_contradict_each_other_are_refused(names, protocol, words):
    with pytest.raises(UserError, match=rf"^eval\.quirks: .*{words}"):
        quirk_sets(names, protocol)
