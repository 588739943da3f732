"""`progress=json`: each line of the standard output is a JSON object, see docs/monitoring.md.

A thread writes them: an interruption, which is raised in the main thread, cuts no line short.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import select
import sys
import threading
import time
from typing import Any

from cfdist.files import redacted

# Goes up when a key is renamed or changes its meaning; new keys may come at any time.
VERSION = 1

_SECONDS_TO_END = 2.0  # for a reader that is slow when the process ends

# Events that the next one of their kind replaces: they are left out while so many lines wait.
_PASSING, _MOST_WAITING = ("loading", "progress"), 1000


class _Writer:
    """Writes lines to a descriptor, in order; drops what it does not take.

    After a line of which it took a part it gets no other.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._write_lines, name="events", daemon=True).start()

    def put(self, line: bytes) -> None:
        self._lines.put(line)

    def is_behind(self) -> bool:
        """Whether the reader has not taken many lines."""
        return self._lines.qsize() >= _MOST_WAITING

    def _write_lines(self) -> None:
        is_cut = False
        while True:
            line = rest = self._lines.get()
            while rest and not is_cut:
                try:
                    rest = rest[os.write(self.descriptor, rest) :]
                except BlockingIOError:  # it will take more
                    select.select([], [self.descriptor], [])
                except OSError:
                    is_cut = len(rest) < len(line)  # what came next would end that line
                    break
            self._lines.task_done()

    def drain(self) -> None:
        """Wait until all is written, or the reader has taken too long."""
        deadline = time.monotonic() + _SECONDS_TO_END
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)


_writer: _Writer | None = None
_runs: list[dict[str, Any]] = []  # what the last line says of the runs that have ended
_has_ended = False


def turn_on() -> None:
    """Let the standard output hold events alone; what else is printed there goes to stderr."""
    global _writer
    if _writer is None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        _writer = _Writer(os.dup(1))
        os.dup2(2, 1)


def turn_off() -> None:
    """Give the standard output back: there is no run."""
    global _writer
    if _writer is not None:
        _writer.drain()
        sys.stdout.flush()
        os.dup2(_writer.descriptor, 1)
        _writer = None


def is_on() -> bool:
    """Whether the standard output holds events."""
    return _writer is not None


def emit(event: str, **content: Any) -> None:
    """Write an event, if events are asked for and the last one is not written."""
    if _writer is not None and not _has_ended and not (event in _PASSING and _writer.is_behind()):
        _put(_writer, event, content)


def _put(writer: _Writer, event: str, content: dict[str, Any]) -> None:
    keys = {"version": VERSION, "event": event, "time": round(time.time(), 3)}
    writer.put(json.dumps(keys | _clean(content)).encode() + b"\n")


def end_run(output_dir: str, exit_code: int, results: str | None, content: dict[str, Any]) -> None:
    """Write that a run has ended.

    Args:
        output_dir: The run's folder.
        exit_code: What the process would end with, were it the only run.
        results: The path of its results; `None` if it has none.
        content: What the results hold.
    """
    place = {"output_dir": output_dir, "results": results, "ap": content.get("ap", {})}
    figures = {name: content.get(name) for name in ("test", "pictures", "throughput", "seconds")}
    emit("run_end", exit_code=exit_code, **place, **figures)
    _runs.append(place)


def end(exit_code: int) -> None:
    """Write the last line, once, and wait until it is out."""
    global _has_ended
    if _writer is not None and not _has_ended:
        _has_ended = True
        none: dict[str, Any] = {"output_dir": None, "results": None, "ap": {}}
        place = _runs[0] if len(_runs) == 1 else none
        _put(_writer, "end", {"exit_code": int(exit_code), **place})
        _writer.drain()


def _clean(value: Any) -> Any:
    """A value of JSON without secrets; any other object is its text."""
    if isinstance(value, dict):
        return {str(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted(str(value))


class Messages(io.TextIOBase):
    """A text file in whose place each line that is written becomes an event."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        """Take text; whole lines become events."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                emit("message", text=line.rstrip())
        return len(text)
