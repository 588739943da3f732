"""The one exception that means: the person asked for something that cannot be done."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong, where, and what to do about it.

    `main.py` prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
