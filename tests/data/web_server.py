"""A web server for one folder, which can refuse ranges, fail now and then, damage a byte, and counts what it sends."""

import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.n_requests += 1
            fails = server.fail_every and server.n_requests % server.fail_every == 0
            server.failures += bool(fails)
        name = self.path.rpartition("/")[2]
        path = server.folder / name
        if fails:
            return self.send_error(503)
        if not path.is_file():
            return self.send_error(404)
        content = bytearray(path.read_bytes())
        if server.change and server.change[0] == name:
            content[server.change[1]] ^= 1
        asked, total = self.headers.get("Range"), len(content)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        with server.lock:
            server.requested.append(name)
        try:
            for at in range(start, total, 1 << 14):
                sent = self.wfile.write(content[at : at + (1 << 14)])
                with server.lock:
                    server.sent[path.suffix[1:]] += sent
        except OSError:
            pass  # the reader has what it wanted


@contextmanager
def serve(folder, *, ranges=True, fail_every=0):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.ranges, server.fail_every, server.change = folder, ranges, fail_every, None
    server.lock, server.requested, server.sent = threading.Lock(), [], Counter()
    server.n_requests = server.failures = 0
    server.url = f"http://127.0.0.1:{server.server_port}/study"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
