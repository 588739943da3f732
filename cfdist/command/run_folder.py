"""A run's or a sweep's own folder: claimed by one process, never a stranger's or a finished one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from cfdist.config import Config, flat, new_keys
from cfdist.errors import DiskFullError, UserError
from cfdist.files import (
    CONFIG,
    DISK_IS_FULL,
    JOURNAL,
    JOURNAL_IDENTITY,
    JOURNAL_SEGMENTS,
    LOG,
    PARQUET,
    PREDICTIONS,
    RESULTS,
    SWEEP_CSV,
    SWEEP_FILES,
    missing_folders,
    redacted,
    remove_empty,
    remove_remains,
    resolved,
    write_text,
)
from cfdist.storage import is_recorded, recorded, remote_folder, shown, uri_of, working_folder

_LOCK = ".lock"
_HOLDER = ".holder"  # beside it, where the file system has no locks
HOLDERS = (_LOCK, _HOLDER)
HYDRA_RECORD = "multirun.yaml"  # Hydra writes it into every sweep's folder
_OF_PACKAGES = "working_dir_files"  # what Ray calls its folder of submitted working folders
_OF_SWEEP = (*HOLDERS, HYDRA_RECORD)
# What a run shows, and no result depends on: a run may go on with others.
OF_THE_SCREEN = ("progress", "quiet", "verbose", "report")
_OF_INTERRUPTED_RUN = (PREDICTIONS, PARQUET, JOURNAL)

# Why a folder is refused -> the names of which it holds one; the first goes into the braces.
_FOREIGN = "holds '{}', which no run of this program has written; choose another output_dir"
Refusals = dict[str, tuple[str, ...]]
TO_RUN: Refusals = {
    "holds a finished run ({}); choose another output_dir or remove it": (RESULTS,),
    "holds a sweep ({}); choose another output_dir for a single run": (*SWEEP_FILES, HYDRA_RECORD),
}
TO_SWEEP: Refusals = {
    # The table is written last: a sweep that was killed before goes on.
    "holds a finished sweep ({}); choose another output_dir, or name it in resume= to run again "
    "what failed": (SWEEP_CSV,),
    "holds a single run ({}); choose another output_dir for the sweep": (
        *(RESULTS, *_OF_INTERRUPTED_RUN),
    ),
}


def refuse_package_folder(config: Config) -> None:
    """Refuse to write into the folder of a submitted job, which Ray removes when the job has ended.

    Raises:
        UserError: it names the key.
    """
    outputs = {
        "output_dir": config.output_dir,
        f"{config.job}.output": getattr(getattr(config, config.job, None), "output", None),
    }
    for key, value in outputs.items():
        if value is not None and _OF_PACKAGES in resolved(working_folder(value)).parts:
            raise UserError(
                f"{key}={value}: is in the folder of this job's package, which Ray removes after "
                f"the job; give a path from the root: {key}=/..."
            )


@contextlib.contextmanager
def claim(folder: Path, config_yaml: str) -> Iterator[None]:
    """Hold a run's folder for the `with` block, with its configuration and log in it.

    A folder that was made for a run which is then refused, or leaves nothing, is removed again,
    unless a tool's log is in it.

    Raises:
        UserError: the folder cannot be made, is in use, or holds a finished run or other files.
        OSError: the configuration cannot be written.
    """
    new = missing_folders(folder)
    with _locked(folder, TO_RUN):
        try:
            # A run that goes on may be refused, and its folder keeps the settings it began with.
            keeps = is_begun(folder) and (folder / CONFIG).is_file()
            if not keeps:
                _write_config(folder, config_yaml)
            with _logging_to(folder / LOG):
                yield
            if keeps:
                _write_config(folder, config_yaml)
        except (UserError, OSError):
            _remove(new, (CONFIG, LOG, *HOLDERS))
            raise
        _remove(new, (CONFIG, *HOLDERS))


def _write_config(folder: Path, config_yaml: str) -> None:
    try:
        write_text(folder / CONFIG, config_yaml)
    except OSError as error:
        # Without the temporary file's name; the message then names the folder.
        reason = f"{CONFIG} cannot be written ({error.strerror})"
        raise OSError(error.errno, reason) from None


@contextlib.contextmanager
def claim_sweep(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder for the `with` block; its runs claim their own folders in it.

    A folder that was made for a sweep is removed if the sweep leaves nothing in it.

    Raises:
        UserError: the folder cannot be made, is in use, or holds a finished sweep or a single run.
    """
    new = missing_folders(folder)
    with _locked(folder, TO_SWEEP):
        try:
            yield
        finally:
            _remove(new, _OF_SWEEP)


def finished_results(
    folder: Path, config_yaml: str, typed: Collection[str] = ()
) -> dict[str, Any] | None:
    """The results that a run with these settings left in a folder, or at its URI, if one has.

    The folder may have been moved since, and keys may be new since then, see `config.new_keys`.

    Raises:
        UserError: `results.json` is damaged or no run's.
        OSError: the URI does not answer.
    """
    if not (is_recorded(folder / RESULTS) and is_recorded(folder / CONFIG)):
        return None
    now = redacted(config_yaml).encode(errors="backslashreplace")
    # Where the results are: a spool folder may hold what another run has left.
    uri = None if (folder / RESULTS).is_file() else uri_of(folder)
    then = recorded(folder / CONFIG) if uri is None else remote_folder(uri).read(CONFIG)
    begun, wanted = _settings(then), _settings(now)
    is_same = begun == wanted or new_keys(begun, wanted, typed) | begun == wanted
    return read_results(folder) if begun and is_same else None


def _settings(content: bytes) -> dict[str, Any]:
    """A run's settings but for the place of its folder and its screen; none of other content."""
    try:
        settings = yaml.safe_load(content)
    except (ValueError, yaml.YAMLError):
        settings = None
    values = flat(settings) if isinstance(settings, dict) else {}
    return {key: one for key, one in values.items() if key not in ("output_dir", *OF_THE_SCREEN)}


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a run's `results.json`.

    Raises:
        UserError: it is damaged or no run's.
        OSError: it cannot be read.
    """
    path = folder / RESULTS
    try:
        results = json.loads(recorded(path))
    except ValueError as error:
        raise UserError(f"{shown(path)}: damaged ({error}); remove it to run again") from None
    if not isinstance(results, dict):
        raise UserError(f"{shown(path)}: not a run's results; remove it to run again")
    return results


def holding(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a folder for the `with` block, whatever a run has left in it.

    Raises:
        UserError: it is in use.
    """
    return _locked(folder, None)


def mark_as_ours(folder: Path) -> None:
    """Let a folder that was copied from elsewhere count as one that a run has claimed."""
    (folder / _LOCK).touch()


@contextlib.contextmanager
def _locked(folder: Path, refusals: Refusals | None) -> Iterator[None]:
    """Make a folder and hold it alone, unless its content is refused; `None` refuses none."""
    _refuse(folder, refusals)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise (DiskFullError if error.errno in DISK_IS_FULL else UserError)(
            f"output_dir={folder}: cannot be made or written to ({error.strerror}); choose another"
        ) from None
    with lock, contextlib.ExitStack() as until_end:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter on NFS
            raise UserError(
                f"output_dir={folder}: another run is using it; wait for it or choose another"
            ) from None
        except OSError:  # no locks here
            until_end.enter_context(_holding(folder))
        _refuse(folder, refusals)  # again: another run may have ended here meanwhile
        remove_remains(folder)
        yield


@contextlib.contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """Hold a folder on a file system without locks: a file says who has it.

    A process of this host that has died holds nothing. Whether one of another host lives, nobody
    can say.
    """
    path, me = folder / _HOLDER, f"{socket.gethostname()} {os.getpid()}"
    for is_last in (False, True):
        try:
            with path.open("x") as file:
                file.write(me)
            break
        except FileExistsError:
            host, pid = _holder(folder)
            if host is None and not is_last:
                path.unlink(missing_ok=True)
                continue
            raise UserError(
                f"output_dir={folder}: another run is using it (process {pid or '?'} on "
                f"{host or '?'}; this file system has no locks); wait for it or choose another, or "
                f"remove {path} if that process has ended"
            ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _holder(folder: Path) -> tuple[str | None, str]:
    """The host and process that a `.holder` names; no host if that process has died here."""
    with contextlib.suppress(OSError, ValueError):
        host, _, pid = (folder / _HOLDER).read_text().rpartition(" ")
        is_here = host == socket.gethostname() and pid.isdigit()
        return (None if is_here and not psutil.pid_exists(int(pid)) else host), pid
    return "", ""


def _refuse(folder: Path, refusals: Refusals | None) -> None:
    """Refuse a folder that holds one of the refused names, or files that no run has written."""
    if refusals is None:
        return
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    is_interrupted = is_begun(folder)
    foreign: tuple[str, ...] = () if is_interrupted else _OF_INTERRUPTED_RUN
    if _LOCK not in present and not is_interrupted:
        foreign = tuple(present)
    refuse_names(shown(folder), present, refusals | {_FOREIGN: foreign})


def refuse_names(folder: str, present: Collection[str], refusals: Refusals) -> None:
    """Refuse a folder in which one of the refused names is.

    Raises:
        UserError: it says why.
    """
    for reason, names in refusals.items():
        for name in names:
            if name in present:
                raise UserError(f"output_dir={folder}: {reason.format(name)}")


def is_run_folder(folder: Path) -> bool:
    """Whether a run has claimed a folder, now or earlier."""
    return (folder / _LOCK).is_file() or is_begun(folder)


def is_held(folder: Path) -> bool:
    """Whether a process is using a run's or a sweep's folder, as far as locks can say."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here, or none of the folder
        return (folder / _HOLDER).exists() and _holder(folder)[0] is not None
    return False


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a journal, or the empty place of one that a killed process left."""
    journal = folder / JOURNAL
    if not os.path.isdir(journal):  # `Path.is_dir` raises where a name is too long
        return False
    names = {path.name for path in journal.iterdir() if path.suffix != ".partial"}
    is_journal = JOURNAL_IDENTITY in names or any(journal.glob(JOURNAL_SEGMENTS))
    return is_journal or (not names and (folder / _LOCK).exists())


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _RunLog(logging.FileHandler):
    """A run's log; what a disk without room does not take is missing in it, and that is all."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        with contextlib.suppress(OSError):  # of opening the file
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave the screen to the one line that says what ended the run."""


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = _RunLog(path, encoding="utf-8", delay=True, errors="backslashreplace")
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def _remove(new: list[Path], names: tuple[str, ...]) -> None:
    """Remove the folders that were made for a run, unless the innermost holds further names."""
    if new and new[0].is_dir() and {path.name for path in new[0].iterdir()} <= set(names):
        for name in names:
            (new[0] / name).unlink(missing_ok=True)
        remove_empty(new)
