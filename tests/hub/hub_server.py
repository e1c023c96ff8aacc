"""A web server that misbehaves on request, and what the tests of hubs share."""

from __future__ import annotations

import functools
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from zoo import hub

NAME, MODEL = "simclr-tiny", "model.safetensors"





def in_cache() -> list[str]:
    """What lies in the cache and could be taken for a checkpoint."""
    return [path.name for path in hub.cache().glob("*") if not path.name.startswith(".") and path.name != "indexes"] if hub.cache().exists() else []


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- a web server that misbehaves on request -----------------------------------------------------------------------------

class Server:
    """Serves a folder on this machine. `faults` are taken from the front by requests whose path ends in their first part."""

    def __init__(self, root: Path):
        self.root, self.faults, self.requests = root, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Range")))
                for number, (end, fault) in enumerate(outer.faults):
                    if self.path.endswith(end):
                        del outer.faults[number]
                        return fault(self)
                return plain(self)

            def log_message(self, *ignored):
                pass

        def plain(handler):
            answer(handler, (outer.root / handler.path.lstrip("/")))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=functools.partial(self.server.serve_forever, poll_interval=0.02), daemon=True).start()

    def ranges(self, end: str) -> list:
        return [wanted for path, wanted in self.requests if path.endswith(end)]


def answer(handler, path: Path, drop: int | None = None, ranges: bool = True, length: int | None = None, data: bytes | None = None):
    if data is None:
        if not path.is_file():
            return handler.send_error(404)
        data = path.read_bytes()
    start = int(handler.headers["Range"][6:-1]) if ranges and handler.headers.get("Range") else 0
    if start >= len(data) > 0:
        return handler.send_error(416)
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    if length != -1:
        handler.send_header("Content-Length", str(len(data) - start if length is None else length))
    handler.end_headers()
    handler.wfile.write(data[start:] if drop is None else data[start:max(start, drop)])
    return None


def dropping(web, at, ranges=True):
    return lambda handler: answer(handler, web.root / handler.path.lstrip("/"), drop=at, ranges=ranges)


def status(code, **headers):
    def fault(handler):
        handler.send_response(code)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
    return fault


def stall(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "204800")
    handler.end_headers()
    handler.wfile.write(bytes(range(100)))             # how every model here begins
    time.sleep(1.2)
