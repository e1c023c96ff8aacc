"""A home and a hub of its own for every test."""

from __future__ import annotations

import time
import types

import pytest
from card_example import write_folder
from hub_server import Server

from zoo import carriers, hub


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
    hub.push(write_folder(tmp_path / "made"), tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def web(there):
    server = Server(there)
    yield server
    server.server.shutdown()
    server.server.server_close()
