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
from cfdist.widerface.manifest import picture_and_pass
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import STYLES, prediction_text, rows

# Pictures that are held at once when the final file is written.
_ROW_GROUP = 512

# Among the prediction files: those of further passes.
_THROWN_AWAY = ".further_passes"


@dataclass(frozen=True)
class Evaluation:
    """What a finished run found.

    Attributes:
        ap: Protocol name -> difficulty -> average precision, a fraction.
        failures: (picture id, reason), by id, of the pictures whose first pass failed.
        seconds: What the evaluation and the last files took.
        peak_memory: Most resident memory that the process had, bytes.
    """

    ap: dict[str, dict[str, float]]
    failures: tuple[tuple[str, str], ...]
    seconds: float
    peak_memory: int


class Reducer:
    """Gathers the devices' results in any order; what it ends with does not depend on it.

    Of repeated passes over the pictures, the first counts. The others are there for the clock: what
    they find is scored and written just so, and then thrown away.
    """

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
        self._folders: set[Path] = set()
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
        new: dict[str, Detections] = {}
        for found in detections:
            if found.id not in self._done:
                new.setdefault(found.id, found)
        self._done |= new.keys()
        passes: dict[int, dict[str, Detections]] = {1: {}}
        for key, found in new.items():
            id, turn = picture_and_pass(key)
            passes.setdefault(turn, {})[id] = found
        self._failures |= {id: found.error for id, found in passes[1].items() if found.error}
        for turn, pictures in passes.items():
            # The AP is that of the pictures that could be used.
            usable = {id: found for id, found in pictures.items() if found.error is None}
            if turn == 1:
                self._record(usable, self._metric, self._partial)
            else:
                self._record(usable, WiderFaceMetric(), self._partial / _THROWN_AWAY)

    def _record(self, found: dict[str, Detections], metric: WiderFaceMetric, folder: Path) -> None:
        """Score pictures, by id, and write their prediction files into a folder."""
        # What is scored is what is written, so that the files give the same AP.
        style = STYLES[self._style]
        tables = {id: rows(one.boxes, one.scores, style) for id, one in found.items()}
        metric.update_many(
            [self._truth[id] for id in tables],
            [table[:, :4] for table in tables.values()],
            [table[:, 4] for table in tables.values()],
        )
        for id, table in tables.items():
            event = folder / id.partition("/")[0]
            if event not in self._folders:
                event.mkdir(parents=True, exist_ok=True)
                self._folders.add(event)
            with open(f"{folder}/{id}.txt", "wb") as file:
                file.write(prediction_text(id, table, style).encode())

    def finish(self) -> Evaluation:
        """Compute the APs and bring the final files into place.

        The journal stays until the results are written: a run that is killed in between goes on.
        """
        start = time.perf_counter()
        self._journal.close()
        self._write_parquet()
        shutil.rmtree(self._output / PREDICTIONS, ignore_errors=True)
        shutil.rmtree(self._partial / _THROWN_AWAY, ignore_errors=True)
        self._partial.mkdir(parents=True, exist_ok=True)
        os.replace(self._partial, self._output / PREDICTIONS)
        ap = self._metric.compute()
        failures = tuple(sorted(self._failures.items()))
        return Evaluation(ap, failures, time.perf_counter() - start, peak_memory())

    def _write_parquet(self) -> None:
        """All pictures in order, from the journal."""
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
