"""How the process starts: the screen and interruptions first, then what takes time to import."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from cfdist.command import interruptions
from cfdist.distributed.guard import end_guard
from cfdist.errors import ExitCode
from cfdist.files import redacted

_STANDARD = (0, 1, 2)  # the descriptors of input, output and error messages


def main() -> int:
    """Run the command line; returns the process's exit code."""
    guard_screen()
    interruptions.catch()
    code: int = ExitCode.BAD_INPUT
    try:
        if run := _import():
            code = run()
    except BaseException as error:
        # An error that came of the interruption, in whatever it hit, is none of its own.
        interruption = interruptions.pending() or error
        if not isinstance(interruption, KeyboardInterrupt):
            code = ExitCode.INTERNAL
            if isinstance(error, SystemExit) and isinstance(error.code, int):
                code = error.code
            raise
        code = interruptions.say(interruption)
    finally:
        interruptions.finish(code)
        end_guard()
    if interruptions.pending():
        # Ray's own end, if it was interrupted, would begin again as the interpreter ends, and
        # make the folder anew that the guard has removed.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _import() -> Callable[[], int] | None:
    """What runs the command line; `None`, with a line that says why, if it cannot be imported."""
    try:
        from cfdist.machine import show_waiting

        show_waiting("starting")
        from cfdist.command.cli import main
    except ImportError as error:
        # A checkout whose own packages are missing, or a Python that is too old for them.
        if (error.name or "").partition(".")[0] in ("cfdist", "jobs"):
            raise
        if (python := python_of_ray()) and python != sys.executable:
            os.execv(python, [python, *sys.argv])
        print(
            f"cfdist: {sys.executable} cannot import what is needed ({error}); call ./run.sh in "
            "place of main.py, which makes an environment of its own with all of it",
            file=sys.stderr,
        )
        return None
    return main


def python_of_ray() -> str | None:
    """The Python of the Ray node that runs this command as a submitted job; `None` if none does.

    Such a command's `python` is the one on the node's PATH; Ray may have been started from an
    environment that is not on it.
    """
    process = os.getppid()
    with contextlib.suppress(OSError, ValueError):
        while process > 1:
            folder = Path("/proc", str(process))
            for argument in (folder / "cmdline").read_text(errors="replace").split("\0"):
                if argument.startswith("--python_worker_command="):
                    return shlex.split(argument.partition("=")[2])[0]
            process = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return None


def guard_screen() -> None:
    """Let nothing that happens to the screen stop a run or lose its results.

    What a closed pipe or a full disk does not take is dropped. A descriptor that the caller has
    closed leads to nowhere; else the next file that is opened would get its number, and what is
    printed. A character that the screen cannot show is an escape.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = _guarded(1, sys.stdout)
    sys.stderr = _guarded(2, sys.stderr)


class _Screen(io.FileIO):
    """A descriptor to write to; once it takes no more, what is written is dropped.

    A line that ends in a carriage return goes when something else comes.
    """

    waits = False  # whether such a line stands on the terminal

    def write(self, data: object) -> int:
        """Write bytes, or drop them."""
        taken: bytes = bytes(data)  # type: ignore[call-overload]
        text = redacted(taken.decode("latin-1")).encode("latin-1")
        if _Screen.waits:
            with contextlib.suppress(OSError):
                os.write(1, b"\r\x1b[K")
        _Screen.waits = text.endswith(b"...\r")
        try:
            written = super().write(text) or 0
            return written if text == taken else len(taken)
        except BlockingIOError:  # it will take more
            raise
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            return len(taken)


def _guarded(number: int, stream: TextIO | None) -> io.TextIOWrapper:
    """A guarded stream in place of a standard one (`None` if its descriptor was closed)."""
    with contextlib.suppress(OSError):
        if stream is not None:
            stream.flush()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(_Screen(number, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)
