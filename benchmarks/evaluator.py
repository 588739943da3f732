"""How long the WIDER FACE evaluation takes: cfdist's against a plain loop, in one run.

From the project's folder, with the full synthetic set of `../shared` (or `CFDIST_SHARED`):

    python benchmarks/evaluator.py

or with a folder of prediction files, whoever wrote them:

    python benchmarks/evaluator.py --predictions DIR --ground-truth DIR [--pictures N]

The plain evaluator works as the public Python ports do: a loop over predictions for the matching,
then for each picture a search at each of the 1000 thresholds, all of it once a difficulty. Both
get the same parsed arrays and one core; reading files is timed apart. cfdist's way is that of
`job=score`, timed three times, of which the median counts. The plain loop is timed once: it takes
half a minute or more for the full set.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from common import GROUND_TRUTH, prediction_folder

from cfdist.errors import UserError
from cfdist.widerface.ground_truth import (
    DIFFICULTIES,
    GroundTruth,
    PictureTruth,
    load_ground_truth,
)
from cfdist.widerface.metric import PROTOCOLS, Protocol, WiderFaceMetric
from cfdist.widerface.predictions import find_prediction_files, read_predictions_file

PRODUCT_RUNS = 3

Predictions = Mapping[str, tuple[np.ndarray, np.ndarray]]
Result = TypeVar("Result")


def product_evaluation(
    truth: GroundTruth, predictions: Predictions, protocol: Protocol
) -> dict[str, float]:
    """AP by difficulty, by cfdist."""
    metric = WiderFaceMetric()
    metric.update_many(
        [truth[picture_id] for picture_id in predictions],
        [boxes for boxes, _ in predictions.values()],
        [scores for _, scores in predictions.values()],
    )
    return metric.compute()[protocol.name]


def plain_evaluation(
    truth: GroundTruth, predictions: Predictions, protocol: Protocol
) -> dict[str, float]:
    """AP by difficulty, by loops over pictures, predictions and thresholds."""
    low = min(1.0, *(scores.min() for _, scores in predictions.values() if len(scores)))
    high = max(0.0, *(scores.max() for _, scores in predictions.values() if len(scores)))
    result = {}
    for row, difficulty in enumerate(DIFFICULTIES):
        counts, faces = np.zeros((1000, 2)), 0
        for picture_id, (boxes, scores) in predictions.items():
            picture = truth[picture_id]
            faces += np.count_nonzero(picture.counted[row])
            if len(scores) and len(picture.boxes):
                normalised = (scores - low) / (high - low)
                counts += plain_picture(picture, row, boxes, normalised, protocol.iou_threshold)
        result[difficulty] = plain_average_precision(counts, faces)
    return result


def plain_picture(
    picture: PictureTruth,
    row: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
) -> np.ndarray:
    """(1000, 2) of proposals and true positives of one picture at each threshold."""
    proposed, found_so_far = plain_matching(picture, row, boxes, iou_threshold)
    counts = np.zeros((1000, 2))
    for k in range(1000):
        kept = np.where(scores >= 1 - (k + 1) / 1000)[0]
        if len(kept):
            counts[k, 0] = len(np.where(proposed[: kept[-1] + 1])[0])
            counts[k, 1] = found_so_far[kept[-1]]
    return counts


def plain_matching(
    picture: PictureTruth, row: int, boxes: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each prediction: is it a proposal, and how many faces are found with it."""
    overlaps = plain_overlaps(boxes, picture.boxes)
    found = np.zeros(len(picture.boxes), bool)
    proposed = np.ones(len(boxes), bool)
    found_so_far = np.zeros(len(boxes))
    for index, overlap in enumerate(overlaps):
        best = overlap.argmax()
        if overlap[best] >= iou_threshold:
            if picture.counted[row, best]:
                found[best] = True
            else:
                proposed[index] = False
        found_so_far[index] = len(np.where(found)[0])
    return proposed, found_so_far


def plain_overlaps(predictions: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(p, g) IoU with the + 1 convention, a column at a time."""
    x1, y1, x2, y2 = *predictions[:, :2].T, *(predictions[:, :2] + predictions[:, 2:]).T
    overlaps = np.zeros((len(predictions), len(boxes)))
    for column, (bx1, by1, width, height) in enumerate(boxes):
        bx2, by2 = bx1 + width, by1 + height
        shared_width = np.minimum(x2, bx2) - np.maximum(x1, bx1) + 1
        shared_height = np.minimum(y2, by2) - np.maximum(y1, by1) + 1
        shared = np.where((shared_width > 0) & (shared_height > 0), shared_width * shared_height, 0)
        union = (x2 - x1 + 1) * (y2 - y1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1) - shared
        overlaps[:, column] = np.where(shared > 0, shared / np.where(shared > 0, union, 1), 0)
    return overlaps


def plain_average_precision(counts: np.ndarray, faces: int) -> float:
    """Area under the monotone envelope of the summed counts."""
    recall = [0.0, *(counts[:, 1] / max(faces, 1)), 1.0]
    precision = [0.0, *(counts[:, 1] / np.maximum(counts[:, 0], 1)), 0.0]
    for index in range(len(precision) - 1, 0, -1):
        precision[index - 1] = max(precision[index - 1], precision[index])
    steps = range(len(recall) - 1)
    return float(sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in steps))


def timed(function: Callable[..., Result], *arguments: object) -> tuple[Result, float]:
    """The function's result and the seconds it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def read_predictions(folder: Path, truth: GroundTruth, ids: list[str]) -> Predictions:
    """Predictions of `ids`; none where a picture has no file."""
    files = find_prediction_files(folder, truth).found
    nothing = np.empty((0, 4)), np.empty(0)
    return {i: read_predictions_file(files[i]) if i in files else nothing for i in ids}


def compare(truth: GroundTruth, predictions: Predictions, protocol: Protocol) -> None:
    """Run both evaluators and print their results and times."""
    runs = [timed(product_evaluation, truth, predictions, protocol) for _ in range(PRODUCT_RUNS)]
    product, product_seconds = runs[0][0], median(seconds for _, seconds in runs)
    plain, plain_seconds = timed(plain_evaluation, truth, predictions, protocol)
    print(f"\nprotocol {protocol.name}, IoU {protocol.iou_threshold}:")
    for name, result, seconds in (
        ("cfdist", product, product_seconds),
        ("plain loop", plain, plain_seconds),
    ):
        figures = "  ".join(f"{difficulty} {result[difficulty]:.9f}" for difficulty in DIFFICULTIES)
        print(f"  {name:<10}  {seconds:8.3f} s  {figures}")
    difference = max(abs(product[difficulty] - plain[difficulty]) for difficulty in DIFFICULTIES)
    print(f"  plain / cfdist {plain_seconds / product_seconds:.1f}, AP differs by {difference:.1e}")
    every = ", ".join(f"{seconds:.3f} s" for _, seconds in runs)
    print(f"  cfdist's time is the median of {every}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--predictions", type=Path, help="folder (default: the synthetic golden)")
    parser.add_argument("--ground-truth", type=Path, default=GROUND_TRUTH, help="four .mat files")
    parser.add_argument("--pictures", type=int, help="only the first N, for both (default: all)")
    parser.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        action="append",
        help="may be repeated (default: official)",
    )
    return parser.parse_args()


def main() -> None:
    """Read everything, then compare."""
    arguments = parse_arguments()
    if arguments.pictures is not None and arguments.pictures < 1:
        raise UserError(f"--pictures is {arguments.pictures}, it must be at least 1")
    truth, truth_seconds = timed(load_ground_truth, arguments.ground_truth)
    ids = list(truth)[: arguments.pictures]
    with prediction_folder(arguments.predictions, "predictions_synthetic") as folder:
        predictions, read_seconds = timed(read_predictions, folder, truth, ids)
    rows = sum(len(scores) for _, scores in predictions.values())
    print(f"{len(ids)} pictures, {rows} predictions")
    print(f"ground truth read in {truth_seconds:.3f} s, prediction files in {read_seconds:.3f} s")
    for protocol in PROTOCOLS.values():
        if protocol.name in (arguments.protocol or ["official"]):
            compare(truth, predictions, protocol)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
