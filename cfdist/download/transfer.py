"""One file from the first of several addresses that gives it whole, resumed where it was cut.

What has arrived lies in `.<name>.part` beside the target, with a note of what it is a part of, and
outlives the command. Nothing has the target's name before it was checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cfdist import __version__
from cfdist.errors import DiskFullError, ExitCode, StoppedError, UserError
from cfdist.files import Sink, fsync, redacted, write_text
from cfdist.monitoring import terminal
from cfdist.monitoring.terminal import say

# Connections to one address: in a row that bring hardly anything, and in all.
_IN_VAIN, _MOST_CONNECTIONS = 3, 50
_FIRST_WAIT = 1.0  # seconds after the first of these; doubled each time
_CONNECT_SECONDS = 20.0
_PIECE = 1 << 16
_LEAST_RATE = 1000  # bytes a second; less, over the time of a stall, is one
_SPARE_BYTES = 64 << 20  # that a download leaves free
_EVERY = (0.5, 10.0)  # seconds between two lines of progress, on a terminal and in a pipe

# Answers of a server that may give another one soon.
_FOR_NOW = (408, 425, 429, 500, 502, 503, 504)
_OF_A_ZIP = b"PK"


class _RefusedError(Exception):
    """An address does not give the file; the message says why."""


class _CutError(Exception):
    """A connection brought less than the file; the next one may bring the rest."""


@dataclass
class Transfer:
    """What is fetched, and from where.

    Attributes:
        target: Where the file goes, under its own name.
        addresses: http and https, tried in this order.
        check: Raises a `UserError` for a file that is not the one wanted.
        size: The file's bytes; `None`: unknown.
        is_known: Whether `check` compares digests: parts of any address then make one file.
        stall_s: Seconds without data after which a connection is given up.
    """

    target: Path
    addresses: Sequence[str]
    check: Callable[[Path], None]
    size: int | None = None
    is_known: bool = False
    stall_s: float = 30.0
    _said: float = field(default=0.0, init=False)

    @property
    def part(self) -> Path:
        """What has arrived."""
        return self.target.with_name(f".{self.target.name}.part")

    @property
    def _note(self) -> Path:
        return self.target.with_name(f".{self.target.name}.part.json")

    def run(self) -> None:
        """Fetch the file, check it and give it its name.

        Raises:
            StoppedError: no address gives the file; what has arrived stays.
            DiskFullError: it does not fit on the disk.
            OSError: it cannot be written.
        """
        reasons: dict[str, str] = {}
        for address in self.addresses:
            try:
                self._from(address)
            except _RefusedError as error:
                reasons[f"{urlsplit(address).netloc.rpartition('@')[2]}"] = str(error)
                say(redacted(f"{self.target.name}: {address}: {error}"))
                continue
            fsync(self.part)
            os.replace(self.part, self.target)
            fsync(self.target.parent)
            self._note.unlink(missing_ok=True)
            return
        why = "; ".join(f"{host}: {reason}" for host, reason in reasons.items())
        raise StoppedError(
            f"{self.target.name}: no address gives it ({why}); the same command goes on with what "
            "has arrived. Behind a proxy set https_proxy and http_proxy, for a certificate of your "
            "own REQUESTS_CA_BUNDLE; without a network fetch it elsewhere and add "
            "download.from=FOLDER",
            ExitCode.INTERNAL,
        )

    def _from(self, address: str) -> None:
        """Have the whole file in `part`, from one address.

        Raises:
            _RefusedError: it is not to be had there.
        """
        say(redacted(f"{self.target.name}: from {address}"))
        while True:
            begun = self._arrived()
            self._connect_until_whole(address)
            try:
                return self.check(self.part)
            except UserError as error:
                reason = str(error).replace(str(self.part), self.target.name)
            self._forget()
            if not begun:
                raise _RefusedError(reason)
            say(f"{self.target.name}: {reason}; starting anew")

    def _connect_until_whole(self, address: str) -> None:
        in_vain = 0
        for _ in range(_MOST_CONNECTIONS):
            before = self._arrived()
            try:
                return self._connect(address)
            except _CutError as error:
                in_vain = 0 if self._arrived() - before >= _PIECE else in_vain + 1
                if in_vain == _IN_VAIN:
                    raise _RefusedError(f"{error}, {in_vain} times in a row") from None
                wait = _FIRST_WAIT * 2 ** (in_vain - 1) if in_vain else 0.0
                say(f"{self.target.name}: {error}; going on in {wait:g} s")
                time.sleep(wait)
        raise _RefusedError(f"not whole after {_MOST_CONNECTIONS} connections")

    def _connect(self, address: str) -> None:
        """Add to `part` what one connection brings.

        Raises:
            _CutError: the file is not whole.
            _RefusedError: the address does not give it.
        """
        import requests  # takes its time, and no other job needs it

        begun, note = self._arrived(), self._noted()
        headers = {"Accept-Encoding": "identity", "User-Agent": f"cfdist/{__version__}"}
        is_same = note.get("address") == redacted(address)
        if begun and (self.is_known or (is_same and note.get("validator"))):
            headers["Range"] = f"bytes={begun}-"
            if is_same and note.get("validator"):
                headers["If-Range"] = note["validator"]
        try:
            response = requests.get(
                address, headers=headers, stream=True, timeout=(_CONNECT_SECONDS, self.stall_s)
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _CutError(_words(error)) from None
        except requests.RequestException as error:
            raise _RefusedError(_words(error)) from None
        with response:
            self._take(response, begun, address)

    def _take(self, response: Any, begun: int, address: str) -> None:
        """Write what an answer holds; see `_connect`."""
        status, start, total = response.status_code, *_extent(response)
        if status == 416 and begun == total:
            return
        if status in _FOR_NOW:
            raise _CutError(f"{status} {response.reason}")
        if status not in (200, 206, 416):
            raise _RefusedError(f"{status} {response.reason}")
        validator = _validator(response)
        is_other = (
            status == 416
            or start not in (0, begun)
            or (
                start
                and self._noted().get("validator", validator) != validator
                and not self.is_known
            )
        )
        if is_other:
            self._forget()
            raise _CutError("the file has changed there")
        if "html" in response.headers.get("Content-Type", ""):
            raise _RefusedError("a web page comes in place of the file")
        if self.size is not None and total not in (None, self.size):
            raise _RefusedError(f"holds {total} bytes, not {self.size}")
        if begun and not start:
            say(f"{self.target.name}: what has arrived does not count there; starting anew")
        self._ask_for_room((total or self.size or 0) - start)
        write_text(self._note, json.dumps({"address": redacted(address), "validator": validator}))
        whole = total or self.size
        self._write(_pieces(response, self.stall_s), start, whole)
        if whole is not None and self._arrived() < whole:
            raise _CutError(f"cut after {self._arrived()} of {whole} bytes")
        if whole is None and not zipfile.is_zipfile(self.part):
            raise _CutError(f"cut after {self._arrived()} bytes")

    def _write(self, pieces: Iterator[bytes], start: int, whole: int | None) -> None:
        with Sink(self.part, 0) as sink:
            os.ftruncate(sink.fileno(), start)
            os.lseek(sink.fileno(), start, os.SEEK_SET)
            done, began = start, time.monotonic()
            for piece in pieces:
                if not done and not piece.startswith(_OF_A_ZIP):
                    raise _RefusedError("what comes is no zip archive")
                if whole is not None and done + len(piece) > whole:
                    raise _RefusedError(f"sends more than {whole} bytes")
                sink.write(piece)
                done += len(piece)
                if done // _SPARE_BYTES > (done - len(piece)) // _SPARE_BYTES:
                    self._ask_for_room(0)  # a server may send more than it has said, or for ever
                self._show(done, whole, (done - start) / max(time.monotonic() - began, 1e-3))

    def _show(self, done: int, whole: int | None, rate: float) -> None:
        is_terminal = sys.stdout.isatty()
        if terminal.settings.is_quiet or time.monotonic() - self._said < _EVERY[not is_terminal]:
            return
        self._said = time.monotonic()
        of = f" of {whole / 1e6:.0f}" if whole else ""
        text = f"{self.target.name}: {done / 1e6:.0f}{of} MB, {rate / 1e6:.1f} MB/s"
        # A line that ends so is replaced by the next one, see `cfdist.command.start`.
        print(f"{text} ..." if is_terminal else text, end="\r" if is_terminal else "\n", flush=True)

    def _ask_for_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if needed + _SPARE_BYTES > free:
            raise DiskFullError(
                f"{self.target.parent}: {self.target.name} needs {needed / 1e6:.0f} MB more and "
                f"{_SPARE_BYTES / 1e6:.0f} MB to spare, {free / 1e6:.0f} MB are free; make room, "
                "or name another folder, download.to=FOLDER"
            )

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _noted(self) -> Mapping[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(self._note.read_text(encoding="utf-8"))
            return note if isinstance(note, dict) else {}
        return {}

    def _forget(self) -> None:
        for path in (self.part, self._note):
            path.unlink(missing_ok=True)


def _extent(response: Any) -> tuple[int, int | None]:
    """Where an answer's content begins in the file, and the file's bytes; `None`: not told."""
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        return 0, int(length) if length.isdigit() else None
    # "bytes 5-9/10", and of a range that is not there "bytes */10".
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return int(start) if start.isdigit() else -1, int(total) if total.isdigit() else None


def _validator(response: Any) -> str | None:
    """What tells this file from a later one there; a weak ETag does not."""
    etag: str = response.headers.get("ETag", "")
    modified: str | None = response.headers.get("Last-Modified")
    return etag if etag.startswith('"') else modified


def _pieces(response: Any, stall_s: float) -> Iterator[bytes]:
    """The content as it comes.

    Raises:
        _CutError: the connection broke, or stalled.
    """
    import urllib3

    began, came = time.monotonic(), 0
    while True:
        try:
            # Not `iter_content`: it waits for a whole piece, however slowly the bytes drip.
            piece = response.raw.read1(_PIECE)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _CutError(_words(error)) from None
        if not piece:
            return
        yield piece
        came += len(piece)
        if time.monotonic() - began >= stall_s:
            if came < _LEAST_RATE * stall_s:
                raise _CutError(f"only {came} bytes in {stall_s:g} s")
            began, came = time.monotonic(), 0


def _words(error: BaseException) -> str:
    """The innermost reason of a network's error, short."""
    while True:
        inner = getattr(error, "reason", None) or (error.args and error.args[0])
        inner = inner if isinstance(inner, BaseException) else error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(redacted(str(text)).rpartition(">: ")[2].split())[:200]
