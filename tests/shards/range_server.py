"""A small web server with Range, If-Range, redirects, errors and broken connections, for tests of fetching."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Site:
    """What is served: content by path, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """Bytes after which successive answers break off."""
    fail: dict[str, list[int]] = field(default_factory=dict)
    """Statuses of the next answers."""
    pause_s: float = 0.0
    """After every 64 kB."""
    ranges: bool = True
    etags: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(path with query, Range) of every request."""
    url: str = ""


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def serve(site: Site) -> ThreadingHTTPServer:
    """Start in a thread; ``site.url`` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path if self.path in site.files else urlsplit(self.path).path
            site.asked.append((self.path, self.headers.get("Range", "")))
            if site.fail.get(path):
                self.send_error(site.fail[path].pop(0))
            elif path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif path not in site.files:
                self.send_error(404)
            else:
                self._send(path, site.files[path])

        def _send(self, path: str, content: bytes) -> None:
            start, asked = 0, self.headers.get("Range", "")
            fresh = self.headers.get("If-Range", etag(content)) == etag(content)
            if asked and site.ranges and fresh:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.etags:
                self.send_header("ETag", etag(content))
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest, cuts = content[start:], site.cut_after.get(path, [])
            rest = rest[: cuts.pop(0)] if cuts else rest
            for i in range(0, len(rest), 1 << 16):
                try:
                    self.wfile.write(rest[i : i + (1 << 16)])
                    self.wfile.flush()
                except OSError:  # the client was killed
                    return
                time.sleep(site.pause_s)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server
