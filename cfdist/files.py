"""The names of the files that a run leaves, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# In a run's folder.
RESULTS = "results.json"
CONFIG = "config.yaml"
LOG = "run.log"
JOURNAL = "journal"
JOURNAL_IDENTITY = "run.json"  # in the journal's folder
PREDICTIONS = "predictions"
PARQUET = "predictions.parquet"

# In a sweep's folder, written when all its runs have ended, the CSV last.
SWEEP_CSV = "sweep.csv"
SWEEP_MARKDOWN = "sweep.md"
SWEEP_PLOT = "throughput.png"
SWEEP_FILES = (SWEEP_CSV, SWEEP_MARKDOWN, SWEEP_PLOT)


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`.

    On an exception the temporary file is removed and `path` is left as it was.
    The parent folder is made if it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        fsync(temporary)
        # mkstemp makes files private to the user; results are as readable as any other file.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fsync(path: Path | str) -> None:
    """Flush a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
