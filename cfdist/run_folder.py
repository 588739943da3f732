"""A run's own folder: claimed by one process, never a stranger's, never a finished run's."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from cfdist.errors import UserError
from cfdist.files import write_text

RESULTS = "results.json"
CONFIG = "config.yaml"
LOG = "run.log"
JOURNAL = "journal"
JOURNAL_IDENTITY = "run.json"  # inside the journal: whose it is
PREDICTIONS = "predictions"
PARQUET = "predictions.parquet"

_LOCK = ".lock"


@contextlib.contextmanager
def claim(folder: Path, config_yaml: str) -> Iterator[None]:
    """Hold a run's folder for the `with` block, with its configuration and log in it.

    A folder that was made for a run which is then refused (a `UserError`) goes again.

    Raises:
        UserError: the folder cannot be made, is in use, or holds a finished run or other files.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise UserError(
            f"output_dir={folder}: cannot be made or written to ({error.strerror}); choose another"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"output_dir={folder}: another run is using it; wait for it or choose another"
            ) from None
        try:
            _refuse_occupied(folder)
            write_text(folder / CONFIG, config_yaml)
            with _logging_to(folder / LOG):
                yield
        except UserError:
            if is_new:
                _remove(folder)
            raise


def _refuse_occupied(folder: Path) -> None:
    if (folder / RESULTS).exists():
        raise UserError(
            f"output_dir={folder}: holds a finished run ({RESULTS}); choose another output_dir or "
            "remove it"
        )
    if (folder / JOURNAL / JOURNAL_IDENTITY).is_file():
        return  # an interrupted run, which goes on
    for name in (PREDICTIONS, PARQUET, JOURNAL):
        if (folder / name).exists():
            raise UserError(
                f"output_dir={folder}: holds {name!r}, which is of no run of this program; choose "
                "another output_dir"
            )


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _remove(folder: Path) -> None:
    """Remove what a refused run left in the folder that was made for it."""
    for name in (CONFIG, LOG, _LOCK):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()  # "outputs", where this would have been the first run
