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
import os, subprocess, sys, time
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
KILLED = """
import psutil
mark = guard.guarded().mark
guards = [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or ())]
[one.kill() for one in guards]
psutil.wait_procs(guards)
guard.end_guard()
sys.exit(len(guards) != 1)
"""


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
    """Wait for a process and a folder, or all folders that a pattern names."""
    deadline = time.monotonic() + 10
    while (lives(child) or any(folder.parent.glob(folder.name))) and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "then", ["guard.end_guard()", KILLED, "sys.exit()", "import os; os.abort()", "1 / 0", WAIT]
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("other.kill(); other.wait()", "the other has ended; go on\n"),
        (
            "guard.note_how_to_go_on(lambda: '; go on with 2'); other.kill(); other.wait()",
            "the other has ended; go on with 2\n",
        ),
        ("other.kill(); other.wait(); guard.be_silent()", ""),
        ("pass", ""),
    ],
)
def test_a_command_that_another_process_takes_with_it_has_its_words_said(tmp_path, then, said):
    code = f"""
from cfdist.distributed import guard
import os, subprocess
guard.guarded()
other = subprocess.Popen(["sleep", "600"], stdout=-3, stderr=-3)
guard.note_how_to_go_on(lambda: "; go on")
guard.speak_for(other.pid, 2, lambda how: f"the other has ended{{how}}")
{then}
os._exit(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.slow
def test_the_words_of_a_command_that_ends_before_its_guard_gets_a_processor_are_said():
    code = """
from cfdist.distributed import guard
import os, psutil, subprocess
mark = guard.guarded().mark
other = subprocess.Popen(["true"], stdout=-3, stderr=-3)
other.wait()
(slow,) = [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or ())]
slow.suspend()
subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -CONT {slow.pid}"], stdout=-3, stderr=-3)
guard.speak_for(other.pid, 2, lambda how: "the other has ended")
os._exit(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (1, "the other has ended\n")


def test_a_line_that_is_no_text_is_said_all_the_same(tmp_path):
    """Else the guard would die before it cleans up."""
    screen = tmp_path / "screen"
    screen.touch()
    speaker = guard.Speaker(2**30, str(screen), "go on with: resume=\udce9\n")
    speaker.speak()
    speaker.close()
    assert screen.read_text() == "go on with: resume=\\udce9\n"


# Its second session: nothing of the first is left, and all that something else has started.
AGAIN = """
mark = {guard.VARIABLE: guard.guarded().session}
of_the_first = subprocess.Popen(["sleep", "600"], env=mark, stdout=-3, start_new_session=True)
second = guard.guarded_anew().make_folder(base)
is_wrong = of_the_first.wait(timeout=20) != -9 or folder.exists() or folder == second
os.kill(int(made.stdout), 0)
sys.exit(int(is_wrong))
"""


@pytest.mark.slow
def test_a_second_session_of_a_command_ends_what_is_left_of_the_first_alone(tmp_path):
    process, _, child = start(tmp_path, AGAIN)
    assert process.wait(timeout=60) == 0
    wait_for_end(child, tmp_path / "*")
    assert not lives(child)
    assert list(tmp_path.iterdir()) == []


# A program that uses the functions: what it starts itself is not ended with their sessions.
PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from cfdist.distributed import guard
for _ in range(2):
    folder = guard.guarded_anew().make_folder(Path(sys.argv[1]))
own = subprocess.Popen(["sleep", "600"], stdout=-3)
guard.end_guard()
sys.exit(guard.VARIABLE in os.environ or own.poll() is not None or own.kill())
"""


@pytest.mark.slow
def test_what_a_program_starts_beside_a_session_goes_on(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=PROJECT, timeout=60)
    assert done.returncode == 0
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
