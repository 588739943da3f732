"""A store that speaks as much of S3 as pyarrow needs, over a network that can be cut."""

from __future__ import annotations

import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Store(ThreadingHTTPServer):
    """Objects in memory.

    Attributes:
        objects: "bucket/key" -> content.
        cuts: How many of the next requests that write find their connection closed.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[str, bytes]] = {}
        self.cuts = 0
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()

    def uri(self, name: str) -> str:
        """That of a folder in the bucket."""
        place = f"endpoint_override=127.0.0.1:{self.server_port}&scheme=http&region=us-east-1"
        return f"s3://bucket/{name}?{place}"


class Handler(BaseHTTPRequestHandler):
    """One request after the other of a connection."""

    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def _asked(self) -> tuple[str, dict[str, str]]:
        path, _, query = self.path.partition("?")
        return urllib.parse.unquote(path).strip("/"), dict(
            urllib.parse.parse_qsl(query, keep_blank_values=True)
        )

    def _answer(self, code: int, body: bytes = b"", size: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Fri, 01 Jan 2027 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def _is_cut(self) -> bool:
        if self.server.cuts > 0:
            self.server.cuts -= 1
            self.close_connection = True
            return True
        return False

    def _sent(self) -> bytes:
        """What the request holds, by HTTP's own rules."""
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            sent += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return sent

    def _body(self) -> bytes:
        """The request's content; the client sends some in pieces, each behind its size."""
        left = self._sent()
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return left
        body = b""
        while left:
            head, _, left = left.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            if not size:
                break
            body, left = body + left[:size], left[size + 2 :]
        return body

    def do_PUT(self) -> None:
        name, query = self._asked()
        if self._is_cut():
            return
        body = self._body()
        if "uploadId" in query:
            self.server.parts[query["uploadId"]][query["partNumber"]] = body
        else:
            self.server.objects[name] = body
        self._answer(200)

    def do_POST(self) -> None:
        name, query = self._asked()
        if self._is_cut():
            return
        self._body()
        if "uploads" in query:
            upload = str(len(self.server.parts))
            self.server.parts[upload] = {}
            found = f"<Key>k</Key><UploadId>{upload}</UploadId>"
            kind = "InitiateMultipartUploadResult"
        else:
            parts = self.server.parts[query["uploadId"]]
            self.server.objects[name] = b"".join(parts[n] for n in sorted(parts, key=int))
            found, kind = "<ETag>x</ETag>", "CompleteMultipartUploadResult"
        self._answer(200, f"<{kind}><Bucket>bucket</Bucket>{found}</{kind}>".encode())

    def do_HEAD(self) -> None:
        name, _ = self._asked()
        found = self.server.objects.get(name)
        is_there = found is not None or "/" not in name
        self._answer(200 if is_there else 404, size=len(found or b""))

    def do_GET(self) -> None:
        name, query = self._asked()
        if "list-type" in query:
            start = f"{name}/{query.get('prefix', '')}"
            keys = [one for one in self.server.objects if one.startswith(start)]
            entries = "".join(
                f"<Contents><Key>{one.partition('/')[2]}</Key>"
                f"<Size>{len(self.server.objects[one])}</Size>"
                "<LastModified>2027-01-01T00:00:00Z</LastModified></Contents>"
                for one in keys
            )
            told = f"<Name>{name}</Name><KeyCount>{len(keys)}</KeyCount>{entries}"
            self._answer(200, f"<ListBucketResult>{told}</ListBucketResult>".encode())
        elif name in self.server.objects:
            self._answer(200, self.server.objects[name])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_DELETE(self) -> None:
        self.server.objects.pop(self._asked()[0], None)
        self._answer(204)
