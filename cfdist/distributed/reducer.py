"""The actor that gathers what the devices find: journal, prediction files and metric."""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from cfdist.detections import Detections, as_table, from_arrow, to_arrow
from cfdist.distributed.events import Event, Events
from cfdist.distributed.journal import Journal, RunIdentity
from cfdist.files import (
    DISK_IS_FULL,
    JOURNAL,
    PARQUET,
    PREDICTIONS,
    Sink,
    atomic_write,
    disk_as_user_error,
    write_bytes,
)
from cfdist.machine import peak_memory, reset_peak_memory
from cfdist.monitoring.monitor import AP
from cfdist.widerface.ground_truth import PictureTruth
from cfdist.widerface.manifest import picture_and_pass
from cfdist.widerface.matches import with_matches
from cfdist.widerface.metric import Matched, Reach, WiderFaceMetric
from cfdist.widerface.own import OwnMetrics
from cfdist.widerface.predictions import STYLES, prediction_text, rows

# Pictures that are held at once when the final file is written.
_ROW_GROUP = 512

# The AP so far is computed so often, seconds, but more seldom if that takes more than this part of
# the time.
_AP_SECONDS, _AP_SHARE = 10.0, 0.005

# The folder of further passes among the prediction files.
_THROWN_AWAY = ".further_passes"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What a finished run found.

    Attributes:
        ap: Protocol name -> difficulty -> average precision, a fraction.
        failures: (picture id, reason), by id, of the pictures whose first pass failed.
        damaged: (picture id, what is wrong with the file), by id, used or not.
        seconds: What the evaluation and the last files took.
        peak_memory: Most resident memory that the process had, bytes.
        reach: How far the detections reach; `None` if nobody asked.
        matched: What became of each detection; `None` if nobody asked.
        events: What the journal had to drop when the run went on.
        metrics: Figures of other people's metrics: class -> name -> value.
    """

    ap: dict[str, dict[str, float]]
    failures: tuple[tuple[str, str], ...]
    damaged: tuple[tuple[str, str], ...]
    seconds: float
    peak_memory: int
    reach: Reach | None = None
    matched: Matched | None = None
    events: tuple[Event, ...] = ()
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:
    """What a run begins with: the work items that its journal holds.

    Attributes:
        done: Their keys.
        failed: So many of them have failed.
    """

    done: set[str]
    failed: int


class Reducer:
    """Gathers the devices' detections of a run; the order of their arrival changes nothing.

    `open` comes first; in a sweep one object serves one run after the other.

    Only the first pass over the pictures counts. Further passes exist for longer measurements:
    their detections are scored and written in the same way, and then thrown away.

    Attributes:
        done: Keys of the work items that are on disk, failed ones included.
    """

    def open(
        self,
        truth: Mapping[str, PictureTruth],
        order: tuple[str, ...],
        output: Path,
        identity: RunIdentity,
        style: str,
        metrics: tuple[str, ...] = (),
    ) -> Begun:
        """Begin a run, or continue it with what its journal holds, which is returned.

        `order` holds the picture ids in the order of the final files. The style is a key of
        `STYLES`; boxes are rounded as they are written before they are scored. For the metrics
        see `OwnMetrics`.

        Raises:
            UserError: the journal is that of another run, or the disk is full or does not work, or
                a metric cannot be made.
        """
        reset_peak_memory()
        self._truth = truth
        self._order = order
        self._output = output
        self._style = STYLES[style]
        self._metric = WiderFaceMetric()
        self._own = OwnMetrics(metrics)
        self._failures: dict[str, str] = {}
        self._damaged: dict[str, str] = {}
        self.done: set[str] = set()
        self._failed_items = 0
        self._lock = threading.Lock()
        self._partial = output / f".{PREDICTIONS}.partial"
        self._folders: set[Path] = set()
        self._unwritten: dict[str, Detections] = {}
        self._events = Events()
        self._next_ap = time.monotonic() + _AP_SECONDS
        with disk_as_user_error(output):
            self._journal = Journal(output / JOURNAL, identity)
            for cut in self._journal.cuts:
                self._events.note("journal_cut", str(cut), host=platform.node())
            if self._partial.exists():  # its files may be of pictures that were dropped
                shutil.rmtree(self._partial)
            for table in self._journal.read():
                self._take_in(from_arrow(table))
        self._take_in(from_arrow(to_arrow([])))  # imports now what would be imported late
        return Begun({*self.done}, self._failed_items)

    def add(self, detections: pa.Table) -> AP | None:
        """Take a device's detections; returns once they are on disk. Known pictures are dropped.

        Now and then it returns the AP so far.

        A picture is done when the journal holds it, it is scored, and its file is written. A
        picture that cannot be scored has failed. The ids are keys of work items.

        Raises:
            UserError: the disk is full or does not work.
        """
        with self._lock, disk_as_user_error(self._output):
            given, found = from_arrow(detections), dict[str, Detections]()
            for one in given:
                if one.id not in self.done and one.id not in self._unwritten:
                    found.setdefault(one.id, _scorable(one))
            if found:
                is_same = all(found.get(one.id) is one for one in given)
                self._append(detections if is_same else to_arrow([*found.values()]))
            # What the journal holds counts, should the devices find something else next time.
            self._unwritten |= found
            self._take_in([*self._unwritten.values()])
            self._unwritten.clear()
            return self._ap_so_far()

    def _ap_so_far(self) -> AP | None:
        """The AP of the pictures that are done, if its time has come."""
        start = time.monotonic()
        if start < self._next_ap or not len(self._metric):
            return None
        ap = self._metric.compute()
        now = time.monotonic()
        self._next_ap = now + max(_AP_SECONDS, (now - start) / _AP_SHARE)
        return ap

    def _append(self, table: pa.Table) -> None:
        """Append to the journal; a disk that fails once gets a second try, in a new segment."""
        try:
            self._journal.append(table)
        except OSError as error:
            if error.errno in DISK_IS_FULL:
                raise
            log.warning("the journal failed once: %s", error)
            self._journal.append(table)

    def _take_in(self, detections: list[Detections]) -> None:
        """Score pictures that the journal holds, and write their files."""
        # The first counts of a picture that is there twice.
        new = {one.id: one for one in reversed(detections) if one.id not in self.done}
        passes: dict[int, dict[str, Detections]] = {1: {}}
        for key, found in new.items():
            id, number = picture_and_pass(key)
            passes.setdefault(number, {})[id] = found
        for number, pictures in passes.items():
            # The AP is that of the pictures that could be used.
            usable = {id: found for id, found in pictures.items() if found.error is None}
            if number == 1:
                self._record(usable, (self._own, self._metric), self._partial)
            else:
                self._record(usable, (WiderFaceMetric(),), self._partial / _THROWN_AWAY)
        self._failures |= {id: found.error for id, found in passes[1].items() if found.error}
        self._damaged |= {id: found.damage for id, found in passes[1].items() if found.damage}
        self._failed_items += sum(found.error is not None for found in new.values())
        self.done |= new.keys()

    def _record(
        self,
        found: dict[str, Detections],
        metrics: Sequence[WiderFaceMetric | OwnMetrics],
        folder: Path,
    ) -> None:
        """Write the prediction files of pictures, by id, into a folder, and score the pictures."""
        # The rounded numbers of the files are scored, so that the files give the same AP.
        tables = {id: rows(one.boxes, one.scores, self._style) for id, one in found.items()}
        for id, table in tables.items():
            event = folder / id.partition("/")[0]
            if event not in self._folders:
                event.mkdir(parents=True, exist_ok=True)
                self._folders.add(event)
            write_bytes(f"{folder}/{id}.txt", prediction_text(id, table, self._style).encode())
        # Last: a metric takes a picture once, while files can be written again.
        for metric in metrics:
            metric.update_many(
                [self._truth[id] for id in tables],
                [table[:, :4] for table in tables.values()],
                [table[:, 4] for table in tables.values()],
            )

    def finish(self) -> Evaluation:
        """Compute the APs and bring the final files into place.

        The journal stays until the results are written: a run that is killed in between goes on.

        Raises:
            UserError: the disk is full or does not work, or it has damaged the journal meanwhile.
        """
        start = time.perf_counter()
        with disk_as_user_error(self._output):
            self._journal.close()
            self._write_parquet()
            self._partial.mkdir(parents=True, exist_ok=True)
            for folder in (self._partial / _THROWN_AWAY, self._output / PREDICTIONS):
                if folder.exists():
                    shutil.rmtree(folder)
            os.replace(self._partial, self._output / PREDICTIONS)
        ap, reach = self._metric.compute(), self._metric.reach()
        failures, damaged = (
            tuple(sorted(found.items())) for found in (self._failures, self._damaged)
        )
        seconds = time.perf_counter() - start
        return Evaluation(
            ap,
            failures,
            damaged,
            seconds,
            peak_memory(),
            reach,
            self._metric.matched(),
            tuple(self._events),
            self._own.compute(),
        )

    def _write_parquet(self) -> None:
        """Write all pictures in order, from the journal."""
        import pyarrow.parquet as pq

        # The journal is mapped into memory, not read; only the places of its rows are held.
        places: dict[str, tuple[pa.Buffer, int]] = {}
        for content in self._journal.contents():
            for row, key in enumerate(as_table(content).column("id").to_pylist()):
                places.setdefault(key, (content, row))  # the first of a picture that is there twice
        if lost := self.done - places.keys():
            reason = f"the journal has lost {len(lost)} pictures while the run went on"
            raise OSError(errno.EIO, reason, str(self._output / JOURNAL))
        found = [places[id] for id in self._order if id in places]
        matched = self._metric.matched()
        schema = with_matches(to_arrow([]), matched).schema
        with (
            atomic_write(self._output / PARQUET) as temporary,
            Sink(temporary) as sink,
            pq.ParquetWriter(pa.PythonFile(sink), schema, compression="zstd") as writer,
        ):
            for start in range(0, len(found), _ROW_GROUP):
                group = found[start : start + _ROW_GROUP]
                tables = {content.address: as_table(content) for content, _ in group}
                slices = [tables[content.address].slice(row, 1) for content, row in group]
                rows = pa.concat_tables(slices).combine_chunks()
                writer.write_table(with_matches(rows, matched))


def _scorable(found: Detections) -> Detections:
    """The detections of a picture, or a failure if no protocol can score them."""
    if np.isfinite(found.boxes).all() and np.isfinite(found.scores).all():
        return found
    return Detections(found.id, error="a box or a score is not a finite number")
