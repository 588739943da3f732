"""The metric of a folder of prediction files, read and matched on all cores."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from cfdist.widerface.ground_truth import GroundTruth, PictureTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.own import OwnMetrics
from cfdist.widerface.predictions import read_predictions_file

# Below this many files, a second process costs more than it saves.
FILES_A_PROCESS = 400


def score_files(
    truth: GroundTruth,
    files: Mapping[str, Path | None],
    cores: int,
    metrics: Sequence[str] = (),
) -> tuple[WiderFaceMetric, OwnMetrics]:
    """Read prediction files and match them with the ground truth.

    Reading and matching hold the interpreter's lock, so forked processes share the files. The
    figures do not depend on the number of processes.

    Args:
        truth: The ground truth.
        files: Picture id -> prediction file; `None` for a picture in which nothing was found.
        cores: Processes to use at most.
        metrics: Further ones, see `OwnMetrics`.

    Returns:
        The metric and the further ones, with every picture of `files`.

    Raises:
        UserError: a file cannot be read, with its line, or a further metric fails.
    """
    score = functools.partial(_score, metrics=metrics)
    items = [(truth[id], path) for id, path in files.items()]
    workers = min(cores, len(files) // FILES_A_PROCESS)
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return score(items)
    metric, own = WiderFaceMetric(), OwnMetrics(metrics)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for part, own_part in pool.map(score, [items[i::workers] for i in range(workers)]):
            metric.merge(part)
            own.merge(own_part)
    return metric, own


def _score(
    items: Sequence[tuple[PictureTruth, Path | None]], metrics: Sequence[str]
) -> tuple[WiderFaceMetric, OwnMetrics]:
    metric, own = WiderFaceMetric(), OwnMetrics(metrics)
    nothing = np.empty((0, 4)), np.empty(0)
    found = [nothing if path is None else read_predictions_file(path) for _, path in items]
    truths = [truth for truth, _ in items]
    pictures = truths, [boxes for boxes, _ in found], [scores for _, scores in found]
    metric.update_many(*pictures)
    own.update_many(*pictures)
    return metric, own
