"""What each habit of the public WIDER FACE evaluators does to the AP of one set of predictions.

From the project's folder, with the predictions of a RetinaFace in `../shared` (or `CFDIST_SHARED`):

    python benchmarks/evaluator_quirks.py

or with a folder of prediction files, whoever wrote them:

    python benchmarks/evaluator_quirks.py --predictions DIR --ground-truth DIR

It prints a table in Markdown: in its first row the official protocol's AP in percent, in the others
how many points a habit adds. The evaluator below is a plain loop whose habits can be chosen; with
none chosen it has to give cfdist's AP, or the script ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common import GROUND_TRUTH, prediction_folder

from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth, load_ground_truth
from cfdist.widerface.metric import (
    FALSE_POSITIVE,
    NOT_COUNTED,
    TRUE_POSITIVE,
    WiderFaceMetric,
    average_precision,
    first_thresholds,
    normalise,
    recall_and_precision,
)
from cfdist.widerface.predictions import find_prediction_files, read_predictions_file

Picture = tuple[PictureTruth, np.ndarray, np.ndarray]  # boxes x y w h and scores, highest first


@dataclass(frozen=True)
class Habits:
    """How an evaluator does things; the defaults are those of the benchmark's own.

    Attributes:
        iou: From which overlap on a box is right.
        pixel: What is added to x2 - x1 for a width.
        last_face: Of faces with equal overlap the last is taken, not the first.
        reverse_ties: Boxes of equal score are taken in the reverse order.
        scores: "set", "picture" or "none": over what scores are normalised.
        ignored_count: A box on a face that does not count is a false positive.
        repeats_drop: A second box on a face is not counted.
        every_score: A threshold at every score, in place of 1000 of them.
        eleven: The mean precision at 11 recalls, in place of the area.
    """

    iou: float = 0.5
    pixel: float = 1
    last_face: bool = False
    reverse_ties: bool = False
    scores: str = "set"
    ignored_count: bool = False
    repeats_drop: bool = False
    every_score: bool = False
    eleven: bool = False


def overlaps(boxes: np.ndarray, faces: np.ndarray, pixel: float) -> np.ndarray:
    """IoU of (p, 4) and (g, 4) x y w h, where a width is x2 - x1 + pixel."""
    start = np.maximum(boxes[:, None, :2], faces[None, :, :2])
    end = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (faces[:, :2] + faces[:, 2:])[None])
    shared = np.maximum(end - start + pixel, 0).prod(axis=2)
    areas = [(found[:, 2:] + pixel).prod(axis=1) for found in (boxes, faces)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def outcomes_of(picture: Picture, habits: Habits) -> np.ndarray:
    """(3, p): what each box is at each difficulty."""
    truth, boxes, scores = picture
    outcomes = np.full((len(DIFFICULTIES), len(scores)), FALSE_POSITIVE)
    if not len(truth.boxes):
        outcomes[:] = NOT_COUNTED
        return outcomes
    iou = overlaps(boxes, truth.boxes, habits.pixel)
    if habits.last_face:
        face = iou.shape[1] - 1 - iou[:, ::-1].argmax(axis=1)
    else:
        face = iou.argmax(axis=1)
    order = np.arange(len(scores))[:: -1 if habits.reverse_ties else 1]
    order = order[np.argsort(-scores[order], kind="stable")]
    for level, counted in enumerate(truth.counted):
        taken: set[int] = set()
        for one in order[iou.max(axis=1)[order] >= habits.iou]:
            if not counted[face[one]]:
                outcomes[level, one] = FALSE_POSITIVE if habits.ignored_count else NOT_COUNTED
            elif face[one] not in taken:
                taken.add(face[one])
                outcomes[level, one] = TRUE_POSITIVE
            elif habits.repeats_drop:
                outcomes[level, one] = NOT_COUNTED
    return outcomes


def evaluate(pictures: list[Picture], habits: Habits) -> list[float]:
    """AP of each difficulty."""
    scores = np.concatenate([found for _, _, found in pictures])
    if habits.scores == "set":
        scores = normalise(scores)
    elif habits.scores == "picture":
        scores = np.concatenate([normalise(found) for _, _, found in pictures])
    outcomes = np.concatenate([outcomes_of(picture, habits) for picture in pictures], axis=1)
    faces = sum(truth.counted.sum(axis=1) for truth, _, _ in pictures)
    found = []
    for row, count in zip(outcomes, faces, strict=True):
        if habits.every_score:
            ordered = row[np.argsort(-scores, kind="stable")]
            hits = np.cumsum(ordered == TRUE_POSITIVE)
            recall = hits / count
            precision = hits / np.maximum(np.cumsum(ordered != NOT_COUNTED), 1)
        else:
            recall, precision = recall_and_precision(first_thresholds(scores), row, int(count))
        if habits.eleven:
            levels = np.linspace(0, 1, 11)
            best = [precision[recall >= level].max(initial=0) for level in levels]
            found.append(float(np.mean(best)))
        else:
            found.append(average_precision(recall, precision))
    return found


def changed(pictures: list[Picture], box, score=lambda scores: scores) -> list[Picture]:
    """The pictures with other boxes and scores, highest first again."""
    result = []
    for truth, boxes, scores in pictures:
        written = score(scores)
        order = np.argsort(-written, kind="stable")
        result.append((truth, box(boxes)[order], written[order]))
    return result


def rounded_corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes whose corners are cut to whole pixels, as `int()` does."""
    start, end = boxes[:, :2].astype(int), (boxes[:, :2] + boxes[:, 2:]).astype(int)
    return np.concatenate([start, end - start], axis=1).astype(float)


def wider(boxes: np.ndarray) -> np.ndarray:
    """Boxes whose sizes are one more."""
    return boxes + np.array([0, 0, 1, 1])


def rows(pictures: list[Picture]) -> list[tuple[str, list[float]]]:
    """Each habit with the points that it adds."""
    plain = Habits()
    base = evaluate(pictures, plain)
    metric = WiderFaceMetric()
    metric.update_many(*map(list, zip(*pictures, strict=True)))
    if not np.allclose(base, list(metric.compute()["official"].values()), rtol=0, atol=1e-12):
        raise SystemExit(f"{base} is not cfdist's own AP, {metric.compute()['official']}")
    same = lambda boxes: boxes  # noqa: E731
    table = [("official protocol, AP in %", [100 * value for value in base])]

    def add(name: str, found: list[float], reference: list[float] = base) -> None:
        points = [100 * (a - b) for a, b in zip(found, reference, strict=True)]
        table.append((name, points))

    add("IoU 0.4 in place of 0.5", evaluate(pictures, replace(plain, iou=0.4)))
    add("widths without the + 1 pixel in the IoU", evaluate(pictures, replace(plain, pixel=0)))
    add("sizes written one pixel too large", evaluate(changed(pictures, wider), plain))
    tenth = changed(pictures, lambda boxes: wider(boxes).round(1), lambda s: s.round(3))
    add("as the guide's script writes (+ 1, 1 decimal, score 3)", evaluate(tenth, plain))
    add("the same, at IoU 0.4", evaluate(tenth, replace(plain, iou=0.4)))
    add("corners cut to whole pixels", evaluate(changed(pictures, rounded_corners), plain))
    coarse = changed(pictures, same, lambda s: s.round(2))
    add("scores of 2 decimals", evaluate(coarse, plain))
    one = [(truth, boxes[:1], scores[:1]) for truth, boxes, scores in pictures]
    add("the script's constant count 1 believed: one box a picture", evaluate(one, plain))
    sure = [(truth, boxes[s >= 0.5], s[s >= 0.5]) for truth, boxes, s in pictures]
    filled = [picture for picture in sure if len(picture[2])]
    cut = evaluate(sure, plain)
    add("boxes below 0.5 not written", cut)
    add("... and pictures without a box left out, not empty", evaluate(filled, plain), cut)
    add("equal overlap: the last face", evaluate(pictures, replace(plain, last_face=True)))
    add("equal score: in reverse order", evaluate(pictures, replace(plain, reverse_ties=True)))
    add("equal score (2 decimals): in reverse", evaluate(coarse, replace(plain, reverse_ties=True)),
        evaluate(coarse, plain))  # fmt: skip
    add("scores not normalised", evaluate(pictures, replace(plain, scores="none")))
    add("scores normalised in each picture", evaluate(pictures, replace(plain, scores="picture")))
    add("boxes on ignored faces are wrong", evaluate(pictures, replace(plain, ignored_count=True)))
    add(
        "a second box on a face is not counted",
        evaluate(pictures, replace(plain, repeats_drop=True)),
    )
    add("a threshold at every score", evaluate(pictures, replace(plain, every_score=True)))
    add("mean of 11 precisions (VOC 2007)", evaluate(pictures, replace(plain, eleven=True)))
    return table


def read(folder: Path, ground_truth: Path) -> list[Picture]:
    """The pictures that have a prediction file."""
    truth: Mapping[str, PictureTruth] = load_ground_truth(ground_truth)
    files = find_prediction_files(folder, truth).found
    return [(truth[id], *read_predictions_file(path)) for id, path in files.items()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--ground-truth", type=Path, default=GROUND_TRUTH)
    arguments = parser.parse_args()
    with prediction_folder(arguments.predictions, "predictions_retinaface_mnet025") as folder:
        pictures = read(folder, arguments.ground_truth)
    print(f"{len(pictures)} pictures, {sum(len(scores) for _, _, scores in pictures)} boxes\n")
    print("| habit | easy | medium | hard |\n|---|---|---|---|")
    for number, (name, values) in enumerate(rows(pictures)):
        form = "{:+.2f}" if number else "{:.2f}"
        print(f"| {name} | {' | '.join(form.format(value + 0.0) for value in values)} |")


if __name__ == "__main__":
    main()
