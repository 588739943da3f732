"""Detections on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from cfdist.errors import UserError
from cfdist.files import JOURNAL_IDENTITY, fsync, read_file, write_text

_SEGMENT = "segment-{:04d}.arrow"
_HEAD = struct.Struct("<QQ")  # bytes of the table that follows, and its CRC-32


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
    """An append-only folder of tables, one segment for each start of the run.

    A segment holds each table as an Arrow stream behind its length and checksum. It is read up to
    the first table that is not whole, which a killed process left, or a bad disk.
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
        self._open: BinaryIO | None = None

    def read(self) -> Iterator[pa.Table]:
        """The tables that were appended, in memory that is mapped from the files."""
        for segment in sorted(self.folder.glob("segment-*.arrow")):
            # An empty file cannot be mapped.
            with contextlib.suppress(pa.ArrowInvalid, OSError), pa.memory_map(str(segment)) as file:
                yield from _whole_tables(file.read_buffer())

    def append(self, table: pa.Table) -> None:
        """Write a table of detections and return once it is on the disk."""
        if self._open is None:
            number = len(list(self.folder.glob("segment-*.arrow")))
            self._open = (self.folder / _SEGMENT.format(number)).open("xb")
            fsync(self.folder)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        self._open.write(_HEAD.pack(content.size, zlib.crc32(content)))
        self._open.write(content)
        self._open.flush()
        os.fsync(self._open.fileno())

    def close(self) -> None:
        """End the segment."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _whole_tables(segment: pa.Buffer) -> Iterator[pa.Table]:
    """The tables of a segment, up to the first one that is not whole."""
    at = 0
    while at + _HEAD.size <= segment.size:
        size, checksum = _HEAD.unpack_from(segment, at)
        at += _HEAD.size
        # Zeros, which a file system may leave after a crash, would be whole tables of no bytes.
        if not 0 < size <= segment.size - at:
            return
        content = segment.slice(at, size)
        if zlib.crc32(content) != checksum:
            return
        yield pa.ipc.open_stream(content).read_all()
        at += size


def begun_identity(folder: Path) -> RunIdentity | None:
    """The identity of the run whose journal a folder holds; `None` if there is none to read."""
    try:
        content = json.loads(read_file(folder / JOURNAL_IDENTITY))
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
