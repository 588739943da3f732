"""Exceptions that are no faults of the program, and the exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from enum import IntEnum


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong, where, and what to do about it.

    `main.py` prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # Spaces stay: they may be a file name's.
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))


def did_you_mean(word: str, choices: Iterable[str] | Mapping[str, str], least: float = 0.6) -> str:
    """The end of a message about a misspelt word: "; did you mean score?", or nothing.

    Args:
        word: What was typed, in upper or lower case.
        choices: What may stand there; of a mapping, the keys, in place of which their values are
            named.
        least: How like a choice has to be, 0 to 1.
    """
    named = choices if isinstance(choices, Mapping) else {choice: choice for choice in choices}
    folded = {choice.casefold(): name for choice, name in named.items()}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=least)
    return f"; did you mean {folded[close[0]]}?" if close else ""


def counted(number: int, noun: str) -> str:
    """A number of things: "1 device", "2 devices"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class DiskFullError(UserError):
    """The disk is full, or the user's part of it: exit code 6. What is on it stays whole."""


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); it ends as it does on Ctrl-C."""


class HungUpError(KeyboardInterrupt):
    """The process's terminal has gone (SIGHUP); it ends as it does on Ctrl-C."""


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
    INTERNAL = (
        1,
        "internal error; no device, cluster, output_dir or mirror is left; a FAULT of job=doctor",
    )
    BAD_INPUT = 2, "bad input"
    PICTURES_FAILED = 3, "some pictures failed (listed in results.json)"
    PAST_TOLERANCE = 4, "job=compare past a tolerance; job=tune without a candidate within it"
    GATE_MISSED = 5, "eval.gate missed"
    DISK_FULL = 6, "the disk is full"
    HUNG_UP = 129, "interrupted: the terminal has gone (SIGHUP)"
    INTERRUPTED = 130, "interrupted (Ctrl-C)"
    TERMINATED = 143, "terminated (SIGTERM)"


class StoppedError(Exception):
    """A run that ended early, and that `resume` goes on with; one line says why.

    Attributes:
        exit_code: The process's.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code
