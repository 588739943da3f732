"""Detections on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cfdist.detections import as_table, packed
from cfdist.errors import UserError
from cfdist.files import (
    JOURNAL_IDENTITY,
    JOURNAL_SEGMENTS,
    Sink,
    fsync,
    naming,
    read_file,
    write_text,
)

_SEGMENT = "segment-{:04d}.arrow"
_VERSION = 2  # of the files; 1 had no checksum of the identity, and none of it in the segments
_SIZE = struct.Struct("<Q")  # bytes of the content that follows the checksum
_CHECKSUM = struct.Struct("<I")  # CRC-32 of the size and the content
_HEAD_BYTES = _SIZE.size + _CHECKSUM.size

# What a person calls the digests among a run's parts.
_DIGESTS = {
    "model.sha256": "weights: other sha256",
    "pictures.sha256": "pictures: others, by their names or sizes",
}


@dataclass(frozen=True)
class RunIdentity:
    """Names a run; two runs with the same fingerprint are the same run.

    Attributes:
        fingerprint: SHA-256 of all that decides the run's numbers.
        backend: The resolved backend's name, which the fingerprint covers too.
        parts: What the fingerprint covers: name -> value, to say in what two runs differ.
    """

    fingerprint: str
    backend: str
    parts: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Cut:
    """What recovery has dropped from the end of a segment: whatever followed its last whole table.

    Attributes:
        segment: The segment's file name.
        kept: Bytes up to the cut.
        dropped: Bytes behind it.
    """

    segment: str
    kept: int
    dropped: int

    def __str__(self) -> str:
        """A sentence."""
        return (
            f"the journal's {self.segment} was cut at byte {self.kept}, behind its last whole "
            f"batch: {self.dropped} bytes were dropped, and their pictures are done again"
        )


class Journal:
    """An append-only folder of tables, one segment for each start of the run.

    A segment holds records, each behind its length and checksum: the run's identity, then each
    table as an Arrow stream. Its last record may be torn, by a killed process or a bad disk.
    Nothing is appended behind a torn record: after a failed append a new segment begins.

    Attributes:
        cuts: What was dropped when the journal was opened.
    """

    def __init__(self, folder: Path, identity: RunIdentity) -> None:
        """Open or make the journal of a run, and cut each segment behind its last whole table.

        Raises:
            UserError: the folder holds the journal of another run.
            OSError: it cannot be read or written.
        """
        self.folder = folder
        self._identity = _identity_text(identity)
        folder.mkdir(parents=True, exist_ok=True)
        check_identity(folder, identity)
        is_whole = False
        with contextlib.suppress(UserError):  # a damaged version, which the segments put right
            is_whole = _written_identity(folder / JOURNAL_IDENTITY) is not None
        if not is_whole:
            write_text(folder / JOURNAL_IDENTITY, self._identity)
        self.cuts = [cut for segment in self._segments() for cut in _cut(segment, identity)]
        self._open: Sink | None = None
        self._end = 0  # of the last table in the open segment that is on the disk

    def read(self) -> Iterator[pa.Table]:
        """The tables that were appended, in memory that is mapped from the files."""
        return map(as_table, self.contents())

    def contents(self) -> Iterator[pa.Buffer]:
        """What `as_table` makes the tables of, mapped from the files; a table takes 9 KB more."""
        for segment in self._segments():
            if segment.stat().st_size:  # an empty file cannot be mapped
                with pa.memory_map(str(segment)) as file:
                    contents = _whole_records(file)
                    next(contents, None)
                    yield from contents

    def append(self, table: pa.Table) -> None:
        """Write a table of detections and return once it is on the disk.

        Raises:
            OSError: the table is not in the journal; the next one begins a new segment.
        """
        record = _record(packed(table))
        with naming(self.folder):
            try:
                segment = self._open or self._begin()
                segment.write(record)
                os.fsync(segment.fileno())
            except OSError:
                self._abandon()
                raise
            self._end = os.lseek(segment.fileno(), 0, os.SEEK_CUR)

    def close(self) -> None:
        """End the segment."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob(JOURNAL_SEGMENTS))

    def _begin(self) -> Sink:
        """Begin a segment behind those that are there."""
        last = max((int(path.stem.partition("-")[2]) for path in self._segments()), default=-1)
        self._end = 0
        self._open = Sink(self.folder / _SEGMENT.format(last + 1), os.O_EXCL)
        self._open.write(_record(self._identity.encode()))
        fsync(self.folder)
        return self._open

    def _abandon(self) -> None:
        """End a segment whose last append has failed, at the end of the last one that had not.

        What a failed fsync leaves is unknown: it counts as not written.
        """
        if self._open is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._open.fileno(), self._end)
            with contextlib.suppress(OSError):
                self.close()
            self._open = None


def begun_identity(folder: Path) -> RunIdentity | None:
    """The identity of the run whose journal a folder holds; `None` if there is none to read.

    It is in a file of its own, and in each segment should that file be damaged, its version too.

    Raises:
        UserError: another version of the program has written the journal.
    """
    other_version = None
    for path in (folder / JOURNAL_IDENTITY, *sorted(folder.glob(JOURNAL_SEGMENTS))):
        try:
            if identity := _written_identity(path):
                return identity
        except UserError as error:
            other_version = other_version or error
    if other_version:
        raise other_version
    return None


def check_identity(folder: Path, identity: RunIdentity) -> None:
    """Refuse a journal of another run.

    Raises:
        UserError: `folder` holds the journal of another run than the one of `identity`.
    """
    begun = begun_identity(folder)
    if begun not in (None, identity):
        raise UserError(
            f"output_dir={folder.parent}: holds an unfinished run of other settings, weights or "
            f"pictures ({differences(begun.parts, identity.parts)}); choose another output_dir, or "
            "remove it"
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between the parts of two runs, in words."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if "pictures" in keys:
        keys = [key for key in keys if key != "pictures.sha256"]
    words = [
        _DIGESTS.get(key)
        or f"{key}: {json.dumps(then.get(key))} then, {json.dumps(now.get(key))} now"
        for key in keys
    ]
    return "; ".join(words) or "what it was is not known"


def _identity_text(identity: RunIdentity) -> str:
    """The identity as it is written: a version, the identity and its checksum."""
    content = json.dumps(asdict(identity), sort_keys=True)
    return json.dumps(
        {"version": _VERSION, "identity": content, "crc32": zlib.crc32(content.encode())}
    )


def _written_identity(path: Path) -> RunIdentity | None:
    """The identity in a journal's file; `None` if it is not there or damaged.

    Raises:
        UserError: another version of the program has written it.
        OSError: the file is there and cannot be read.
    """
    try:
        if path.name == JOURNAL_IDENTITY:
            text = read_file(path)
        else:
            with pa.OSFile(str(path)) as file:
                text = bytes(next(_whole_records(file), b""))
        content = json.loads(text)
        version = content.get("version", 1 if "fingerprint" in content else _VERSION)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        return None
    if version != _VERSION and isinstance(version, int):
        age = "a newer" if version > _VERSION else "an older"
        raise UserError(
            f"output_dir={path.parents[1]}: holds an unfinished run of {age} version of cfdist "
            f"(journal {version}, this one has {_VERSION}); go on with that version, or choose "
            "another output_dir"
        )
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        if zlib.crc32(content["identity"].encode()) == content["crc32"]:
            return RunIdentity(**json.loads(content["identity"]))
    return None


def _cut(segment: Path, identity: RunIdentity) -> Iterator[Cut]:
    """Cut a segment behind its last whole table; all of it goes if it does not say whose it is.

    Raises:
        UserError: it is another run's.
    """
    size = segment.stat().st_size
    begun = _written_identity(segment)
    if begun not in (None, identity):
        raise UserError(f"{segment}: is another run's; remove it, or choose another output_dir")
    kept = 0
    if begun is not None:
        with pa.OSFile(str(segment)) as file:
            for _ in _whole_records(file):
                kept = file.tell()
    if kept < size:
        os.truncate(segment, kept)
        fsync(segment)
        yield Cut(segment.name, kept, size - kept)


def _record(content: bytes) -> bytes:
    """Bytes behind their length and checksum."""
    size = _SIZE.pack(len(content))
    return size + _CHECKSUM.pack(zlib.crc32(content, zlib.crc32(size))) + content


def _whole_records(file: pa.NativeFile) -> Iterator[pa.Buffer]:
    """The contents of a segment's records, up to the first one that is not whole."""
    end = file.size()
    while file.tell() + _HEAD_BYTES <= end:
        head = file.read(_HEAD_BYTES)
        (size,), (checksum,) = _SIZE.unpack_from(head), _CHECKSUM.unpack_from(head, _SIZE.size)
        # Zeros, which a file system may leave after a crash, are no record of no bytes.
        if not 0 < size <= end - file.tell():
            return
        content = file.read_buffer(size)
        if zlib.crc32(content, zlib.crc32(head[: _SIZE.size])) != checksum:
            return
        yield content
