"""A web server on this machine that gives files as badly as it is told to."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror:
    """Files by path, and what goes wrong with them.

    Attributes:
        files: Path -> content.
        faults: Path -> faults, one a request, the last for all further ones: "cut" (half of what
            was asked for), "stall", "drip", "html", "page" (a page that does not say it is one),
            "no length", "no length cut", "no ranges", "no validator", "wrong range", "redirect",
            "loop", or a status.
        asked: (path, Range, If-Range) of each request.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str | int]] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []

    def fault(self, path: str) -> set[str]:
        """Those of the next request, words with commas between."""
        left = self.faults.get(path, [""])
        found = left.pop(0) if len(left) > 1 else left[0]
        return set(str(found).split(","))


@contextmanager
def serving() -> Iterator[Mirror]:
    """The server, for the `with` block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            _answer(self, mirror)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    mirror = Mirror(f"http://127.0.0.1:{server.server_port}/")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, mirror: Mirror) -> None:
    path = request.path.lstrip("/")
    wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
    mirror.asked.append((path, wanted, condition))
    faults = mirror.fault(path)
    status = next((int(one) for one in faults if one.isdigit()), 200)
    if path not in mirror.files and not faults & {"html", "page", "redirect", "loop"}:
        status = 404
    if faults & {"redirect", "loop"}:
        place = path if "loop" in faults else f"real/{path}"
        return _send(request, 302, {"Location": f"/{place}"}, b"")
    if status != 200:
        return _send(request, status, {}, b"no")
    if faults & {"html", "page"}:
        kind = "text/html; charset=utf-8" if "html" in faults else "application/octet-stream"
        return _send(request, 200, {"Content-Type": kind}, b"<!doctype html>quota exceeded")
    content = mirror.files[path]
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    headers = {} if "no validator" in faults else {"ETag": etag}
    start = 0
    if wanted and "no ranges" not in faults and condition in (None, etag):
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            extent = {"Content-Range": f"bytes */{len(content)}"}
            return _send(request, 416, extent, b"")
        start -= "wrong range" in faults
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        status = 206
    body, has_length = content[start:], not faults & {"no length", "no length cut"}
    is_cut = faults & {"cut", "no length cut", "stall", "drip"}
    sent = body[: (len(body) + 1) // 2] if is_cut else body
    _send(request, status, headers, sent, len(body) if has_length else None)
    if faults & {"stall", "drip"}:
        for number in range(100 if "drip" in faults else 1):
            time.sleep(0.02 if "drip" in faults else 1.5)
            try:
                request.wfile.write(body[len(sent) + number : len(sent) + number + 1])
                request.wfile.flush()
            except OSError:
                break
    request.close_connection = True


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    body: bytes,
    length: int | None = -1,
) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    if length is not None:
        request.send_header("Content-Length", str(len(body) if length == -1 else length))
    else:
        request.send_header("Connection", "close")
        request.close_connection = True
    request.end_headers()
    try:
        request.wfile.write(body)
        request.wfile.flush()
    except OSError:
        request.close_connection = True
