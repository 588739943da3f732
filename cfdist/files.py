"""The names of the files that a run leaves, reading files, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cfdist.errors import DiskFullError, UserError

# In a run's folder.
RESULTS = "results.json"
REPORT = "report.html"  # in a sweep's, too
CONFIG = "config.yaml"
LOG = "run.log"
JOURNAL = "journal"
JOURNAL_IDENTITY = "run.json"  # in the journal's folder
JOURNAL_SEGMENTS = "segment-*.arrow"  # there, too
PREDICTIONS = "predictions"
PARQUET = "predictions.parquet"

# In a sweep's folder. They are written when all its runs have ended, the CSV last.
SWEEP_CSV = "sweep.csv"
SWEEP_MARKDOWN = "sweep.md"
SWEEP_PLOT = "throughput.png"
SWEEP_FILES = (SWEEP_CSV, SWEEP_MARKDOWN, SWEEP_PLOT)

# Larger files are not read whole: pictures, ground truth and prediction files are far smaller, and
# OpenCV and zlib count bytes in 31 bits.
MAX_READ_BYTES = 1 << 30

# Errors of a disk without room: no blocks or inodes are left, or none of the user's share.
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
# "scheme://user:password@", and "?secret_key=..." in a query, also in HTML. Keys of AWS often have
# slashes; "host:port/" is none.
_SECRET_IN_URI = re.compile(
    r"""(\b[a-z][a-z0-9+.-]*://[^/\s:@"']*:)(?!\d{2,5}[/?#])[^\s@"'<>]+(@)"""
    r"""|([?&](?:amp;)?[\w.-]*(?:key|token|secret|passw|sig)[\w.-]*=)[^&\s"'<>]+""",
    re.IGNORECASE,
)
_LEAST_TOKEN = 8  # characters; a shorter text may be part of any word

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_is_file(path: Path | str) -> os.stat_result:
    """Refuse what is there in place of a file: opening a pipe or a device may wait for ever.

    Raises:
        OSError: nothing is there, or something other than a file; `strerror` says what.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"is {kind}, not a file", str(path))
    return status


def read_file(path: Path | str, limit: int = MAX_READ_BYTES) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, is no file, or has more bytes than the limit; `strerror` says
            why.
    """
    size = check_is_file(path).st_size
    if size > limit:
        reason = f"{size} bytes are more than the {limit} that are read at once"
        raise OSError(errno.EFBIG, reason, str(path))
    with open(path, "rb") as file:
        return file.read()


def expanded(path: Path | str) -> Path:
    """A path as a person wrote it, with the home folder for a leading `~` or `~user`.

    Without such a user the `~` is part of the name.
    """
    return Path(os.path.expanduser(path))


def resolved(path: Path) -> Path:
    """A path without links in it; a loop of links stays one, where `Path.resolve` raises."""
    return Path(os.path.realpath(path))


def user_cache_path() -> Path:
    """Where this user's cache of this program is: a temporary folder where there is no home."""
    home = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    near = next((one for one in (home, *home.parents) if one.exists()), home)
    if home.is_absolute() and os.access(near, os.W_OK):
        return home / "cfdist"
    return Path(tempfile.gettempdir()) / f"cache_of_cfdist_{os.getuid()}"


def user_cache() -> Path:
    """This user's cache folder of this program, for what is trusted later.

    Raises:
        UserError: somebody else can.
    """
    folder = user_cache_path()
    if folder.name == "cfdist":
        return folder
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        status = folder.lstat()
        is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if not is_own or status.st_mode & 0o022:
            raise UserError(
                f"{folder}: others can write there, so that nothing in it can be trusted; remove "
                "it, or set XDG_CACHE_HOME to a folder of your own"
            )
    return folder


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`; on success fsync it and rename it to `path`.

    After an exception the temporary file is gone and `path` is as it was. A missing parent folder
    is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with naming(path, instead_of=temporary):
            temporary.touch(exist_ok=False)
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_remains(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder."""
    for path in folder.glob(".*.partial"):
        if path.is_file():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path | str, instead_of: Path | str | None = None) -> Iterator[None]:
    """Let an error of the system about no file, or about another one, name this file."""
    try:
        yield
    except OSError as error:
        names_none = error.filename is None or error.filename == str(instead_of)
        if names_none and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def disk_as_user_error(path: Path | str) -> Iterator[None]:
    """Name this path, or what in it the disk does not take, in the `with` block.

    Raises:
        UserError: in place of an OSError; a `DiskFullError` if there is no room.
    """
    try:
        yield
    except OSError as error:
        is_full, name = error.errno in DISK_IS_FULL, str(error.filename)
        raise (DiskFullError if is_full else UserError)(
            f"{name if Path(name).is_relative_to(path) else path}: cannot be written "
            f"({error.strerror or error}); "
            f"{'free some space' if is_full else 'see to that disk'} or choose another folder, and "
            "run the job again"
        ) from None


def probe(folder: Path) -> None:
    """Try whether a file can be made in a folder, or in the nearest one above it that is there.

    Raises:
        OSError: none can be.
    """
    near = next(one for one in (folder, *folder.parents) if one.exists())
    with tempfile.TemporaryFile(dir=near):
        pass


def walk(
    folder: Path | str, follows_links: bool = False
) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`, for which a folder that cannot be read is an error.

    Raises:
        OSError: one cannot be.
    """

    def refuse(error: OSError) -> None:
        raise error

    return os.walk(folder, followlinks=follows_links, onerror=refuse)


def probe_file(path: Path, key: str) -> None:
    """Make sure that the file that a key names can be written, before the work for it.

    Raises:
        UserError: it is a folder, or nothing can be written beside it.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        probe(resolved(path).parent)
    except OSError as error:
        raise UserError(
            f"{key}={path}: cannot be written ({error.strerror or error}); give the path of a file "
            "in a folder that can be written to"
        ) from None


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, the innermost first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that are empty, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """If the `with` block fails, remove the folder and those above it that are new and empty."""
    new = missing_folders(folder)
    try:
        yield
    except BaseException:
        remove_empty(new)
        raise


def redacted(text: str) -> str:
    """A text for people without the secrets in it: keys in URIs, and Ray's token."""
    text = _SECRET_IN_URI.sub(r"\1\3***\2", text)
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    return text.replace(token, "***") if len(token) >= _LEAST_TOKEN else text


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all, and without secrets (`redacted`).

    Bytes of a file name that are no UTF-8 become escapes.
    """
    text = redacted(text)
    with atomic_write(path) as temporary:
        write_bytes(temporary, text.encode(errors="backslashreplace"))


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file in place: a process that is killed may leave a part of it."""
    with naming(path), Sink(path) as sink:
        sink.write(content)


class Sink(io.RawIOBase):
    """A new file, or the new content of one, in which a write is whole or raises."""

    def __init__(self, path: Path | str, flags: int = os.O_TRUNC) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def write(self, data: Any) -> int:
        """Write all of the data; the system may take it in several pieces."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            left = left[os.write(self._descriptor, left) :]
        return size

    def close(self) -> None:
        """Close the file, without a flush to the disk."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)


def fsync(path: Path | str) -> None:
    """Flush the content of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path | str, algorithm: str) -> str:
    """Hexadecimal digest of a file by an algorithm of `hashlib`."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file."""
    return digest_of(path, "sha256")
