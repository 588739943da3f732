"""Where files may lie beside a local folder: in a zip archive, behind a URI, or both.

A file in such a store is named by one text, its place: `inside:<store>!<name>`. It goes wherever
the path of a local file goes, and `read` takes both.

A run whose `output_dir` is a URI works in a local folder, the URI's spool folder, whose name is the
URI: a journal needs a disk that can be flushed. What is in it goes to the URI at the run's end.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit

from cfdist.errors import UserError
from cfdist.files import (
    MAX_READ_BYTES,
    atomic_write,
    check_is_file,
    expanded,
    missing_folders,
    read_file,
    redacted,
    remove_empty,
    user_cache,
)

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = re.compile(r"key|token|secret|passw|sig", re.IGNORECASE)
_INSIDE = "inside:"

# A member that is large, and so much larger than its packed bytes, is no picture.
_BOMB_BYTES, _BOMB_RATIO = 1 << 24, 100

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_TABLE_BYTES = 1024  # more than deflate's own tables add to a content that it cannot shorten
_EXTRA_BYTES = 64  # what usually suffices for the extra field of a member's own header

_SPOOL = "spool"  # in the user's cache
_PROBE = ".cfdist"  # is written and removed again
_PARTIAL = ".partial"

# File systems in which a file appears whole, and which know no folders.
_OBJECT_STORES = ("s3", "gcs", "abfs")

# How long Google's client tries again what fails, seconds. Its own limit is a quarter of an hour.
_GS_RETRIES, _GS_SECONDS = "retry_limit_seconds", 60

# Files on their way at once: a store answers after some ten milliseconds.
_THREADS = 16

_lock = threading.Lock()


class Store(Protocol):
    """Files below a root.

    Attributes:
        sizes: Name of each file, relative to the root with slashes, and its size in bytes.
    """

    @property
    def sizes(self) -> Mapping[str, int]:
        """See above.

        Raises:
            OSError: the names cannot be listed.
        """

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: it cannot be read or has more than `MAX_READ_BYTES`; `strerror` says why.
        """

    def read_head(self, name: str, count: int) -> bytes:
        """The first bytes of a file.

        Raises:
            OSError: they cannot be read; `strerror` says why.
        """

    def check(self, name: str) -> None:
        """Make sure that the store answers and has the folder of a file.

        Raises:
            OSError: it does not; `strerror` says why.
        """


def is_uri(text: str) -> bool:
    """Whether a text names something by a URI, such as "s3://bucket/folder", and not by a path."""
    return _URI.match(text) is not None


def path_or_uri(text: str, key: str) -> Path | str:
    """A URI as it is, else the path of a local file or folder.

    Raises:
        UserError: the URI that `key` names holds a secret, is a web address, or is none.
    """
    if not is_uri(text):
        return expanded(text)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UserError(f"{key}={redacted(text)}: is no URI ({error})") from None
    if parts.password is not None or _SECRET.search(parts.query) or redacted(text) != text:
        raise UserError(
            f"{key}: this URI holds a key or password, which would end up in results.json; give it "
            "in the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...)"
        )
    if parts.scheme.lower() in ("http", "https"):
        raise UserError(
            f"{key}={text}: is a web address, where nothing is read or written; download the file, "
            "or give a URI such as s3://bucket/name"
        )
    return text


def within(uri: str, name: str) -> str:
    """The URI of a file or folder in the folder at a URI."""
    head, mark, query = uri.partition("?")
    return f"{head.rstrip('/')}/{name}{mark}{query}" if name else uri


def working_folder(output_dir: str) -> Path:
    """The local folder of a run with such an `output_dir`: that folder, or a URI's spool folder."""
    if not is_uri(output_dir):
        return expanded(output_dir).absolute()
    head, mark, query = output_dir.partition("?")
    return user_cache() / _SPOOL / quote(f"{head.rstrip('/')}{mark}{query}", safe=" :@=&?+,")


def spool_of(path: Path) -> Path | None:
    """The spool folder that a path is, or lies in; `None` for other paths."""
    base = user_cache() / _SPOOL
    if path == base or not path.is_relative_to(base):
        return None
    return base / path.relative_to(base).parts[0]


def uri_of(path: Path) -> str | None:
    """The URI to which a spool folder, or what is in one, will go; `None` for other paths."""
    if (spool := spool_of(path)) is None:
        return None
    name = path.relative_to(spool).as_posix()
    return within(unquote(spool.name), "" if name == "." else name)


def shown(path: Path) -> str:
    """What a person calls a path: in a spool folder it is the URI's."""
    return uri_of(path) or str(path)


def recorded(path: Path) -> bytes:
    """The content of a file in a run's folder; what a spool folder lacks is read at its URI.

    Raises:
        OSError: it is at neither place, or cannot be read; `strerror` says why.
    """
    uri = uri_of(path.parent)
    return read_file(path) if uri is None or path.is_file() else remote_folder(uri).read(path.name)


def is_recorded(path: Path) -> bool:
    """Whether a run's folder, or its URI, has a file."""
    uri = uri_of(path.parent)
    return path.is_file() or bool(uri and remote_folder(uri).holds([path.name]))


def copy_here(source: str, folder: Path) -> None:
    """Copy all files of a store, a folder at a URI or an archive, into a local folder.

    Raises:
        OSError: one cannot be read or written, or has a name that could lead out of the folder.
    """
    store = open_store(source)

    def copy(name: str) -> None:
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(store.read(name))

    for name in store.sizes:
        if name.startswith("/") or ".." in name.split("/"):
            raise OSError(errno.EINVAL, f"holds the name {name!r}, which could lead out", source)
    in_parallel(copy, store.sizes)


def in_parallel(call: Callable[[str], None], names: Iterable[str]) -> None:
    """Call a function with each name, some at once; the first error ends it."""
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")
    try:
        for _ in threads.map(call, names):
            pass
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def place_of(store: str, name: str) -> str:
    """The text that names a file of a store to `read`."""
    return f"{_INSIDE}{quote(store, safe='/:?=&@', errors='surrogateescape')}!{name}"


def store_at(place: str) -> str | None:
    """The URI of the store that a place is in; `None` for files and archives of this host."""
    store = unquote(place.removeprefix(_INSIDE).partition("!")[0], errors="surrogateescape")
    return store if place.startswith(_INSIDE) and is_uri(store) else None


def place_of_file(source: Path | str) -> str:
    """The text that names a local file, or the file at a URI, to `read`."""
    if isinstance(source, Path):
        return str(source)
    parent, _, name = source.rpartition("/")
    return place_of(parent, name)


def is_in_store(place: str) -> bool:
    """Whether `read` takes a file from a store, and not a local one."""
    return place.startswith(_INSIDE)


def size_of(place: str) -> int:
    """The bytes of a local file, or of a file in a store, whose files are listed once.

    Raises:
        OSError: it is not there, or its store cannot be listed.
    """
    if not is_in_store(place):
        return os.stat(place).st_size
    store, name = _parts(place)
    try:
        return open_store(store).sizes[name]
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None


def read(place: str) -> bytes:
    """The content of a local file, or of a file in a store.

    Raises:
        OSError: it cannot be read; `strerror` says why.
    """
    if not is_in_store(place):
        return read_file(place)
    store, name = _parts(place)
    return open_store(store).read(name)


def read_head(place: str, count: int) -> bytes:
    """The first bytes of a file that `read` reads; no more are fetched.

    Raises:
        OSError: they cannot be read; `strerror` says why.
    """
    if not is_in_store(place):
        check_is_file(place)
        with open(place, "rb") as file:
            return file.read(count)
    store, name = _parts(place)
    return open_store(store).read_head(name, count)


def lost_source(place: str) -> str | None:
    """What is gone, and why, if more than the file at a place is: its `source_of`."""
    try:
        if is_in_store(place):
            store, name = _parts(place)
            open_store(store).check(name)
        elif not os.path.isdir(source_of(place)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    except OSError as error:
        return f"{source_of(place)}: {error.strerror or error}"
    return None


def source_of(place: str) -> str:
    """The folder of a local file, or the archive or store that it is in."""
    return _parts(place)[0] if is_in_store(place) else os.path.dirname(place)


def _parts(place: str) -> tuple[str, str]:
    """The store that a place is in, and the file's name there."""
    store, _, name = place.removeprefix(_INSIDE).partition("!")
    return unquote(store, errors="surrogateescape"), name


def open_store(root: str) -> Store:
    """The store at a URI, or in a local zip archive; a process opens it once, until it changes.

    Raises:
        OSError: nothing is there that can be read; `strerror` says why.
    """
    changed = 0 if is_uri(root) else check_is_file(root).st_mtime_ns
    with _lock:
        return _open_store(root, changed)


@functools.lru_cache(maxsize=4)
def _open_store(root: str, _changed: int) -> Store:
    import pyarrow as pa

    if not is_uri(root):
        return Archive(root, pa.OSFile(root))
    system, path = file_system(root)
    with _one_line(root):
        found = system.get_file_info(path)
        if found.is_file:
            return Archive(root, system.open_input_file(path))
    if found.type == pa.fs.FileType.NotFound:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), root)
    return RemoteFolder(root, system, path)


def file_system(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a URI, and the path in it.

    Raises:
        OSError: no file system is known for it, or it does not answer.
    """
    from pyarrow import fs

    if uri.startswith(("gs://", "gcs://")) and _GS_RETRIES not in uri:
        uri += f"{'&' if '?' in uri else '?'}{_GS_RETRIES}={_GS_SECONDS}"
    with _one_line(uri):
        system, path = fs.FileSystem.from_uri(quote(uri, safe="/:?=&@%~,;+#!$'()*[]"))
    return system, path.rstrip("/")


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what pyarrow raises into an `OSError` of one line."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise OSError(getattr(error, "errno", None) or errno.EIO, reason, name) from None


def remote_folder(uri: str) -> RemoteFolder:
    """The folder at a URI, whether it is there yet or not.

    Raises:
        OSError: no file system is known for it, or it does not answer.
    """
    return RemoteFolder(uri, *file_system(uri))


class RemoteFolder:
    """A folder in one of pyarrow's file systems."""

    def __init__(self, name: str, system: Any, path: str) -> None:
        self._name, self._system, self._path = name, system, path
        self._has_folders = system.type_name not in _OBJECT_STORES

    @functools.cached_property
    def sizes(self) -> Mapping[str, int]:
        """See `Store`."""
        from pyarrow import fs

        with _one_line(self._name):
            found = self._system.get_file_info(fs.FileSelector(self._path, recursive=True))
        start = len(self._path) + 1 if self._path else 0
        return {one.path[start:]: one.size for one in found if one.is_file}

    def read(self, name: str) -> bytes:
        """See `Store`."""
        with _one_line(name), self._system.open_input_file(self._inside(name)) as file:
            _refuse_size(name, file.size())
            return bytes(file.read())

    def read_head(self, name: str, count: int) -> bytes:
        """See `Store`."""
        with _one_line(name), self._system.open_input_file(self._inside(name)) as file:
            return bytes(file.read(count))

    def check(self, name: str) -> None:
        """See `Store`."""
        folder = name.rpartition("/")[0]
        if not self.holds([folder]) and self._has_folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def holds(self, names: Iterable[str]) -> set[str]:
        """Those of the names that are there.

        Raises:
            OSError: the file system does not answer.
        """
        from pyarrow import fs

        names = list(names)
        with _one_line(self._name):
            found = self._system.get_file_info([self._inside(name) for name in names])
        there = zip(names, found, strict=True)
        return {name for name, one in there if one.type != fs.FileType.NotFound}

    def fetch(self, name: str, folder: Path) -> Path:
        """Copy a file into a local folder, unless that has it already, with its size and time.

        Returns:
            Its path there.

        Raises:
            OSError: it is not there, or cannot be read or written.
        """
        target = folder / name
        with _one_line(within(self._name, name)):
            found = self._system.get_file_info(self._inside(name))
            if not found.is_file:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            new = found.size, found.mtime_ns
            if target.is_file() and (target.stat().st_size, target.stat().st_mtime_ns) == new:
                return target
            with atomic_write(target) as temporary:
                with (
                    self._system.open_input_stream(self._inside(name)) as source,
                    temporary.open("wb") as sink,
                ):
                    shutil.copyfileobj(source, sink, 1 << 20)
                if temporary.stat().st_size != found.size:
                    raise OSError(errno.EIO, f"has {found.size} bytes, fewer have arrived")
                if found.mtime_ns is not None:
                    os.utime(temporary, ns=(found.mtime_ns, found.mtime_ns))
        return target

    def write(self, name: str, source: BinaryIO) -> None:
        """Write a file, which appears whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        path = self._inside(name)
        target = f"{path}{_PARTIAL}" if self._has_folders else path
        with _one_line(within(self._name, name)):
            if self._has_folders:
                self._system.create_dir(path.rpartition("/")[0])
            with self._system.open_output_stream(target) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            if target != path:
                if name in self.holds([name]):  # HDFS does not replace a file
                    self._system.delete_file(path)
                self._system.move(target, path)

    def remove(self, name: str) -> None:
        """Remove a file.

        Raises:
            OSError: it cannot be removed.
        """
        with _one_line(within(self._name, name)):
            self._system.delete_file(self._inside(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there and may be removed."""
        with contextlib.suppress(OSError), _one_line(within(self._name, name)):
            if self.holds([name]):
                self._system.delete_dir(self._inside(name))

    def refuse_unwritable(self) -> None:
        """Write a file and remove it again.

        Local folders that were made for it go, too. Other file systems (HDFS) have no way to
        remove a folder only if it is empty; theirs stay.

        Raises:
            OSError: it cannot be written.
        """
        new = missing_folders(Path(self._path)) if self._system.type_name == "local" else []
        self.write(_PROBE, io.BytesIO(b"can be written to"))
        with contextlib.suppress(OSError):  # who may write need not be allowed to remove
            self._system.delete_file(self._inside(_PROBE))
        remove_empty(new)

    def _inside(self, name: str) -> str:
        return "/".join(part for part in (self._path, name) if part)


class _Member(NamedTuple):
    """Where a member of an archive lies, and what its directory says of it."""

    offset: int
    packed: int
    size: int
    crc: int
    is_deflated: bool


class Archive:
    """A zip archive that is read where it lies, by any number of threads through one handle."""

    def __init__(self, name: str, file: Any) -> None:
        """Read the archive's directory.

        Raises:
            OSError: it is no archive, or one that is not read.
        """
        self._name, self._file, self._size = name, file, file.size()
        try:
            entries = zipfile.ZipFile(file).infolist()
        except Exception as error:  # zipfile raises nearly anything for a damaged directory
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._refused(f"is not a zip archive, or a damaged one ({reason})") from None
        self._members: dict[str, _Member] = {}
        for entry in entries:
            self._add(entry)

    def _add(self, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or ":" in name[:2]:
            raise self._refused(f"holds the name {name!r}, which could lead out of it")
        if entry.is_dir():
            return
        if name in self._members:
            raise self._refused(f"holds {name!r} twice")
        if entry.flag_bits & 1:
            raise self._refused(f"{name!r} in it is encrypted; pack the files without a password")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._refused(
                f"{name!r} in it is compressed by method {entry.compress_type}, which is not read; "
                "pack the files with deflate"
            )
        self._members[name] = _Member(
            entry.header_offset,
            entry.compress_size,
            entry.file_size,
            entry.CRC,
            entry.compress_type == zipfile.ZIP_DEFLATED,
        )

    def _refused(self, reason: str) -> OSError:
        return OSError(errno.EBADMSG, reason, self._name)

    @functools.cached_property
    def sizes(self) -> Mapping[str, int]:
        """See `Store`."""
        return {name: member.size for name, member in self._members.items()}

    def read(self, name: str) -> bytes:
        """See `Store`."""
        if name not in self._members:
            raise OSError(errno.ENOENT, f"is not in {self._name}", name)
        member = self._members[name]
        _refuse_size(name, member.size)
        if member.size > _BOMB_BYTES and member.size > _BOMB_RATIO * member.packed:
            reason = f"{member.packed} bytes of the archive would become {member.size}"
            raise OSError(errno.EFBIG, reason, name)
        try:
            packed = self._packed(name, member)
            content = packed
            if member.is_deflated:
                # One byte more than there should be shows a content that is too long.
                content = zlib.decompressobj(-15).decompress(packed, member.size + 1)
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise self._damaged(name, " ".join(str(error).split())) from None
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise self._damaged(name, "its content is not what its checksum says")
        return content

    def read_head(self, name: str, count: int) -> bytes:
        """See `Store`; there is no checksum of a part."""
        if name not in self._members:
            raise OSError(errno.ENOENT, f"is not in {self._name}", name)
        member = self._members[name]
        try:
            length = min(member.packed, count + _TABLE_BYTES)
            head = self._packed(name, member._replace(packed=length))
            if member.is_deflated:
                head = zlib.decompressobj(-15).decompress(head, count)
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise self._damaged(name, " ".join(str(error).split())) from None
        return head[:count]

    def check(self, name: str) -> None:
        """See `Store`."""
        with _one_line(self._name):
            self._file.read_at(1, 0)

    def _packed(self, name: str, member: _Member) -> bytes:
        """The packed bytes of a member, usually by one access: each one counts on a network."""
        if not 0 <= member.offset <= self._size - member.packed:
            raise ValueError("it ends behind the archive's end")
        length = _LOCAL_HEADER.size + len(name.encode()) + _EXTRA_BYTES + member.packed
        # `read_at` moves no position that the threads share.
        found = bytes(self._file.read_at(length, member.offset))
        signature, *_, of_name, of_extra = _LOCAL_HEADER.unpack_from(found)
        if signature != b"PK\3\4":
            raise ValueError("its header is not where the directory says")
        start = _LOCAL_HEADER.size + of_name + of_extra
        if start + member.packed > len(found):
            return bytes(self._file.read_at(member.packed, member.offset + start))
        return found[start : start + member.packed]

    def _damaged(self, name: str, reason: str) -> OSError:
        return OSError(errno.EBADMSG, f"is damaged in {self._name}: {reason}", name)


def _refuse_size(name: str, size: int) -> None:
    if size > MAX_READ_BYTES:
        reason = f"{size} bytes are more than the {MAX_READ_BYTES} that are read at once"
        raise OSError(errno.EFBIG, reason, name)
