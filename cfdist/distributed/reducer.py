"""The one actor that gathers: decoding, journal, prediction files and metric."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfdist.decode import decode_boxes, nms
from cfdist.detections import Detections, to_arrow
from cfdist.distributed.device import PeaksBatch
from cfdist.distributed.journal import Journal
from cfdist.files import atomic_write
from cfdist.model import ModelSpec
from cfdist.run_folder import JOURNAL, PARQUET, PREDICTIONS
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import STYLES, prediction_text, rows


@dataclass(frozen=True)
class Evaluation:
    """What a finished run found.

    Attributes:
        ap: Protocol name -> difficulty -> average precision, a fraction.
        failures: (picture id, reason), by id.
        seconds: What the evaluation and the last files took.
    """

    ap: dict[str, dict[str, float]]
    failures: tuple[tuple[str, str], ...]
    seconds: float


def decode_detections(result: PeaksBatch, spec: ModelSpec) -> list[Detections]:
    """A device's peaks as detections in picture pixels, suppression included."""
    decoded = decode_boxes(result.peaks, spec.convention, result.sizes, (spec.width, spec.height))
    detections = []
    for i, id in enumerate(result.ids):
        scores = result.peaks.score[i]
        keep = scores > 0
        if not np.isfinite(decoded.boxes[i][keep]).all():
            detections.append(Detections(id, error="the model's outputs are not finite numbers"))
            continue
        if spec.nms is not None:
            keep = nms(decoded.boxes[i], scores, spec.nms)
        width, height = map(int, result.sizes[i])
        detections.append(
            Detections(
                id, decoded.boxes[i][keep], scores[keep], decoded.landmarks[i][keep], width, height
            )
        )
    detections += [Detections(id, error=reason) for id, reason in result.failures]
    return detections


class Reducer:
    """Gathers the devices' results in any order; what it ends with does not depend on it."""

    def __init__(
        self,
        spec: ModelSpec,
        truth: GroundTruth,
        order: tuple[str, ...],
        output: Path,
        fingerprint: str,
        style: str,
    ) -> None:
        """Open the run's journal and take in what an earlier start left.

        Args:
            spec: How peaks become boxes.
            truth: The ground truth.
            order: The run's picture ids in the order of the final files.
            output: The run's folder.
            fingerprint: What the run is, for the journal.
            style: A key of `STYLES`: how boxes are written, and so rounded before they are scored.
        """
        self._spec = spec
        self._truth = truth
        self._order = order
        self._output = output
        self._style = style
        self._metric = WiderFaceMetric()
        self._failures: dict[str, str] = {}
        self._done: set[str] = set()
        self._lock = threading.Lock()
        self._partial = output / f".{PREDICTIONS}.partial"
        self._partial.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(output / JOURNAL, fingerprint)
        for detections in self._journal.read():
            self._take_in(detections)

    def done(self) -> set[str]:
        """Ids of the pictures that are on disk, failed ones included."""
        return self._done

    def add(self, result: PeaksBatch) -> None:
        """Take a device's result; returns once it is on disk. What is known already is dropped."""
        detections = decode_detections(result, self._spec)
        with self._lock:
            new = [d for d in detections if d.id not in self._done]
            if new:
                self._journal.append(new)
                self._take_in(new)

    def _take_in(self, detections: list[Detections]) -> None:
        for found in detections:
            if found.id in self._done:
                continue
            self._done.add(found.id)
            if found.error is not None:
                self._failures[found.id] = found.error
                continue  # the AP is that of the pictures that could be used
            # What is scored is what is written, so that the files give the same AP.
            table = rows(found.boxes, found.scores, STYLES[self._style])
            self._metric.update(self._truth[found.id], table[:, :4], table[:, 4])
            self._write_text(found.id, table)

    def _write_text(self, id: str, table: np.ndarray) -> None:
        path = self._partial / f"{id}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(prediction_text(id, table, STYLES[self._style]), encoding="utf-8")

    def finish(self) -> Evaluation:
        """Compute the APs and bring the final files into place.

        The journal stays until the results are written: a run that is killed in between goes on.
        """
        start = time.perf_counter()
        self._journal.close()
        self._write_parquet()
        shutil.rmtree(self._output / PREDICTIONS, ignore_errors=True)
        os.replace(self._partial, self._output / PREDICTIONS)
        ap = self._metric.compute()
        return Evaluation(ap, tuple(sorted(self._failures.items())), time.perf_counter() - start)

    def _write_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: dict[str, Detections] = {}
        for detections in self._journal.read():
            for found in detections:
                rows.setdefault(found.id, found)
        table = to_arrow([rows[id] for id in self._order if id in rows])
        assert isinstance(table, pa.Table)
        with atomic_write(self._output / PARQUET) as temporary:
            pq.write_table(table, temporary, compression="zstd")
