"""The doctor's findings as lines of at most 80 columns; the standard library alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

_WIDTH, _NAME_WIDTH = 80, 16

State = Literal["ok", "note", "FAULT"]


class Finding(NamedTuple):
    """A line of the table.

    Attributes:
        state: "FAULT": a run as configured cannot start, or not with what it asks for.
        what: What was looked at.
        found: What is there.
        remedy: What a person can do; empty where nothing has to be done.
    """

    state: State
    what: str
    found: str
    remedy: str = ""


def table(findings: Iterable[Finding]) -> str:
    """The findings, each with its remedy below it; no word is broken."""
    lines: list[str] = []
    for one in findings:
        start = f"{one.state:<6}{one.what:<{_NAME_WIDTH}}"
        lines += _wrapped(f"{start} {one.found}", len(start) + 1)
        if one.remedy:
            lines += _wrapped(f"{'':6}-> {one.remedy}", 9)
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def looked_at(what: str, look: Callable[[], str], state: State = "FAULT") -> Finding:
    """What a look finds, or in which state it leaves the host by what it raises.

    A message of ours ends in its remedy, after the first semicolon.
    """
    try:
        return Finding("ok", what, look())
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        found, _, remedy = text.partition("; ")
        return Finding(state, what, found, remedy)


def can_run(findings: Iterable[Finding]) -> bool:
    """Whether there is no fault."""
    return all(one.state != "FAULT" for one in findings)
