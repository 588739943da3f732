"""What the process ends with."""

from __future__ import annotations

from enum import IntEnum


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
    INTERRUPTED = 130, "interrupted (Ctrl-C)"
    TERMINATED = 143, "terminated (SIGTERM)"
