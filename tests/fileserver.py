"""A server on the loopback address that serves files, resumes them, and misbehaves as told."""

import hashlib
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    """A server on a free port that notes its requests; ``silent`` lets it never answer."""

    daemon_threads = True

    def __init__(self, handler, silent=False):
        super().__init__(("127.0.0.1", 0), handler)
        self.silent = silent
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that went away is part of the tests."""


class LoopbackHandler(BaseHTTPRequestHandler):
    """How an answer is sent, and where it may break off."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def wait_if_silent(self):
        while self.server.silent:
            time.sleep(0.1)

    def answer(self, status, body, headers=None, drop_after=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:drop_after])
        self.close_connection |= drop_after is not None

    def range_start(self, size, etag):
        """The first byte that is asked for; 0 if another file's rest is; None behind the end."""
        wanted = self.headers.get("Range")
        if not wanted or self.headers.get("If-Range", etag) != etag:
            return 0
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        return start if start < size else None


def flipped(content, where):
    """The bytes with one inverted."""
    return content[:where] + bytes([content[where] ^ 0xFF]) + content[where + 1 :]


class FileServer(LoopbackServer):
    """Serves ``files`` (path -> bytes) with Range.

    ``faults`` are taken one a GET of a file, in order: an int is a status to answer with, ("drop", n) breaks the
    connection after n bytes, ("flip", n) inverts byte n, "no range" ignores Range, "other range" sends another part,
    None is a good answer. A file has an ETag, which If-Range is held to. ``silent`` never answers anything.
    ``requests`` are (method, path, Range). ``moved`` (path -> URL) are redirects, and ``tokens`` what each request
    had as its Authorization.
    """

    def __init__(self, files=None, faults=(), silent=False, moved=None):
        super().__init__(Handler, silent)
        self.files, self.faults, self.moved = files or {}, list(faults), moved or {}
        self.tokens = []

    def gets(self, path):
        return [r for r in self.requests if r[:2] == ("GET", path)]


class Handler(LoopbackHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, self.path.split("?")[0]
        server.requests.append((self.command, path, self.headers.get("Range")))
        server.tokens.append(self.headers.get("Authorization"))
        self.wait_if_silent()
        if path in server.moved:
            return self.answer(307, b"", {"Location": server.moved[path]})
        content, headers = server.files.get(path), {}
        if content is None:
            headers = {"X-Error-Code": "RepoNotFound"} if path.startswith("/api/") or "/resolve/" in path else {}
            return self.answer(404, b"", headers)
        fault = server.faults.pop(0) if server.faults and self.command == "GET" else None
        if isinstance(fault, int):
            return self.answer(fault, b"")
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        headers.setdefault("ETag", etag)
        start = self.range_start(len(content), etag) if fault != "no range" else 0
        if start is None:
            return self.answer(416, b"")
        if start:
            start += 7 * (fault == "other range")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        kind, where = fault if isinstance(fault, tuple) else (fault, None)
        if kind == "flip":
            content = flipped(content, where)
        return self.answer(
            206 if "Content-Range" in headers else 200, content[start:], headers, where if kind == "drop" else None
        )


@contextmanager
def running(server):
    """The server while the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.silent = False
        server.shutdown()
        server.server_close()


def serving(*args, **kwargs):
    """A ``FileServer`` while the block runs."""
    return running(FileServer(*args, **kwargs))
