"""Exceptions that are no faults of the program."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong, where, and what to do about it.

    `main.py` prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); it ends as it does on Ctrl-C."""


def raise_terminated(*_: object) -> None:
    """A signal handler that raises `TerminatedError`."""
    raise TerminatedError
