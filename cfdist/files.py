"""The names of the files that a run leaves, and writing files whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
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

# In a sweep's folder. They are written when all its runs have ended, the CSV last.
SWEEP_CSV = "sweep.csv"
SWEEP_MARKDOWN = "sweep.md"
SWEEP_PLOT = "throughput.png"
SWEEP_FILES = (SWEEP_CSV, SWEEP_MARKDOWN, SWEEP_PLOT)


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`; on success fsync it and rename it to `path`.

    After an exception the temporary file is gone and `path` is as it was. A missing parent folder
    is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """If the `with` block fails, remove the folder and those above it that are new and empty."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        yield
    except BaseException:
        for one in new:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fsync(path: Path | str) -> None:
    """Flush the content of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
