"""The metric of a folder of prediction files, read and matched on all cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import read_predictions_file

# Below so many files a second process costs more than it saves.
FILES_A_PROCESS = 400


def score_files(truth: GroundTruth, files: Mapping[str, Path], cores: int) -> WiderFaceMetric:
    """Read prediction files and match them with the ground truth.

    Reading and matching hold the interpreter's lock, so they are shared between forked processes
    (which have the ground truth already); the figures do not depend on how many.

    Args:
        truth: The ground truth.
        files: Picture id -> prediction file.
        cores: Processes to use at most.

    Returns:
        The metric, with every picture of `files`.

    Raises:
        UserError: a file cannot be read, with its line.
    """
    workers = min(cores, len(files) // FILES_A_PROCESS)
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return _score(truth, list(files.items()))
    items = list(files.items())
    shares = [items[i::workers] for i in range(workers)]
    metric = WiderFaceMetric()
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_set_truth,
        initargs=(truth,),
    ) as pool:
        for part in pool.map(_score_share, shares):
            metric.merge(part)
    return metric


_truth = GroundTruth(())  # of a worker process


def _set_truth(truth: GroundTruth) -> None:
    global _truth
    _truth = truth


def _score_share(items: list[tuple[str, Path]]) -> WiderFaceMetric:
    return _score(_truth, items)


def _score(truth: GroundTruth, items: list[tuple[str, Path]]) -> WiderFaceMetric:
    metric = WiderFaceMetric()
    found = [read_predictions_file(path) for _, path in items]
    metric.update_many(
        [truth[id] for id, _ in items],
        [boxes for boxes, _ in found],
        [scores for _, scores in found],
    )
    return metric
