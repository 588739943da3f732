"""The metric of a folder of prediction files, read and matched on all cores."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfdist.widerface.ground_truth import GroundTruth, PictureTruth
from cfdist.widerface.metric import Floats, WiderFaceMetric
from cfdist.widerface.own import OwnMetrics
from cfdist.widerface.predictions import read_predictions_file
from cfdist.widerface.quirks import QuirkyMetric

# Below this many files, a second process costs more than it saves.
FILES_A_PROCESS = 400


class Wanted(NamedTuple):
    """What is to be computed beside the AP.

    Attributes:
        metrics: Further metrics, see `OwnMetrics`.
        quirks: Sets of quirks, see `quirk_sets`.
        protocol: The protocol that the quirks change.
    """

    metrics: Sequence[str] = ()
    quirks: Sequence[Sequence[str]] = ()
    protocol: str = "official"


JUST_AP = Wanted()


class Scores(NamedTuple):
    """The metric, the further ones, and one for each set of quirks; all of the same pictures."""

    metric: WiderFaceMetric
    own: OwnMetrics
    quirky: Sequence[QuirkyMetric]

    @classmethod
    def of(cls, wanted: Wanted) -> Scores:
        """Those without a picture."""
        quirky = [QuirkyMetric(names, wanted.protocol) for names in wanted.quirks]
        return cls(WiderFaceMetric(), OwnMetrics(wanted.metrics), quirky)

    def merge(self, other: Scores) -> None:
        """Take over the pictures of `other`."""
        self.metric.merge(other.metric)
        self.own.merge(other.own)
        for mine, theirs in zip(self.quirky, other.quirky, strict=True):
            mine.merge(theirs)

    def ap(self) -> dict[str, dict[str, float]]:
        """AP in [0, 1]: protocol, or quirks by their name -> difficulty -> AP."""
        found = self.metric.compute()
        for one in self.quirky:
            found |= one.compute()
        return found


def score_files(
    truth: GroundTruth, files: Mapping[str, Path | None], cores: int, wanted: Wanted = JUST_AP
) -> Scores:
    """Read prediction files and match them with the ground truth.

    Reading and matching hold the interpreter's lock, so forked processes share the files. The
    figures do not depend on the number of processes.

    Args:
        truth: The ground truth.
        files: Picture id -> prediction file; `None` for a picture in which nothing was found.
        cores: Processes to use at most.
        wanted: What is to be computed beside the AP.

    Returns:
        The metrics, with every picture of `files`.

    Raises:
        UserError: a file cannot be read, with its line, or a further metric fails.
    """
    score = functools.partial(_score, wanted=wanted)
    items = [(truth[id], path) for id, path in files.items()]
    workers = min(cores, len(files) // FILES_A_PROCESS)
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return score(items)
    found = Scores.of(wanted)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for part in pool.map(score, [items[i::workers] for i in range(workers)]):
            found.merge(part)
    return found


def _score(items: Sequence[tuple[PictureTruth, Path | None]], wanted: Wanted) -> Scores:
    scores = Scores.of(wanted)
    truths, paths = [truth for truth, _ in items], [path for _, path in items]
    pictures = _columns([_read(path) for path in paths])
    scores.metric.update_many(truths, *pictures)
    scores.own.update_many(truths, *pictures)
    for one in scores.quirky:
        seen = pictures if one.reads_all else _columns([_read(path, one) for path in paths])
        one.update_many(truths, *seen)
    return scores


def _read(path: Path | None, quirky: QuirkyMetric | None = None) -> tuple[Floats, Floats]:
    if path is None:
        return np.empty((0, 4)), np.empty(0)
    return read_predictions_file(path) if quirky is None else quirky.read(path)


def _columns(found: Sequence[tuple[Floats, Floats]]) -> tuple[list[Floats], list[Floats]]:
    return [boxes for boxes, _ in found], [scores for _, scores in found]
