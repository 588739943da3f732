"""Detections on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from cfdist.errors import UserError
from cfdist.files import JOURNAL_IDENTITY, fsync, write_text

_SEGMENT = "segment-{:04d}.arrow"


@dataclass(frozen=True)
class RunIdentity:
    """Names a run; two runs with the same identity are the same run.

    Attributes:
        fingerprint: SHA-256 of all that decides the run's detections.
        backend: The resolved backend's name, which the fingerprint covers too.
    """

    fingerprint: str
    backend: str


class Journal:
    """An append-only folder of Arrow streams, one segment for each start of the run.

    A segment that a killed process left is read up to its last whole batch.
    """

    def __init__(self, folder: Path, identity: RunIdentity) -> None:
        """Open or make the journal of a run.

        Raises:
            UserError: the folder holds the journal of another run.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        check_identity(folder, identity)
        if begun_identity(folder) is None:
            write_text(folder / JOURNAL_IDENTITY, json.dumps(asdict(identity)) + "\n")
        self._open: tuple[BinaryIO, pa.RecordBatchStreamWriter] | None = None

    def read(self) -> Iterator[pa.Table]:
        """The tables that were appended, in memory that is mapped from the files."""
        for segment in sorted(self.folder.glob("segment-*.arrow")):
            # A segment ends, or breaks off in a batch that a killed process was writing.
            with contextlib.suppress(pa.ArrowInvalid, OSError), pa.memory_map(str(segment)) as file:
                for batch in pa.ipc.open_stream(file):
                    yield pa.Table.from_batches([batch])

    def append(self, table: pa.Table) -> None:
        """Write a table of detections and return once it is on the disk."""
        if self._open is None:
            number = len(list(self.folder.glob("segment-*.arrow")))
            opened = (self.folder / _SEGMENT.format(number)).open("xb")
            self._open = (opened, pa.ipc.new_stream(opened, table.schema))
            fsync(self.folder)
        file, writer = self._open
        writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())

    def close(self) -> None:
        """End the segment."""
        if self._open is not None:
            file, writer = self._open
            writer.close()
            file.close()
            self._open = None


def begun_identity(folder: Path) -> RunIdentity | None:
    """The identity of the run whose journal a folder holds; `None` if there is none to read."""
    try:
        content = json.loads((folder / JOURNAL_IDENTITY).read_text(encoding="utf-8"))
        return RunIdentity(str(content["fingerprint"]), str(content["backend"]))
    except (ValueError, KeyError, TypeError, OSError):
        return None


def check_identity(folder: Path, identity: RunIdentity) -> None:
    """Refuse a journal of another run.

    Raises:
        UserError: `folder` holds the journal of another run than the one of `identity`.
    """
    if (folder / JOURNAL_IDENTITY).exists() and begun_identity(folder) != identity:
        raise UserError(
            f"output_dir={folder.parent}: holds an unfinished run of other settings, weights or "
            "pictures; choose another output_dir, or remove it"
        )
