"""Where a number came from: machine, versions, commit, memory."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import zoo
from zoo.machine import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout that the package seems to lie in, and git in it."""
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "zoo")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "pyproject.toml").write_text("[project]\n")

    def git(*words: str) -> str:
        words = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org", *words)
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    return git


def test_the_commit_of_a_checkout(checkout, tmp_path):
    assert provenance.commit() is None, "no checkout"
    checkout("init")
    assert provenance.commit() is None, "nothing committed yet"
    checkout("add", "pyproject.toml")
    checkout("commit", "-m", "first")
    clean = provenance.commit()
    assert re.fullmatch("[0-9a-f]{12}", clean) and checkout("rev-parse", "HEAD").startswith(clean)
    (tmp_path / "notes.txt").write_text("untracked")
    assert provenance.commit() == clean, "what git doesn't follow isn't the code"
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert provenance.commit() == f"{clean}-dirty"
    checkout("commit", "-am", "second")
    assert re.fullmatch("[0-9a-f]{12}", provenance.commit()) and provenance.commit() != clean


def test_an_installed_package_has_no_commit(checkout, tmp_path, monkeypatch):
    """Also where somebody's own repository is around it: that commit says nothing of us."""
    checkout("init")
    checkout("add", ".")
    checkout("commit", "-m", "theirs")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "venv/lib/site-packages/zoo")
    assert provenance.commit() is None
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "zoo")
    (tmp_path / "pyproject.toml").unlink()
    assert provenance.commit() is None


def test_without_git(checkout, monkeypatch):
    checkout("init")
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.commit() is None


def test_the_machine():
    found = provenance.machine("cpu")
    assert (
        found["threads"] == torch.get_num_threads()
        and found["device"] == "cpu"
        and found["os"] == f"{platform.system()} {platform.machine()}"
    )
    assert 1 <= found["cores"] <= os.cpu_count()
    assert provenance.machine("cuda:0" if torch.cuda.is_available() else "cpu")["device"] == (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    )
    if Path("/proc/cpuinfo").is_file() and "model name" in Path("/proc/cpuinfo").read_text():
        assert f"model name\t: {found['cpu']}\n" in Path("/proc/cpuinfo").read_text()


def test_the_machine_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert provenance.machine("cuda:0")["device"] == "Some GPU"


def test_packages(monkeypatch):
    found = provenance.packages()
    assert found["python"] == platform.python_version() and {
        name: metadata.version(name) for name in list(found)[1:]
    } == dict(list(found.items())[1:])
    assert {"torch", "torchvision", "timm", "lightning", "numpy"} <= found.keys() and found[
        "pretext-zoo"
    ] == zoo.__version__
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    assert set(provenance.packages()) == {"python", "pretext-zoo", "torch"}


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system gives no account of its processes")
def test_peak_memory_is_of_this_process_alone():
    """In millions of bytes; and nothing of what the process that started it holds."""
    held = bytearray(400_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert provenance.peak_memory_mb() > 400
    code = "import sys; sys.modules['torch'] = None\nimport zoo.machine.provenance as p; print(p.peak_memory_mb())"
    assert (
        5 < float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) < 300
    )


def test_where_the_system_gives_no_account_peak_memory_is_what_getrusage_says(monkeypatch):
    monkeypatch.setattr(provenance.Path, "read_text", lambda path: "")
    for platform_, size in (("linux", 2048.0), ("darwin", 2.0)):  # kilobytes there, bytes here
        monkeypatch.setattr(resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": 2_000_000}))
        monkeypatch.setattr(provenance.sys, "platform", platform_)
        assert provenance.peak_memory_mb() == size
