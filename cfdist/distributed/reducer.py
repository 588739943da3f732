"""The one actor that gathers: journal, prediction files and metric."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cfdist.detections import Detections, from_arrow, to_arrow
from cfdist.distributed.journal import Journal
from cfdist.files import atomic_write
from cfdist.machine import peak_memory
from cfdist.run_folder import JOURNAL, PARQUET, PREDICTIONS
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import picture_of
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import STYLES, prediction_text, rows

# Pictures that are held at once when the final file is written.
_ROW_GROUP = 512


@dataclass(frozen=True)
class Evaluation:
    """What a finished run found.

    Attributes:
        ap: Protocol name -> difficulty -> average precision, a fraction.
        failures: (picture id, reason), by id.
        seconds: What the evaluation and the last files took.
        peak_memory: Most resident memory that the process had, bytes.
    """

    ap: dict[str, dict[str, float]]
    failures: tuple[tuple[str, str], ...]
    seconds: float
    peak_memory: int


class Reducer:
    """Gathers the devices' results in any order; what it ends with does not depend on it."""

    def __init__(
        self,
        truth: GroundTruth,
        order: tuple[str, ...],
        output: Path,
        fingerprint: str,
        style: str,
    ) -> None:
        """Open the run's journal and take in what an earlier start left.

        Args:
            truth: The ground truth.
            order: The run's picture ids in the order of the final files.
            output: The run's folder.
            fingerprint: What the run is, for the journal.
            style: A key of `STYLES`: how boxes are written, and so rounded before they are scored.
        """
        self._truth = truth
        self._order = order
        self._output = output
        self._style = style
        self._metric = WiderFaceMetric()
        self._failures: dict[str, str] = {}
        self._done: set[str] = set()
        self._lock = threading.Lock()
        self._partial = output / f".{PREDICTIONS}.partial"
        self._folders: set[str] = set()
        self._journal = Journal(output / JOURNAL, fingerprint)
        for table in self._journal.read():
            self._take_in(from_arrow(table))
        self._take_in(from_arrow(to_arrow([])))  # what is imported late is there in time

    def done(self) -> set[str]:
        """Keys of the work items that are on disk, failed ones included."""
        return self._done

    def add(self, detections: pa.Table) -> None:
        """Take a device's result; returns once it is on disk. What is known already is dropped.

        Args:
            detections: As `cfdist.detections.to_arrow` makes it; ids are keys of work items.
        """
        with self._lock:
            is_new = [key not in self._done for key in detections.column("id").to_pylist()]
            if not all(is_new):
                detections = detections.filter(pa.array(is_new, pa.bool_()))
            if len(detections):
                self._journal.append(detections)
                self._take_in(from_arrow(detections))

    def _take_in(self, detections: list[Detections]) -> None:
        new = [found for found in detections if found.id not in self._done]
        self._done.update(found.id for found in new)
        self._failures |= {found.id: found.error for found in new if found.error is not None}
        # The AP is that of the pictures that could be used.
        usable = [found for found in new if found.error is None]
        # What is scored is what is written, so that the files give the same AP.
        style = STYLES[self._style]
        tables = [rows(found.boxes, found.scores, style) for found in usable]
        ids = [picture_of(found.id) for found in usable]
        self._metric.update_many(
            [self._truth[id] for id in ids],
            [table[:, :4] for table in tables],
            [table[:, 4] for table in tables],
            replace=True,  # by a further pass over the pictures, with the same
        )
        for id, table in zip(ids, tables, strict=True):
            self._write_text(id, prediction_text(id, table, style))

    def _write_text(self, id: str, text: str) -> None:
        event = id.partition("/")[0]
        if event not in self._folders:
            (self._partial / event).mkdir(parents=True, exist_ok=True)
            self._folders.add(event)
        with open(f"{self._partial}/{id}.txt", "wb") as file:
            file.write(text.encode())

    def finish(self) -> Evaluation:
        """Compute the APs and bring the final files into place.

        The journal stays until the results are written: a run that is killed in between goes on.
        """
        start = time.perf_counter()
        self._journal.close()
        self._write_parquet()
        shutil.rmtree(self._output / PREDICTIONS, ignore_errors=True)
        self._partial.mkdir(parents=True, exist_ok=True)
        os.replace(self._partial, self._output / PREDICTIONS)
        ap = self._metric.compute()
        failures = tuple(sorted((picture_of(key), why) for key, why in self._failures.items()))
        return Evaluation(ap, failures, time.perf_counter() - start, peak_memory())

    def _write_parquet(self) -> None:
        """All pictures in order, from the journal; of repeated passes the first."""
        import pyarrow.parquet as pq

        position = {id: i for i, id in enumerate(self._order)}
        # The journal is mapped into memory, not read: what is held here is where rows are.
        tables = list(self._journal.read())
        places: dict[str, tuple[int, int]] = {}
        for number, table in enumerate(tables):
            for row, key in enumerate(table.column("id").to_pylist()):
                if key in position:
                    places.setdefault(key, (number, row))
        found = sorted(places, key=position.__getitem__)
        with (
            atomic_write(self._output / PARQUET) as temporary,
            pq.ParquetWriter(temporary, to_arrow([]).schema, compression="zstd") as writer,
        ):
            for start in range(0, len(found), _ROW_GROUP):
                group = [places[id] for id in found[start : start + _ROW_GROUP]]
                slices = [tables[number].slice(row, 1) for number, row in group]
                writer.write_table(pa.concat_tables(slices).combine_chunks())
