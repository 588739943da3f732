"""What a command has started ends with it, and its folder goes; nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cfdist.distributed import guard
from tests.conftest import PROJECT

# A command with a folder and a child that has left its parent, group and session.
COMMAND = """
import subprocess, sys, time
from pathlib import Path
from cfdist.distributed import guard
base = Path(sys.argv[1])
guard.clear_dead(base)
folder = guard.guarded().make_folder(base)
(folder / "inner").mkdir()
(folder / "inner" / "file").touch()
child = "import subprocess, sys; print(subprocess.Popen(['sleep', '600'], stdout=-3).pid)"
made = subprocess.run([sys.executable, "-c", child], start_new_session=True, stdout=-1, text=True)
print(folder, made.stdout.strip(), flush=True)
{then}
"""
WAIT = "time.sleep(600)"


def start(base: Path, then: str = WAIT) -> tuple[subprocess.Popen, Path, int]:
    """A command, its folder and its grandchild."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(then=then), str(base)],
        cwd=PROJECT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    folder, child = process.stdout.readline().split()
    process.stdout.close()
    return process, Path(folder), int(child)


def lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(child: int, folder: Path) -> None:
    deadline = time.monotonic() + 10
    while (lives(child) or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "then", ["guard.end_guard()", "sys.exit()", "import os; os.abort()", "1 / 0", WAIT]
)
def test_however_a_command_ends_nothing_is_left(tmp_path, then):
    process, folder, child = start(tmp_path, then)
    if then == WAIT:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            os.killpg(process.pid, number)
    process.wait(timeout=60)
    if "end_guard" not in then:  # which waits itself
        wait_for_end(child, folder)
    assert not lives(child)
    assert list(tmp_path.iterdir()) == []


# Its second session: nothing of the first is left.
AGAIN = """
second = guard.guarded_anew().make_folder(base)
sys.exit(f"{folder} {second}" if folder.exists() or folder == second else 0)
"""


@pytest.mark.slow
def test_a_second_session_of_a_command_ends_what_is_left_of_the_first(tmp_path):
    process, folder, child = start(tmp_path, AGAIN)
    assert process.wait(timeout=60) == 0
    wait_for_end(child, folder)
    assert not lives(child)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_can_be_left_to_the_person(tmp_path):
    process, folder, child = start(tmp_path, "guard.guarded().keep_folder()")
    process.wait(timeout=60)
    deadline = time.monotonic() + 10
    while lives(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not lives(child)
    assert (folder / "inner" / "file").exists()
    deadline = time.monotonic() + 10  # the guard may still hold it
    while folder.exists() and time.monotonic() < deadline:
        guard.clear_dead(tmp_path)
    assert not folder.exists()


def test_only_the_dead_are_cleared(tmp_path):
    living, folder, child = start(tmp_path)
    names = ("ray/session_1", "cfdist", "other", "cfdist-results", "cfdist-1000", "cfdist-202611")
    others = [tmp_path / name for name in names]
    for other in others:
        other.mkdir(parents=True)
    target = tmp_path / "other" / "file"
    target.touch()
    (tmp_path / "cfdist-link").symlink_to(tmp_path / "other")
    (tmp_path / "cfdist-file").touch()
    dead = tmp_path / "cfdist-0badad"
    (dead / "session_1" / "logs").mkdir(parents=True)
    (dead / ".of_guard").write_text("0badad")
    with subprocess.Popen(["sleep", "600"], env={guard.VARIABLE: "0badad"}) as left:
        guard.clear_dead(tmp_path)
        assert left.wait(timeout=10) == -signal.SIGKILL
    assert not dead.exists()
    assert all(other.is_dir() for other in others)
    assert target.exists()
    assert lives(child)
    assert folder.is_dir()
    living.kill()
    living.wait()
    wait_for_end(child, folder)
    assert not folder.exists()


def test_another_user_s_folder_stays(tmp_path, monkeypatch):
    (tmp_path / "cfdist-0badad").mkdir()
    (tmp_path / "cfdist-0badad" / ".of_guard").write_text("0badad")
    monkeypatch.setattr(guard.os, "geteuid", lambda: os.getuid() + 1)
    guard.clear_dead(tmp_path)
    assert (tmp_path / "cfdist-0badad").is_dir()


def test_two_guards_hold_one_folder_and_a_third_does_not_get_it_alone(tmp_path):
    first, second = guard.hold(tmp_path), guard.hold(tmp_path)
    with pytest.raises(BlockingIOError):
        guard.hold(tmp_path, is_alone=True)
    os.close(first)
    os.close(second)
    os.close(guard.hold(tmp_path, is_alone=True))
