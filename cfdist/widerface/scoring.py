"""The metric of a folder of prediction files, read and matched on all cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from cfdist.widerface.ground_truth import GroundTruth, PictureTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import read_predictions_file

# Below this many files, a second process costs more than it saves.
FILES_A_PROCESS = 400


def score_files(
    truth: GroundTruth, files: Mapping[str, Path | None], cores: int
) -> WiderFaceMetric:
    """Read prediction files and match them with the ground truth.

    Reading and matching hold the interpreter's lock, so forked processes share the files. The
    figures do not depend on the number of processes.

    Args:
        truth: The ground truth.
        files: Picture id -> prediction file; `None` for a picture in which nothing was found.
        cores: Processes to use at most.

    Returns:
        The metric, with every picture of `files`.

    Raises:
        UserError: a file cannot be read, with its line.
    """
    items = [(truth[id], path) for id, path in files.items()]
    workers = min(cores, len(files) // FILES_A_PROCESS)
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return _score(items)
    metric = WiderFaceMetric()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for part in pool.map(_score, [items[i::workers] for i in range(workers)]):
            metric.merge(part)
    return metric


def _score(items: Sequence[tuple[PictureTruth, Path | None]]) -> WiderFaceMetric:
    metric = WiderFaceMetric()
    nothing = np.empty((0, 4)), np.empty(0)
    found = [nothing if path is None else read_predictions_file(path) for _, path in items]
    truths = [truth for truth, _ in items]
    metric.update_many(truths, [boxes for boxes, _ in found], [scores for _, scores in found])
    return metric
