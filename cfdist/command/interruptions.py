"""Ctrl-C, SIGTERM and SIGHUP end the run in order, and within seconds whatever it is doing.

The first signal raises an exception in the main thread. An exception may be lost in a library, and
the run's end may wait for something that the same signal has ended; then the process ends all the
same. What is on disk by then counts, as it does after SIGKILL, and the guard ends the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time

from cfdist.distributed import guard
from cfdist.errors import ExitCode, HungUpError, TerminatedError
from cfdist.files import redacted
from cfdist.monitoring import stream, terminal

# How long an orderly end may take. `ray job stop` kills after 3 s.
_SECONDS_TO_END = 2.5

# Of one request: `timeout` signals its child and then the group, the child included.
_SECONDS_OF_ONE_REQUEST = 0.1

_RAISED = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: TerminatedError,
    signal.SIGHUP: HungUpError,
}
_CODES = {
    KeyboardInterrupt: ExitCode.INTERRUPTED,
    TerminatedError: ExitCode.TERMINATED,
    HungUpError: ExitCode.HUNG_UP,
}

_first: KeyboardInterrupt | None = None  # what the first signal raised
_last_code: int | None = None  # the exit code, once it is certain
_is_said = False


def catch() -> None:
    """Let the signals end the run from now on; those that the caller ignores stay ignored."""
    signals, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    sys.unraisablehook = _report_lost
    threading.Thread(target=_watch, args=(signals,), daemon=True).start()
    for number in _RAISED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    atexit.register(_ignore)  # called last


def _ignore() -> None:
    """Ignore what comes now: Python gives the signals their default back as it ends."""
    for number in _RAISED:
        signal.signal(number, signal.SIG_IGN)


def finish(code: int) -> None:
    """Let a signal end the process at once, with an exit code: all is done but the exit."""
    global _last_code, _is_said
    _last_code, _is_said = code, True


def pending() -> KeyboardInterrupt | None:
    """What the first signal raised; `None` if none has come."""
    return _first


def say(interruption: KeyboardInterrupt) -> ExitCode:
    """Say on one line, and once, that the run was interrupted; returns the exit code."""
    global _is_said
    how = ""
    with contextlib.suppress(Exception):
        how = guard.how_to_go_on()
    line = redacted(f"cfdist: interrupted{how}\n").encode(errors="backslashreplace")
    code = _CODES[type(interruption)]
    if not _is_said:
        _is_said = True
        guard.be_silent()
        terminal.write_error(line)
        stream.emit("error", exit_code=code, message=f"interrupted{how}")
    return code


def _report_lost(lost: sys.UnraisableHookArgs) -> None:
    """Report an exception that nothing can catch, unless it is the interruption: `_watch` ends it.

    It may have come while a fork's handlers, a destructor or a callback ran.
    """
    if _first is None or lost.exc_value is not _first:
        sys.__unraisablehook__(lost)


def _interrupt(number: int, _frame: object) -> None:
    """The first signal ends the run by an exception; `_watch` sees to all that come later."""
    global _first
    if _first is None and _last_code is None:
        _first = _RAISED[signal.Signals(number)]()
        raise _first


def _watch(signals: int) -> None:
    """End the process when its time is over, or at another signal; runs in a thread.

    The main thread handles no signal as long as it is inside of a library.

    Args:
        signals: A descriptor that gives the number of each signal as a byte.
    """
    first, arrived = 0, 0.0
    while True:
        left = arrived + _SECONDS_TO_END - time.monotonic() if first else None
        if left is not None and not select.select([signals], [], [], max(0.0, left))[0]:
            break
        number = os.read(signals, 1)[0]
        if number not in _RAISED:
            continue
        if _last_code is not None:
            first = first or number
            break
        if not first:
            first, arrived = number, time.monotonic()
        elif time.monotonic() - arrived > _SECONDS_OF_ONE_REQUEST:
            break
    code = say(_first or _RAISED[signal.Signals(first)]())
    last: int = code if _last_code is None else _last_code
    stream.end(last)
    os._exit(last)
