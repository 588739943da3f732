"""Exceptions that are no faults of the program, and the exit codes."""

from __future__ import annotations

import os
import signal
import time
from enum import IntEnum

# What an interrupted process may take to end: it writes its journal and ends Ray.
_SECONDS_TO_END = 15

_interrupted_at: float | None = None  # on the monotonic clock


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong, where, and what to do about it.

    `main.py` prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # Spaces stay: they may be a file name's.
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))


class DiskFullError(UserError):
    """The disk is full, or the user's part of it: exit code 6. What is on it stays whole."""


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); it ends as it does on Ctrl-C."""


def raise_interruption(number: int, _frame: object) -> None:
    """A signal handler for Ctrl-C and SIGTERM: ends the process by an exception, once.

    While the process ends, more of them change nothing. If it hangs there, one that comes later
    ends it at once.
    """
    global _interrupted_at
    now = time.monotonic()
    if _interrupted_at is None:
        _interrupted_at = now
        raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt
    if now - _interrupted_at > _SECONDS_TO_END:
        os._exit(128 + number)


def ignore_signal(*_: object) -> None:
    """A signal handler that does nothing, and that child processes do not inherit."""


class ExitCode(IntEnum):
    """An exit code and what it means; the meanings are shown by `--help`.

    In a sweep the process ends with the highest code of its runs.
    """

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        """A member with its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    DONE = 0, "done"
    INTERNAL = 1, "internal error (see the run's log)"
    BAD_INPUT = 2, "bad input"
    PICTURES_FAILED = 3, "some pictures failed (listed in results.json)"
    PAST_TOLERANCE = 4, "job=compare past a tolerance"
    GATE_MISSED = 5, "eval.gate missed"
    DISK_FULL = 6, "the disk is full"
    INTERRUPTED = 130, "interrupted (Ctrl-C)"
    TERMINATED = 143, "terminated (SIGTERM)"
