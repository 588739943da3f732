"""The process's screen: this program's lines go to it, what libraries print to the run's log."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cfdist.files import redacted
from cfdist.monitoring import stream

_STANDARD = (0, 1, 2)  # the descriptors of input, output and error messages

# The cursor goes to the line's start, and what is in the line is removed.
_CLEAR = b"\r\x1b[K"


@dataclass(frozen=True)
class Settings:
    """How much is shown.

    Attributes:
        is_quiet: Only results and errors.
        is_verbose: Also what the run's log holds, and what Ray and other libraries print.
    """

    is_quiet: bool = False
    is_verbose: bool = False


settings = Settings()

_is_guarded = False  # whether this process is a command; else the screen is its owner's
_own: dict[int, TextIO] = {}  # standard descriptor -> the screen, while libraries have another
_copies: dict[int, int] = {}  # standard descriptor -> that of the screen meanwhile
_waiting: int | None = None  # the descriptor on which a line stands that is to be replaced
_messages = stream.Messages()


def show(is_quiet: bool, is_verbose: bool) -> None:
    """Say how much is shown from now on."""
    global settings
    settings = Settings(is_quiet, is_verbose)


def is_guarded() -> bool:
    """Whether this process is a command, which ends with its run; else it is its owner's."""
    return _is_guarded


def out() -> TextIO:
    """Where this program's lines go."""
    return _messages if stream.is_on() else _own.get(1, sys.stdout)  # type: ignore[return-value]


def say(text: str) -> None:
    """Print a line of information, which a quiet run leaves out."""
    if not settings.is_quiet:
        print(text, file=out(), flush=True)


def is_live() -> bool:
    """Whether lines on the screen can be replaced."""
    screen = out()
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return screen is not None and screen.isatty() and not dumb


def replace_line(text: str) -> None:
    """Show a line on a live screen until something else comes."""
    print(text, end="\r", file=out(), flush=True)


def show_waiting(what: str) -> None:
    """Say on a live screen what takes its time, until something else is printed there."""
    if not settings.is_quiet and is_live():
        replace_line(f"{what} ...")


def error_descriptor() -> int:
    """The descriptor of the screen for errors, wherever libraries print now."""
    return _copies.get(2, 2)


def write_error(line: bytes) -> None:
    """Write a line to the standard error at once: `print` may be at work below this."""
    _clear()
    with contextlib.suppress(OSError):
        os.write(error_descriptor(), line)


def _clear() -> None:
    """Remove the line that is to be replaced."""
    global _waiting
    descriptor, _waiting = _waiting, None
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, _CLEAR)


@contextlib.contextmanager
def others_to(path: Path) -> Iterator[None]:
    """Lead what libraries print in the `with` block to the end of a file.

    That is whatever is printed, in any language, but by `say` and to `out()`. The file disappears
    if it is empty. A verbose run, and a process whose screen is not guarded, prints as ever.
    """
    if settings.is_verbose or _copies or not _is_guarded:
        yield
        return
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:
        yield  # what says why comes when the run writes there
        return
    for number, text in ((1, sys.stdout), (2, sys.stderr)):
        _flush(text)
        _copies[number] = os.dup(number)
        _own[number] = _guarded(_copies[number], text) if _is_on(text, number) else text
        os.dup2(log, number)
    os.close(log)
    try:
        yield
    finally:
        _clear()
        for number, text in ((1, sys.stdout), (2, sys.stderr)):
            _flush(text)
            _flush(_own.pop(number))
            os.dup2(_copies[number], number)
            os.close(_copies.pop(number))
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def _is_on(text: TextIO | None, number: int) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return text is not None and text.fileno() == number
    return False


def _flush(text: TextIO | None) -> None:
    with contextlib.suppress(OSError, ValueError):
        if text is not None:
            text.flush()


def guard_screen() -> None:
    """Let nothing that happens to the screen stop a run or lose its results.

    What a closed pipe or a full disk does not take is dropped. A descriptor that the caller has
    closed leads to nowhere; else the next file that is opened would get its number, and what is
    printed. A character that the screen cannot show is an escape.
    """
    global _is_guarded
    _is_guarded = True
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = _guarded(1, sys.stdout)
    sys.stderr = _guarded(2, sys.stderr)


class _Descriptor(io.FileIO):
    """A descriptor to write to; once it takes no more, what is written is dropped.

    A line that ends in a carriage return goes when something else comes.
    """

    def write(self, data: object) -> int:
        """Write bytes, or drop them."""
        global _waiting
        taken: bytes = bytes(data)  # type: ignore[call-overload]
        text = redacted(taken.decode("latin-1")).encode("latin-1")
        if self.fileno() not in _own:  # else a library writes
            _clear()
            _waiting = self.fileno() if text.endswith(b"\r") else None
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


def _guarded(number: int, text: TextIO | None) -> io.TextIOWrapper:
    """A guarded stream on a descriptor, in place of a standard one (`None`: it was closed)."""
    _flush(text)
    encoding = getattr(text, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(_Descriptor(number, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)
