"""A web server that misbehaves on request, and what the tests of hubs share: a home, a hub in a folder, the same hub on
a web server.
"""

from __future__ import annotations

import functools
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from card_example import write_folder

from zoo.hub import carriers, hub
from zoo.hub import push as pushing

NAME, MODEL = "simclr-tiny", "model.safetensors"


def in_cache() -> list[str]:
    """What lies in the cache and could be taken for a checkpoint."""
    return (
        [path.name for path in hub.cache().glob("*") if not path.name.startswith(".") and path.name != "indexes"]
        if hub.cache().exists()
        else []
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- a web server that misbehaves on request -----------------------------------------------------


class Server:
    """Serves a folder on this machine. `faults` are taken from the front by requests whose path ends in their first
    part.
    """

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


def answer(
    handler,
    path: Path,
    drop: int | None = None,
    ranges: bool = True,
    length: int | None = None,
    data: bytes | None = None,
):
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
    handler.wfile.write(data[start:] if drop is None else data[start : max(start, drop)])
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
    handler.wfile.write(bytes(range(100)))  # how every model here begins
    time.sleep(1.2)


# ---- fixtures, which a file of tests imports -----------------------------------------------------


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A home of its own, and no hub but those that a test names."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    for name in ("ZOO_HUB", "ZOO_OFFLINE", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "shipped", lambda kind: None)
    monkeypatch.setattr(carriers, "STALL", 0.4)
    waits = []
    monkeypatch.setattr(carriers, "time", types.SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    return waits


@pytest.fixture
def there(tmp_path):
    """A hub in a folder, with one checkpoint."""
    pushing.push(write_folder(tmp_path / "made"), tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def web(there):
    server = Server(there)
    yield server
    server.server.shutdown()
    server.server.server_close()
