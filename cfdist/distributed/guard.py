"""Ends what a command has started and removes its folder, however the command itself ends.

The guard is a process of its own that waits for the end of the command's process, which the kernel
tells it by closing a pipe; SIGKILL, a crash and an orderly end are one to it. It belongs to no
process group or parent that anybody signals, and ignores what ends the command in order. It knows
the command's processes by a variable of their environment, and so finds those that have left their
parents, groups and sessions, as Ray's agents have. The processes of a Ray session have a mark of
their own, so that a session can end before its command, whose libraries may have started others.

The guard of a session that a command leaves to later ones outlives the command, and ends the
session when its time is over; see `cfdist.distributed.keeping`.

This file runs as a script with the standard library alone, in 20 ms.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

# In the environment of all processes of a command; its value is the command's mark, or that of its
# Ray session.
VARIABLE = "CFDIST_MARK"

# Of the name of a session's folder; the session's mark follows.
PREFIX = "cfdist-"

# A session's folder has such a name, and this file with its mark in it, and the command's. Other
# folders of the name are a person's own.
_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{6}}")
_MARKER = ".of_guard"

_LONGEST_KILL = 5.0  # seconds until the guard lets go of processes that the kernel does not end
_LONGEST_WAIT = 4.0  # seconds that a command's end waits for its guard

_PROCESSES = Path("/proc")

NODE_IS_GONE = "Ray's node process on this host has ended"

# Of a session that outlives commands. Whoever uses it holds a lock on this file in its folder.
IN_USE = ".in_use"
_LOOKS_EVERY = 0.25  # seconds


class Guard:
    """This process's side of its guard.

    Attributes:
        mark: Tells this command's processes from those of others; empty: they have none.
        session: The mark of its Ray session's processes, once it has one.
        folder: That session's folder.
    """

    def __init__(self, marks_all: bool = True) -> None:
        """Mark the processes that start from now on, unless only some are, and start the guard.

        Raises:
            OSError: it cannot be started.
        """
        self.mark = secrets.token_hex(3) if marks_all else ""
        self.session = ""
        self.folder: Path | None = None
        self._held: int | None = None
        # Ray's workers write their titles over their environment otherwise.
        os.environ["SPT_NOENV"] = "1"
        if marks_all:
            os.environ[VARIABLE] = self.mark
        process = subprocess.Popen(
            [sys.executable, "-IS", __file__, self.mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout
        process.wait()  # it leaves a child that is nobody's

    def make_folder(self, base: Path) -> Path:
        """A new session's own folder in `base`, which others may see but not change.

        Raises:
            OSError: it cannot be made.
        """
        session = secrets.token_hex(3)
        folder = base / f"{PREFIX}{session}"
        folder.mkdir(mode=0o700)
        with contextlib.suppress(OSError):  # no locks here: a later command cannot tell it is alive
            self._held = hold(folder)
            (folder / _MARKER).write_text(f"{session} {self.mark}")
        self.session, self.folder = session, folder
        self.tell("folder", folder)
        self.wait()  # or a command that clears what the dead have left could be faster than it
        return folder

    def end_session(self) -> None:
        """End the session's processes now, and remove its folder; the command's others go on."""
        if self.session:
            self.tell("end")
            self.wait()
            self._forget()

    def keep_folder(self) -> None:
        """Leave the folder to the person, until a later command clears it."""
        self.tell("leave", self.folder)
        self.folder = None

    def keep(self, record: Path) -> None:
        """Let what is guarded outlive this process, as long as its record says: `_wait_idle`."""
        self.tell("keep", record)

    def let_go(self) -> None:
        """Let the guard go on without this process, or do its work if there is nothing to keep."""
        with contextlib.suppress(OSError):
            self._to.close()
        self._forget()

    def end(self) -> None:
        """Let the guard do its work now, and wait until it has; do it here if it was killed."""
        marks, folder = (self.mark, self.session), self.folder
        self.let_go()
        while self.wait():  # a late answer of before
            pass
        if folder is not None and folder.exists():
            clean(marks, [folder])

    def wait(self) -> bool:
        """Wait until the guard has answered, which is true, or has ended or takes too long."""
        is_there = select.select([self._from], [], [], _LONGEST_WAIT)[0]
        return bool(is_there and os.read(self._from.fileno(), 1))

    def _forget(self) -> None:
        held, self._held, self.folder, self.session = self._held, None, None, ""
        if held is not None:
            os.close(held)

    def tell(self, what: str, text: Path | str | None = None) -> None:
        """Write the guard a line, see `_main`."""
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was let go
            self._to.write(os.fsencode(f"{what} {text or ''}") + b"\n")
            self._to.flush()


_guard: Guard | None = None
_has_left_ray = False

# Gives what is added to the line that says how this command ended early.
how_to_go_on: Callable[[], str] = str
_last_words: Callable[[], None] | None = None  # tells the guard what it may have to say


def guarded() -> Guard:
    """The guard of this process, started at the first call."""
    global _guard
    if _guard is None:
        _guard = Guard()
    return _guard


def guarded_anew() -> Guard:
    """The guard of this process's next session; what is left of the one before ends first.

    In a process that is no command, only the session's processes are marked.
    """
    global _guard
    if _guard is None:
        _guard = Guard(marks_all=False)
    _guard.end_session()
    return _guard


def end_guard() -> None:
    """End what is left of this command, if it has a guard."""
    global _guard
    guard, _guard = _guard, None
    if guard is not None:
        guard.end()


def note_how_to_go_on(text: Callable[[], str]) -> None:
    """Note what gives the text that follows the line about an early end, from now on."""
    global how_to_go_on
    how_to_go_on = text
    if _last_words is not None:
        _last_words()


def speak_for(process: int, screen: int, line: Callable[[str], str]) -> None:
    """Let the guard say a line if this process ends from now on and another had ended before.

    Ray ends this process without a word if its node process has ended and something asks for it
    before `head_watched` notices.

    Args:
        process: The other one's number.
        screen: This process's descriptor to which the line is written.
        line: Gives it, without its end, of the text that says how to go on.
    """
    global _last_words

    def tell() -> None:
        how = ""
        with contextlib.suppress(Exception):
            how = how_to_go_on()
        if _guard is not None:
            place = f"/proc/{os.getpid()}/fd/{screen}"
            _guard.tell("speak", json.dumps([process, place, f"{line(how)}\n"]))
            _guard.wait()  # it can open the screen only while this process is there

    _last_words = tell
    tell()


def be_silent() -> None:
    """Let the guard say nothing from now on: this process says itself how it ends."""
    global _last_words
    _last_words = None
    if _guard is not None:
        _guard.tell("silence")


def leave_ray(leaves: bool = True) -> None:
    """Note that Ray is left as it is: the guard ends its processes, and its own end is skipped."""
    global _has_left_ray
    _has_left_ray = leaves


def has_left_ray() -> bool:
    """Whether Ray's own end, which may never come, has to be skipped as this process ends."""
    return _has_left_ray


def hold(folder: Path, is_alone: bool = False) -> int:
    """Lock a command's folder until this process ends, or the descriptor returned is closed.

    The command and its guard hold it together; whoever can hold it alone knows that it is dead.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it is not there or no folder, or cannot be locked.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        kind = fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def use(folder: Path) -> int:
    """Lock a session that outlives commands, for as long as the descriptor returned is open.

    Raises:
        BlockingIOError: another process uses it.
        OSError: it is not there any more.
    """
    descriptor = os.open(folder / IN_USE, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def clear_dead(base: Path) -> None:
    """Remove what this user's dead commands have left in `base`: their folders and processes.

    The folders of living commands stay, and those of other users and of other programs.
    """
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            mark = folder.name.removeprefix(PREFIX)
            is_ours = _NAME.fullmatch(folder.name) and folder.lstat().st_uid == os.geteuid()
            marks = (folder / _MARKER).read_text().split() if is_ours else []
            if marks[:1] != [mark]:
                continue
            held = hold(folder, is_alone=True)
            try:
                clean(marks, [folder])
            finally:
                os.close(held)


def clean(marks: Collection[str], folders: Iterable[Path | None]) -> None:
    """Kill the processes with one of the marks, and remove folders."""
    deadline = time.monotonic() + _LONGEST_KILL
    empty = 0  # looks in a row that found none; one may have been about to start another
    while empty < 2 and time.monotonic() < deadline:
        found = list(_marked(marks))
        for process in found:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        empty = 0 if found else empty + 1
        time.sleep(0.02 if found else 0)
    for folder in folders:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _marked(marks: Collection[str]) -> Iterator[int]:
    """The processes with one of the marks; none on a system that shows no environments."""
    wanted = {f"{VARIABLE}={mark}".encode() for mark in marks if mark}
    names = os.listdir(_PROCESSES) if _PROCESSES.is_dir() else []
    for name in {*filter(str.isdigit, names)} - {str(os.getpid())}:
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if wanted & {*(_PROCESSES / name / "environ").read_bytes().split(b"\0")}:
                yield int(name)


class Speaker:
    """Says a line on the screen of a command that has ended, if another process ended first."""

    def __init__(self, process: int, place: str, line: str) -> None:
        """Open the screen, a path under /proc, while its owner is there; that may be impossible."""
        self._process, self._line, self._screen = process, line, -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK  # it may have no reader
        with contextlib.suppress(OSError):
            self._screen = os.open(place, flags)

    def speak(self) -> None:
        """Say it, unless the other process is still there."""
        with contextlib.suppress(OSError):
            status = (_PROCESSES / str(self._process) / "stat").read_text()
            if status.rpartition(")")[2].split()[0] != "Z":
                return
        with contextlib.suppress(OSError):
            os.write(self._screen, self._line.encode(errors="backslashreplace"))

    def close(self) -> None:
        """Let the screen's reader see its end."""
        if self._screen >= 0:
            os.close(self._screen)


def _main(mark: str) -> None:
    """Wait for the command's end, and do what it writes meanwhile, a line for each.

    "folder <a session's>", "leave <a folder to the person>", "keep <the record of the session>",
    "speak <`Speaker`'s arguments>", "silence", and "end": the sessions so far, now. "folder",
    "speak" and "end" are answered.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        os._exit(0)  # nobody's child: whoever ends the command's children leaves it
    folders: dict[str, Path | None] = {}  # the mark of a session -> what is removed at its end
    record, speaker = None, None
    for line in sys.stdin.buffer:
        what, _, text = os.fsdecode(line[:-1]).partition(" ")
        path = Path(text)
        session = path.name.removeprefix(PREFIX)
        match what:
            case "folder":
                folders[session] = path
                with contextlib.suppress(OSError):
                    hold(path)
                with contextlib.suppress(OSError):
                    os.write(1, b".")
            case "leave":
                folders[session] = None
            case "keep":
                record = path
            case "speak":
                if speaker is not None:
                    speaker.close()
                speaker = Speaker(*json.loads(text))
                with contextlib.suppress(OSError):
                    os.write(1, b".")
            case "silence" if speaker is not None:
                speaker.close()
                speaker = None
            case "end":
                clean(folders.keys(), folders.values())
                folders.clear()
                with contextlib.suppress(OSError):
                    os.write(1, b".")
    if speaker is not None:
        speaker.speak()
        speaker.close()
    for session, folder in folders.items():
        if folder is not None and record is not None:
            _wait_idle(session, folder, record)
    clean({mark, *folders}, folders.values())


def _wait_idle(session: str, folder: Path, record: Path) -> None:
    """Return when nobody has used a session for as long as its record says, or the record is gone.

    The record goes first, and nobody can use the session from then on.
    """
    since = None
    while True:
        time.sleep(_LOOKS_EVERY)
        try:
            used = use(folder)
        except BlockingIOError:
            since = None
            continue
        except OSError:
            return
        since = since or time.monotonic()
        try:
            content = json.loads(record.read_text())
            is_ours = content["mark"] == session
            if is_ours and time.monotonic() - since < 60 * content["minutes"]:
                os.close(used)
                continue
            if is_ours:
                record.unlink()
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return  # the lock stays until this process ends


if __name__ == "__main__":
    _main(sys.argv[1])
