"""How the process starts: the screen and interruptions first, then what takes time to import."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from cfdist.command import interruptions
from cfdist.distributed.guard import end_guard, has_left_ray
from cfdist.errors import ExitCode
from cfdist.monitoring import stream
from cfdist.monitoring.terminal import guard_screen, show_waiting

# Known before anything is read, so that what is wrong with the rest is an event, too.
_JSON_TYPED = r"\+{0,2}progress=['\"]?json['\"]?"


def main() -> int:
    """Run the command line; returns the process's exit code."""
    guard_screen()
    if any(re.fullmatch(_JSON_TYPED, argument) for argument in sys.argv[1:]):
        stream.turn_on()
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
        stream.end(code)
    if interruptions.pending() or has_left_ray():
        # Ray's own end, if it was interrupted, would begin again as the interpreter ends, and
        # make the folder anew that the guard has removed. Without a head it might not come.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _import() -> Callable[[], int] | None:
    """What runs the command line; `None`, with a line that says why, if it cannot be imported."""
    if "job=doctor" in sys.argv[1:]:
        from cfdist.doctor import packages  # another command does without what it imports

        if packages.stop_early():
            return lambda: ExitCode.INTERNAL
    try:
        show_waiting("starting")
        from cfdist.command.cli import main
    except ImportError as error:
        # A checkout whose own packages are missing, or a Python that is too old for them.
        if (error.name or "").partition(".")[0] in ("cfdist", "jobs"):
            raise
        if (python := python_of_ray()) and python != sys.executable:
            stream.turn_off()  # the new process has this one's descriptors
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
