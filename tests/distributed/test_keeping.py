"""A session that is left to later commands: who finds it, and when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cfdist.distributed import guard, keeping
from tests.conftest import PROJECT


@pytest.fixture
def runtime(tmp_path, monkeypatch) -> Path:
    """The folder of the records."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = keeping.runtime_folder(makes=True)
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    return folder


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("OMP_NUM_THREADS", True),
        ("ASCEND_RT_VISIBLE_DEVICES", True),
        ("LD_LIBRARY_PATH", True),
        ("ANY_OTHER", True),
        ("TERM", False),
        ("SSH_TTY", False),
    ],
)
def test_only_a_terminal_s_variables_make_no_other_session(runtime, monkeypatch, name, matters):
    monkeypatch.delenv(name, raising=False)
    before = keeping.record_path("same")
    assert before == keeping.record_path("same")
    monkeypatch.setenv(name, "3")
    assert (keeping.record_path("same") != before) == matters


def test_other_sources_cores_accelerators_folders_make_another_session(
    runtime, monkeypatch, tmp_path
):
    paths = [keeping.record_path(("npu", 2)), keeping.record_path(("npu", 3))]
    for name, value in (
        ("sources_digest", lambda: "other"),
        ("available_cores", lambda: 99),
        ("_CHECKOUT", tmp_path),
        ("sys", SimpleNamespace(executable="other", flags=sys.flags)),
        ("metadata", SimpleNamespace(version=lambda name: "0.1")),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(keeping, name, value)
            paths.append(keeping.record_path(("npu", 2)))
    monkeypatch.chdir(tmp_path)
    paths.append(keeping.record_path(("npu", 2)))
    assert None not in paths
    assert len({*paths}) == len(paths) == 8
    # Another checkout's records have another beginning.
    assert len({path.name.partition("-")[0] for path in paths}) == 2


def test_a_place_that_others_can_see_is_none(runtime, tmp_path, monkeypatch):
    runtime.chmod(0o755)
    assert keeping.record_path("any") is None
    runtime.rmdir()
    assert keeping.record_path("any") is None
    runtime.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    assert keeping.record_path("any", makes=True) is None


# A command that keeps a "session", one sleeping process, says which, and then waits.
COMMAND = """
import os, subprocess, sys, time
from pathlib import Path
from cfdist.distributed import guard, keeping
keeper = guard.Guard(marks_all=False)
folder = keeper.make_folder(Path(sys.argv[1]))
environment = {guard.VARIABLE: keeper.session}
child = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True, stdout=-3)
(folder / guard.IN_USE).touch()
path = Path(sys.argv[2])
record = keeping.Record(keeper.session, str(folder), "127.0.0.1:1", "none", float(sys.argv[3]), "")
kept = keeping.Kept(path, record, guard.use(folder), keeper)
keeping._write(path, record)
keeper.keep(path)
print(folder, child.pid, flush=True)
sys.stdin.read(1)
kept.leave()
time.sleep(60)
"""


@contextlib.contextmanager
def session(base: Path, path: Path, minutes: float):
    """The command, the session's folder and its process."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(base), str(path), str(minutes)],
        cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        folder, child = process.stdout.readline().split()
        yield process, Path(folder), int(child)
    finally:
        path.unlink(missing_ok=True)
        process.kill()
        process.communicate()


def lives(process: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def wait_for_end(folder: Path, child: int) -> float:
    """Seconds until a session has ended."""
    began = time.monotonic()
    while (lives(child) or folder.exists()) and time.monotonic() < began + 20:
        time.sleep(0.02)
    assert not lives(child)
    assert not folder.exists()
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("end", ["leave", signal.SIGKILL])
def test_a_session_outlives_its_command_for_its_time(runtime, tmp_path, end):
    path = runtime / "a.json"
    with session(tmp_path, path, 3 / 60) as (process, folder, child):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(BlockingIOError):
            guard.use(folder)
        if end == "leave":
            process.stdin.write("x")
            process.stdin.flush()
        else:
            process.kill()
            process.wait()
        guard.clear_dead(tmp_path)  # as another command does that starts meanwhile
        time.sleep(0.5)
        assert lives(child)
        used = keeping._lock(keeping._read(path))
        time.sleep(3.5)
        assert lives(child)  # while it is used
        os.close(used)
        assert 2.5 < wait_for_end(folder, child) < 15
        assert not path.exists()


@pytest.mark.slow
def test_without_its_record_a_session_ends_when_nobody_uses_it(runtime, tmp_path, monkeypatch):
    path = keeping.record_path("any")
    with session(tmp_path, path, 60) as (process, folder, child):
        keeping.end_kept_sessions()
        assert not path.exists()
        assert lives(child)
        process.kill()
        process.wait()
        wait_for_end(folder, child)
    with session(tmp_path, path, 60) as (process, folder, child):
        process.kill()
        process.wait()
        keeping.end_kept_sessions()
        assert not folder.exists()
        assert not lives(child)


@pytest.mark.slow
def test_a_session_that_is_used_or_broken_is_not_taken(runtime, tmp_path, capsys):
    path = runtime / "a.json"
    assert keeping.find(path, 5) is None
    with session(tmp_path, path, 60) as (process, folder, child):
        assert keeping.find(path, 5) is None
        assert path.exists()
        assert capsys.readouterr().out == ""
        process.kill()
        process.wait()
        # Its head and its node process are not there.
        assert keeping.find(path, 5) is None
        assert capsys.readouterr().out.startswith("note: the Ray session that an earlier")
        wait_for_end(folder, child)
    path.write_text("{}")
    assert keeping.find(path, None) is None
    assert not path.exists()
