"""Each write of a run fails, or is its last: what goes on afterwards ends with the very same bytes.

`CFDIST_LONG_TESTS=1` tries every way at each write; else every write meets one of the eight ways.

The run is that of a reducer and a run's folder, in this process and without Ray. Its writes go
through `os`, where they are counted and disturbed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cfdist.command.run_folder import claim
from cfdist.detections import Detections, to_arrow
from cfdist.distributed.journal import Journal, RunIdentity
from cfdist.distributed.reducer import Reducer
from cfdist.errors import UserError
from cfdist.files import JOURNAL, LOG, RESULTS, write_text
from cfdist.widerface.ground_truth import PictureTruth
from tests.faults import IS_LONG

ORDER = tuple(f"e{i % 2}/p{i}" for i in range(6))
BATCHES = (ORDER[:2], ORDER[2:5], ORDER[5:])
IDENTITY = RunIdentity("f", "openvino", {"backend": "openvino"})
TRUTH = {id: PictureTruth(id, np.ones((1, 4)) * 30, np.ones((3, 1), bool)) for id in ORDER}

WRITES = ("write", "fsync", "replace", "unlink", "rmdir", "mkdir", "ftruncate", "truncate")


# Many runs, whose writes are counted, not kept.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class CrashError(BaseException):
    """The process ends here: nothing that it does afterwards has an effect."""


class Disk:
    """Counts what a process does to the disk, and disturbs it from one of its writes on.

    Attributes:
        count: Writes so far.
        synced: File's number on its disk -> its size at its last fsync.
    """

    def __init__(self, disturb: Callable[[int, str, Callable[..., object], tuple], None]) -> None:
        """`disturb` gets a write's number, name, function and arguments, and may raise."""
        self._disturb = disturb
        self.count = 0
        self.synced: dict[int, int] = {}

    def wrap(self, name: str, real: Callable) -> Callable:
        def write(*arguments, **named):
            is_new = name != "open" or arguments[1] & os.O_CREAT
            if not is_new:
                return real(*arguments, **named)
            self.count += 1
            self._disturb(self.count, name, real, arguments)
            result = real(*arguments, **named)
            if name == "fsync":
                status = os.fstat(arguments[0])
                self.synced[status.st_ino] = status.st_size
            return result

        return write


@contextlib.contextmanager
def disturbed(disturb) -> Iterator[Disk]:
    disk = Disk(disturb)
    with pytest.MonkeyPatch.context() as patch:
        for name in (*WRITES, "open"):
            patch.setattr(os, name, disk.wrap(name, getattr(os, name)))
        yield disk


def found(id: str) -> Detections:
    random = np.random.default_rng(ORDER.index(id))
    scores = np.sort(random.random(3, np.float32))[::-1]
    return Detections(id, 30 * random.random((3, 4), np.float32), scores)


def run(folder: Path, check: Callable[[Path, set[str]], None] = lambda *_: None) -> None:
    """What `job=evaluate` does to its folder; `check` is told the pictures that are done."""
    with claim(folder, "job: evaluate\n"):
        reducer = Reducer()
        reducer.open(TRUTH, ORDER, folder, IDENTITY, "official")
        for batch in BATCHES:
            if missing := [found(id) for id in batch if id not in reducer.done]:
                reducer.add(to_arrow(missing))
                check(folder, reducer.done)
        evaluation = reducer.finish()
        write_text(folder / RESULTS, json.dumps(evaluation.ap))
        shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def go_on(folder: Path) -> None:
    """Run again in a folder, unless the results are there."""
    if not (folder / RESULTS).exists():
        run(folder)
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def files_of(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for its log."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOG]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[str, bytes], int]:
    """What an undisturbed run leaves, and the number of its writes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with disturbed(lambda *_: None) as disk:
        run(folder)
    files = files_of(folder)
    assert {"results.json", "predictions.parquet", "predictions/e0/p0.txt"} <= files.keys()
    return files, disk.count


def failing(number: int, error: int, until: float = 0.0, share: float = 0.0):
    """Writes from one on fail, up to another; of what is written a share arrives."""

    def disturb(count, name, real, arguments) -> None:
        if number <= count <= max(number, until):
            if until and name in ("unlink", "rmdir", "ftruncate", "truncate"):
                return  # a full disk lets these happen
            if name == "write" and share:
                real(arguments[0], bytes(arguments[1])[: int(len(arguments[1]) * share)])
            raise OSError(error, os.strerror(error))

    return disturb


def crashing(number: int, share: float):
    def disturb(count, name, real, arguments) -> None:
        if count == number and name == "write" and share:
            real(arguments[0], bytes(arguments[1])[: int(len(arguments[1]) * share)])
        if count >= number:
            raise CrashError

    return disturb


WAYS = {
    "EIO": lambda n: failing(n, errno.EIO),
    "ENOSPC": lambda n: failing(n, errno.ENOSPC),
    "EDQUOT": lambda n: failing(n, errno.EDQUOT),
    "short write": lambda n: failing(n, errno.ENOSPC, share=0.5),
    "EIO after the write": lambda n: failing(n, errno.EIO, share=1.0),
    "full from then on": lambda n: failing(n, errno.ENOSPC, until=float("inf"), share=0.3),
    "killed before": lambda n: crashing(n, 0.0),
    "killed in the write": lambda n: crashing(n, 0.6),
}


def try_one(disturb, files: dict[str, bytes]) -> str | None:
    """Disturb a run and go on with it; what is wrong then, or `None`."""
    with tempfile.TemporaryDirectory(dir=FAST) as temporary:
        folder, acknowledged = Path(temporary, "out"), set()

        def check(folder: Path, done: set[str]) -> None:
            for segment in (folder / JOURNAL).glob("segment-*"):
                status = segment.stat()
                on_disk = disk.synced.get(status.st_ino, 0)
                assert status.st_size <= on_disk, "acknowledged before its fsync"
            acknowledged.update(done)

        with (
            disturbed(disturb) as disk,
            contextlib.suppress(OSError, UserError, CrashError),
        ):
            run(folder, check)
        if (folder / JOURNAL).is_dir() and not (folder / RESULTS).exists():
            ids = journal_ids(folder)
            if len(ids) != len(set(ids)) or not acknowledged <= set(ids):
                return f"the journal holds {ids}, {sorted(acknowledged)} were acknowledged"
        go_on(folder)
        left = files_of(folder)
        different = [name for name in left | files if left.get(name) != files.get(name)]
        return f"different: {different}" if different else None


def journal_ids(folder: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder / JOURNAL, Path(temporary, "out", JOURNAL))
        tables = Journal(copy, IDENTITY).read()
        return [id for table in tables for id in table.column("id").to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_write_point(whole, way, capsys):
    files, count = whole
    assert count > 60
    points = range(1, count + 1) if IS_LONG else range(1 + [*WAYS].index(way), count + 1, len(WAYS))
    wrong = {}
    for number in points:
        if problem := try_one(WAYS[way](number), files):
            wrong[number] = problem
    total = len(points)
    with capsys.disabled():
        print(f"\n{way}: {total - len(wrong)} of {total} write points end with the same bytes")
    assert wrong == {}


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_moment(whole, capsys):
    files, count = whole
    random = np.random.default_rng(7)
    wrong = {}
    for seed in range(20):
        start = int(random.integers(1, count))
        end = start + int(random.integers(1, 12))
        if problem := try_one(failing(start, errno.ENOSPC, until=end, share=0.5), files):
            wrong[seed] = problem
    with capsys.disabled():
        print(f"\nfull for a moment: {20 - len(wrong)} of 20 end with the same bytes")
    assert wrong == {}


def test_the_checker_finds_what_is_not_on_the_disk(whole):
    """A journal without fsync does not pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", lambda self, table: appended_without_fsync(self, table))
        with pytest.raises(AssertionError, match="before its fsync"):
            try_one(lambda *_: None, whole[0])


def appended_without_fsync(journal: Journal, table) -> None:
    sink = io.BytesIO(b"x" * len(table))
    (journal.folder / "segment-0009.arrow").write_bytes(sink.getvalue())
