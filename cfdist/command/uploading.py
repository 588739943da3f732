"""A run whose `output_dir` is a URI: what its spool folder holds goes there, and comes back.

At the URI `results.json` appears last (a sweep's `sweep.csv`), so that it means a finished run. The
journal of a run that ended early goes there too, and another host can go on with it.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from pathlib import Path

from cfdist.command.run_folder import (
    HOLDERS,
    HYDRA_RECORD,
    Refusals,
    holding,
    mark_as_ours,
    refuse_names,
)
from cfdist.errors import DiskFullError, ExitCode, StoppedError, UserError
from cfdist.files import CONFIG, DISK_IS_FULL, JOURNAL, RESULTS, SWEEP_CSV, read_file
from cfdist.monitoring.terminal import say
from cfdist.storage import (
    RemoteFolder,
    copy_here,
    in_parallel,
    remote_folder,
    spool_of,
    uri_of,
    within,
)

# Ends the names of files and folders that are not whole.
_PARTIAL = ".partial"

log = logging.getLogger(__name__)


def prepare(folder: Path, refusals: Refusals) -> None:
    """Before a run in a spool folder: see to its URI, and fetch the unfinished run that is there.

    Args:
        folder: The run's or the sweep's; nothing is done for one that is no spool folder.
        refusals: See `run_folder.TO_RUN`.

    Raises:
        UserError: the URI cannot be written to, or holds a finished run or one of another kind.
    """
    if (uri := uri_of(folder)) is None:
        return
    try:
        remote = remote_folder(uri)
        there = remote.holds({HYDRA_RECORD, JOURNAL, *(n for ns in refusals.values() for n in ns)})
        refuse_names(uri, there, refusals)
        if there and not folder.exists():
            _fetch(uri, folder)
        if uri_of(folder.parent) is None:  # not the further runs of a sweep
            remote.refuse_unwritable()
    except OSError as error:
        is_full = error.errno in DISK_IS_FULL
        raise (DiskFullError if is_full else UserError)(
            f"output_dir={uri}: cannot be used ({error.strerror or error}); see that it is there "
            "and to its permissions, or choose another"
        ) from None


def _fetch(uri: str, folder: Path) -> None:
    """Copy what is at a URI into a spool folder, which appears whole or not at all.

    Raises:
        OSError: something cannot be read or written, or the folder has appeared meanwhile.
    """
    spool = spool_of(folder)
    assert spool is not None
    copied = spool.with_name(f".{uuid.uuid4().hex}{_PARTIAL}")
    try:
        copy_here(uri, copied)
        # Those of a sweep's runs, too: not each has left a journal that shows whose it is.
        for claimed in {copied, *(path.parent for path in copied.rglob(CONFIG))}:
            mark_as_ours(claimed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        copied.rename(folder)
    finally:
        shutil.rmtree(copied, ignore_errors=True)


def deliver(folder: Path) -> None:
    """Send what a run has left in its spool folder, and remove the folder; others stay.

    The runs of a sweep stay until its end, which sends what could not be sent before.

    Raises:
        StoppedError: it cannot be sent; the folder stays.
    """
    if (uri := uri_of(folder)) is None or not folder.exists():
        return
    is_in_sweep = uri_of(folder.parent) is not None
    try:
        with holding(folder):
            send(folder, is_in_sweep)
    except StoppedError as error:
        if not is_in_sweep:
            raise
        log.warning("%s", error)
        say(f"{uri}: not written yet; the sweep's end tries again")


def deliver_unfinished(folder: Path) -> None:
    """Send the journal and all else of a run that ended early, if that can be; all stays here."""
    if uri_of(folder) is None or not folder.exists():
        return
    try:
        with holding(folder):
            send(folder, keeps=True)
    except (UserError, StoppedError) as error:
        log.warning("%s", error)


def send(folder: Path, keeps: bool = False) -> None:
    """Send the files of a spool folder that this process holds, and remove it unless it is kept.

    Raises:
        StoppedError: they cannot be sent; the folder stays.
    """
    uri = uri_of(folder)
    assert uri is not None
    try:
        _upload(folder, remote_folder(uri), uri)
    except OSError as error:
        is_full = error.errno in DISK_IS_FULL
        raise StoppedError(
            f"output_dir={uri}: cannot be written to ({error.strerror or error}); the results stay "
            f"in {folder} until the same command is given again",
            ExitCode.DISK_FULL if is_full else ExitCode.INTERNAL,
        ) from None
    if not keeps:
        shutil.rmtree(folder, ignore_errors=True)
        say(f"written to {uri}")


def _upload(folder: Path, remote: RemoteFolder, uri: str) -> None:
    """Write the files that are not at the URI yet.

    Raises:
        OSError: one cannot be written.
        StoppedError: the URI holds another finished run.
    """
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [
        path.as_posix()
        for path in found
        if path.name not in HOLDERS and not any(one.endswith(_PARTIAL) for one in path.parts)
    ]
    finished = [name for name in names if name.rpartition("/")[2] == RESULTS]
    runs = {path.parent for path in found if path.name in (CONFIG, RESULTS)}
    for name in sorted(remote.holds((run / RESULTS).as_posix() for run in runs)):
        parent = name.removesuffix(RESULTS)
        # One that has ended early here, and was finished elsewhere, has nothing to send.
        if name in finished and remote.read(name) != read_file(folder / name):
            raise StoppedError(
                f"output_dir={within(uri, parent.rstrip('/'))}: another run has finished there "
                f"meanwhile; the results stay in {folder / parent}",
                ExitCode.INTERNAL,
            )
        names = [one for one in names if not one.startswith(parent)]

    def write(name: str) -> None:
        with (folder / name).open("rb") as file:
            remote.write(name, file)

    last = [*finished, SWEEP_CSV]
    in_parallel(write, [name for name in names if name not in last])
    # In a thread, too, which nothing interrupts: a store makes a whole file of the first part.
    for name in last:
        in_parallel(write, [name] if name in names else [])
    for name in finished:
        remote.remove_folder(name.removesuffix(RESULTS) + JOURNAL)
