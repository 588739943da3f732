"""What is done, on disk before it is counted as done, so that an interrupted run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from cfdist.errors import UserError
from cfdist.files import fsync, write_text
from cfdist.run_folder import JOURNAL_IDENTITY

_SEGMENT = "segment-{:04d}.arrow"


class Journal:
    """An append-only folder of Arrow streams, one segment for each start of the run.

    A segment that a killed process left is read up to its last whole batch.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Open or make the journal of the run that `fingerprint` identifies.

        Raises:
            UserError: the folder holds the journal of another run.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        identity = folder / JOURNAL_IDENTITY
        if identity.exists():
            check_identity(folder, fingerprint)
        else:
            write_text(identity, json.dumps({"fingerprint": fingerprint}) + "\n")
        self._file = None
        self._writer: pa.RecordBatchStreamWriter | None = None

    def read(self) -> Iterator[pa.Table]:
        """What earlier writes left, batch by batch, in memory that is mapped from the files."""
        for segment in sorted(self.folder.glob("segment-*.arrow")):
            yield from _read_segment(segment)

    def append(self, table: pa.Table) -> None:
        """Write a table of detections and return once it is on the disk."""
        if self._writer is None:
            number = len(list(self.folder.glob("segment-*.arrow")))
            self._file = (self.folder / _SEGMENT.format(number)).open("xb")
            self._writer = pa.ipc.new_stream(self._file, table.schema)
            fsync(self.folder)
        self._writer.write_table(table)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the segment."""
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = self._file = None


def check_identity(folder: Path, fingerprint: str) -> None:
    """Refuse a journal of another run.

    Raises:
        UserError: `folder` holds a journal and its run is not the one of `fingerprint`.
    """
    identity = folder / JOURNAL_IDENTITY
    if not identity.exists():
        return
    try:
        there = json.loads(identity.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError, OSError):
        there = None
    if there != fingerprint:
        raise UserError(
            f"output_dir={folder.parent}: holds an unfinished run of other settings, weights or "
            "pictures; choose another output_dir, or remove it"
        )


def _read_segment(path: Path) -> Iterator[pa.Table]:
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_stream(file)
            while True:
                yield pa.Table.from_batches([reader.read_next_batch()])
    except (StopIteration, pa.ArrowInvalid, OSError):
        return  # the end, or a batch that was being written when the process was killed
